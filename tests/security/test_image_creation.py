"""A member of the control socket's group, and the owner of a folder in imageDirs, against root.

Both choose where images are made; neither may have root make or overwrite anything elsewhere.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from attrs import evolve

from arcsup.errors import Terminal
from arcsup.host.accounts import Account
from arcsup.model import Disk, DiskFormat, MiB, Vm
from arcsup.spec.native import load_vm
from arcsup.vm import empty_image
from arcsup.vm.disks import check_paths, create_missing_disks
from arcsup.vm.image_files import part_of, publish
from arcsup.vm.image_tool import run_image_tool
from arcsup.vm.reach import Bounds
from tests.qemu.daemon import TINY, Daemon, running_daemon
from tests.security.other_user import LOCAL_USER, QEMU_USER, act_as, needs_root
from tests.vm_samples import make_vm

pytestmark = needs_root

needs_qemu_img = pytest.mark.skipif(not shutil.which("qemu-img"), reason="needs qemu-img")


def vm_with(disk: Disk) -> Vm:
    return evolve(make_vm("a"), disks=(disk,))


@pytest.fixture
def daemon(short_dir: Path) -> Iterator[Daemon]:
    with running_daemon(short_dir) as running:
        yield running


@pytest.fixture
def bounds(short_dir: Path) -> Bounds:
    """Return what a VM may name where images are in ``short_dir``/images."""
    (short_dir / "images").mkdir(mode=0o711)
    return Bounds(Account(QEMU_USER, QEMU_USER, ()), (short_dir / "images",))


@pytest.mark.parametrize(
    "disk",
    [
        "{path: 'VICTIM/conf.d/made.cfg', format: raw, size: 1MiB}",
        "{path: 'VICTIM/conf.d/made.cfg', base: 'BASE'}",
        "{path: '../../victim/new/folder/made', format: raw, size: 1MiB}",
        "{path: 'link/made', format: raw, size: 1MiB}",
        "{path: 'VICTIM/conf.d/made.cfg', format: raw, size: 1MiB, ephemeral: true}",
    ],
)
def test_no_image_is_made_outside_of_the_folders_for_images(daemon: Daemon, disk: str) -> None:
    victim = daemon.top / "victim"
    (victim / "conf.d").mkdir(parents=True)
    images = daemon.state / "images"
    images.mkdir(exist_ok=True)
    (images / "link").symlink_to(victim)
    # Only root's own links are followed.
    os.chown(images / "link", LOCAL_USER, LOCAL_USER, follow_symlinks=False)
    base = daemon.top / "x;id>" / "base.raw"
    base.parent.mkdir()
    base.write_bytes(b"\0" * 1048576)
    before = sorted(daemon.top.glob("victim/**/*"))
    told = disk.replace("VICTIM", str(victim)).replace("BASE", str(base))
    source = f"{TINY}name: evil\ndisks: [{told}]\n"

    daemon.client.post("/v1/vms", {"file": "/nowhere/evil.yaml", "source": source})

    daemon.wait_for("evil", "failed")
    assert sorted(daemon.top.glob("victim/**/*")) == before


@pytest.mark.parametrize("name", ["there", "missing"])
def test_a_refusal_tells_nothing_of_a_folder_that_only_root_may_read(
    short_dir: Path, bounds: Bounds, name: str
) -> None:
    secret = short_dir / "secret"
    secret.mkdir(mode=0o700)
    (secret / "there").touch()
    readonly = Disk(str(secret / name), None, DiskFormat.RAW, readonly=True)
    refusals = set()
    for disk in (Disk(str(secret / name), MiB(1)), readonly):
        with pytest.raises(Terminal) as refused:
            check_paths(vm_with(disk), bounds.allowed[0], bounds)
        refusals.add(refused.value.message.replace(name, "NAME"))
    assert refusals == {
        f"disks[0]: {secret}/NAME is outside of the folders for images",
        f"disks[0]: QEMU runs as user {QEMU_USER}, who cannot pass through {secret}",
    }


@needs_qemu_img
async def test_a_link_in_place_of_the_unfinished_image_overwrites_nothing(
    short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = short_dir / "home"
    home.mkdir(mode=0o755)
    shutil.chown(home, LOCAL_USER, LOCAL_USER)
    victim = short_dir / "passwd"
    victim.write_text("root:x:0:0\n")
    (short_dir / "images").mkdir(mode=0o711)
    bounds = Bounds(Account(QEMU_USER, QEMU_USER, ()), (short_dir / "images", home))

    def exchange() -> None:
        (part,) = home.glob(".*.part")
        part.unlink()
        part.symlink_to(victim)

    async def exchange_first(
        arguments: Sequence[str],
        *,
        account: Account,
        pass_fds: Sequence[int],
        seconds: float,
        largest: int,
    ) -> CompletedProcess[bytes]:
        act_as(LOCAL_USER, exchange)
        return await run_image_tool(
            arguments, account=account, pass_fds=pass_fds, seconds=seconds, largest=largest
        )

    monkeypatch.setattr(empty_image, "run_image_tool", exchange_first)
    disk = Disk(str(home / "new"), MiB(1))
    with pytest.raises(Terminal):
        await create_missing_disks(vm_with(disk), bounds.allowed[0], bounds)

    assert victim.read_text() == "root:x:0:0\n"
    assert not (home / "new").exists()


def test_a_finished_image_gets_its_name_though_its_part_was_exchanged(short_dir: Path) -> None:
    with part_of(short_dir / "image") as part:
        part.write(b"ours")
        part.flush()
        Path(part.name).rename(short_dir / "kept")
        Path(part.name).write_bytes(b"theirs")

        assert publish(part, short_dir / "image")

    assert (short_dir / "image").read_bytes() == b"ours"


@needs_qemu_img
async def test_an_image_in_bounds_is_made_with_its_folders_by_the_vms_user(
    short_dir: Path, bounds: Bounds
) -> None:
    disk = Disk("some/folder/new.qcow2", MiB(64))

    await create_missing_disks(vm_with(disk), bounds.allowed[0], bounds)

    made = bounds.allowed[0] / "some/folder/new.qcow2"
    assert made.read_bytes()[:4] == b"QFI\xfb"
    assert (made.stat().st_uid, made.stat().st_mode & 0o777) == (0, 0o600)
    assert made.parent.stat().st_mode & 0o777 == 0o711


@needs_qemu_img
async def test_an_image_that_qemus_user_changed_while_it_was_made_is_no_image(
    short_dir: Path, bounds: Bounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Path(short_dir / "theirs.qcow2")
    options = ["-u", "-b", "/etc/shadow", "-F", "raw"]
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *options, made, "1M"], check=True)

    async def write_other_header(
        arguments: Sequence[str],
        *,
        account: Account,
        pass_fds: Sequence[int],
        seconds: float,
        largest: int,
    ) -> CompletedProcess[bytes]:
        done = await run_image_tool(
            arguments, account=account, pass_fds=pass_fds, seconds=seconds, largest=largest
        )
        os.pwrite(pass_fds[0], made.read_bytes(), 0)
        return done

    monkeypatch.setattr(empty_image, "run_image_tool", write_other_header)
    with pytest.raises(Terminal, match="is not as it was asked for"):
        await create_missing_disks(vm_with(Disk("new.qcow2", MiB(1))), bounds.allowed[0], bounds)

    assert not list(bounds.allowed[0].iterdir())


@pytest.mark.parametrize(
    "text",
    [
        "display: {type: vnc, listen: 127.0.0.1, port: 5999, passwordFile: 'PATH'}",
        "shares: [{path: 'PATH', tag: x}]",
        "cdroms: ['PATH']",
        "boot: {kernel: 'PATH'}",
    ],
)
def test_no_key_tells_what_is_in_a_folder_that_only_root_may_read(
    short_dir: Path, bounds: Bounds, text: str
) -> None:
    secret = short_dir / "secret"
    secret.mkdir(mode=0o700)
    (secret / "there").touch()
    (secret / "below").mkdir()
    refusals = set()
    for name in ("there", "below", "missing"):
        source = f"{TINY}{text.replace('PATH', str(secret / name))}\n"
        vm = load_vm(source, short_dir / "a.yaml", "0")
        with pytest.raises(Terminal) as refused:
            check_paths(vm, bounds.allowed[0], bounds)
        refusals.add(refused.value.message.replace(name, "NAME"))
    assert len(refusals) == 1


def test_a_link_of_the_folders_owner_is_not_followed(short_dir: Path) -> None:
    home = short_dir / "home"
    home.mkdir(mode=0o755)
    (short_dir / "images").mkdir(mode=0o711)
    (home / "base").symlink_to("/etc/shadow")
    os.chown(home / "base", LOCAL_USER, LOCAL_USER, follow_symlinks=False)
    bounds = Bounds(Account(QEMU_USER, QEMU_USER, ()), (short_dir / "images", home))
    disk = Disk("new", base=str(home / "base"))

    with pytest.raises(Terminal, match="is a link that leads elsewhere"):
        check_paths(vm_with(disk), bounds.allowed[0], bounds)


@needs_qemu_img
@pytest.mark.parametrize(
    "refused",
    [
        "cdroms: [missing.iso]",
        "disks: [{path: one.qcow2, size: 1MiB}, {path: missing.qcow2}]",
        "shares: [{path: '.', tag: all}]",
        "disks: [{path: one.qcow2, size: 1MiB}, {path: two.raw, format: raw, base: b}]",
    ],
)
def test_nothing_stays_of_images_that_were_made_for_a_vm_that_is_refused(
    daemon: Daemon, refused: str
) -> None:
    images = daemon.state / "images"
    images.mkdir(mode=0o711, exist_ok=True)
    (images / "b").write_bytes(bytes(512))
    more = "" if "disks" in refused else "disks: [{path: one.qcow2, size: 1MiB}]\n"

    daemon.drop("one", f"{TINY}{more}{refused}\n")

    daemon.wait_for("one", "failed", "invalid")
    assert [path.name for path in images.rglob("*") if path.is_file()] == ["b"]
