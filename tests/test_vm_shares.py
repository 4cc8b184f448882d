"""Shares: virtiofs where a virtiofsd can run, else 9p; and the TPM, a helper of the same kind."""

from pathlib import Path

import pytest
from attrs import evolve

from arcsup.errors import Terminal
from arcsup.model import Network, NetworkType, Share
from arcsup.vm import shares
from arcsup.vm.networks import check_networks
from arcsup.vm.shares import Virtiofsd, check_share, find_virtiofsd, virtiofs_helper
from arcsup.vm.sockets import Listener
from arcsup.vm.tpm import create_tpm_folder, tpm_helper
from tests.vm_samples import make_vm

RUST = "--shared-dir <D>\n--fd <FD>\n--readonly\n--uid-map <M>"
OLD_RUST = "--shared-dir <D>\n--fd <FD>"
C = "--fd=FDNUM\n-o source=PATH"


def make_virtiofsd(tmp_path: Path, usage: str) -> Path:
    binary = tmp_path / "virtiofsd"
    binary.write_text(f"#!/bin/sh\ncat <<END\n{usage}\nEND\n")
    binary.chmod(0o755)
    return binary


@pytest.mark.parametrize(
    ("usage", "flavour", "readonly"),
    [(RUST, "rust", True), (OLD_RUST, "rust", False), (C, "c", False)],
)
async def test_root_gets_any_virtiofsd(
    tmp_path: Path, usage: str, flavour: str, readonly: bool
) -> None:
    found = await find_virtiofsd((make_virtiofsd(tmp_path, usage),), root=True)

    assert found is not None
    assert (found.flavour, found.readonly, found.own_ids) == (flavour, readonly, None)
    assert found.serves(Share("/srv", "srv"))
    assert found.serves(Share("/srv", "srv", readonly=True)) is readonly


@pytest.mark.parametrize("usage", [OLD_RUST, C])
async def test_others_get_only_one_that_maps_ids(tmp_path: Path, usage: str) -> None:
    assert await find_virtiofsd((make_virtiofsd(tmp_path, usage),), root=False) is None


@pytest.mark.parametrize("allowed", [True, False])
async def test_others_get_none_where_namespaces_are_forbidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: bool
) -> None:
    async def can_make_namespaces() -> bool:
        return allowed

    monkeypatch.setattr(shares, "_can_make_namespaces", can_make_namespaces)
    found = await find_virtiofsd((make_virtiofsd(tmp_path, RUST),), root=False)

    assert (found is not None) is allowed


async def test_a_broken_virtiofsd_means_9p(tmp_path: Path) -> None:
    binary = make_virtiofsd(tmp_path, RUST)
    binary.write_text("#!/nowhere\n")

    assert await find_virtiofsd((tmp_path / "none", binary), root=True) is None


def test_helpers_listen_where_they_are_told() -> None:
    share, source = Share("/srv", "srv", readonly=True), Path("/s,rc")
    rust = Virtiofsd(Path("/v"), "rust", readonly=True, own_ids=(1000, 100))
    listener = Listener(Path("/run/s"), 7)
    helper = virtiofs_helper(rust, share, source, listener, 0)
    printed = virtiofs_helper(
        Virtiofsd(Path("/v"), "c", False), share, source, Listener(Path("/s")), 0
    )

    assert helper.pass_fds == (7,)
    assert helper.argv == (
        *("/v", "--fd=7", "--shared-dir=/s,rc", "--log-level=warn", "--readonly"),
        *("--uid-map=:0:1000:1:", "--gid-map=:0:100:1:"),
    )
    assert printed.pass_fds == ()
    assert {"--socket-path=/s", "source=/s\\,rc"} <= set(printed.argv)


@pytest.mark.parametrize(
    ("usage", "option"),
    [
        (f"{RUST}\n--modcaps=<M>", ["--modcaps=-mknod:-setfcap"]),
        (f"{C}\n-o modcaps=CAPLIST", ["-o", "modcaps=-mknod:-setfcap"]),
        (C, ["-o", "log_level=warn"]),
    ],
)
async def test_roots_server_makes_no_device_nodes(
    tmp_path: Path, usage: str, option: list[str]
) -> None:
    virtiofsd = await find_virtiofsd((make_virtiofsd(tmp_path, usage),), root=True)
    assert virtiofsd is not None

    helper = virtiofs_helper(virtiofsd, Share("/srv", "srv"), Path("/srv"), Listener(Path("/s")), 0)

    assert list(helper.argv[-len(option) :]) == option


def test_a_share_must_be_a_folder(tmp_path: Path) -> None:
    assert check_share(Share(".", "x"), tmp_path) == tmp_path
    with pytest.raises(Terminal, match="is no folder"):
        check_share(Share("none", "x"), tmp_path)


def test_the_tpm_keeps_its_state_to_itself(tmp_path: Path) -> None:
    folder = tmp_path / "tpm" / "a"
    for _ in range(2):
        create_tpm_folder(folder)

    assert folder.stat().st_mode & 0o777 == 0o700
    with pytest.raises(Terminal, match="cannot keep"):
        create_tpm_folder(tmp_path / "tpm" / "a" / "b" / "c" / ("x" * 300))


def test_swtpm_cannot_have_commas() -> None:
    swtpm, listener = Path("/swtpm"), Listener(Path("/run/tpm"), 5)
    assert tpm_helper(swtpm, Path("/a"), listener, Path("/l")).pass_fds == (5,)
    with pytest.raises(Terminal, match="comma"):
        tpm_helper(swtpm, Path("/a,b"), listener, Path("/l"))


def test_networks_of_the_host_must_be_there(tmp_path: Path) -> None:
    (tmp_path / "class/net/br0/bridge").mkdir(parents=True)
    (tmp_path / "class/net/tap0").mkdir()
    rules = tmp_path / "bridge.conf"
    bridge, tap = Network(NetworkType.BRIDGE, bridge="br0"), Network(NetworkType.TAP, tap="tap0")
    vm = evolve(make_vm("a"), networks=(Network(), bridge, tap))

    with pytest.raises(Terminal, match=r"networks\[1\]: there is no .*bridge\.conf"):
        check_networks(vm, tmp_path, (rules,))
    rules.write_text("allow br0\n")
    check_networks(vm, tmp_path, (rules,))
    for wrong, what in (
        (evolve(bridge, bridge="tap0"), "no bridge tap0"),
        (evolve(tap, tap="x"), "no interface x"),
    ):
        with pytest.raises(Terminal, match=what):
            check_networks(evolve(vm, networks=(wrong,)), tmp_path, (rules,))
