"""Capabilities: asked once per binary, and whatever is no QEMU says so in one line."""

from pathlib import Path

import pytest
from attrs import evolve

from arcsup.errors import Terminal
from arcsup.model import QemuOptions
from arcsup.vm import capabilities
from arcsup.vm.capabilities import find_qemu, probe_capabilities
from tests.vm_samples import QEMU_VERSIONS, capabilities_of, make_vm

FAKE = """#!/bin/sh
echo "$@" >> {log}
case "$1" in
-help) printf 'QEMU emulator version 9.1.2 (a distribution)\\n-sandbox on\\n-netdev user,id=x\\n' ;;
-device) echo 'name "VGA", bus PCI'; echo 'name "never-asked-for"' ;;
-object) echo '  rng-builtin' ;;
-audiodev) echo spice ;;
esac
"""


def make_program(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


async def test_a_binary_is_asked_once_and_again_when_it_changes(tmp_path: Path) -> None:
    log = tmp_path / "log"
    binary = make_program(tmp_path / "qemu", FAKE.format(log=log))

    first = await probe_capabilities(binary, tmp_path / "cache")
    asked = len(log.read_text().splitlines())
    again = await probe_capabilities(binary, tmp_path / "cache")

    assert first == again
    assert first.version == (9, 1, 2)
    assert first.devices == {"VGA"}
    assert first.netdevs == {"user"}
    assert first.spice
    assert len(log.read_text().splitlines()) == asked == 5

    make_program(binary, FAKE.format(log=log).replace("9.1.2", "9.1.30"))

    assert (await probe_capabilities(binary, tmp_path / "cache")).version == (9, 1, 30)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"binary": 1}', '{"other": "arcsup"}'])
async def test_a_damaged_cache_is_asked_anew(tmp_path: Path, content: str) -> None:
    binary = make_program(tmp_path / "qemu", FAKE.format(log=tmp_path / "log"))
    answer = await probe_capabilities(binary, tmp_path / "cache")
    (file,) = (tmp_path / "cache").iterdir()
    file.write_text(content)

    assert await probe_capabilities(binary, tmp_path / "cache") == answer


async def test_a_cache_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    binary = make_program(tmp_path / "qemu", FAKE.format(log=tmp_path / "log"))
    (tmp_path / "cache").write_text("a file in the way")

    assert (await probe_capabilities(binary, tmp_path / "cache")).version == (9, 1, 2)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("#!/bin/sh\necho hello\n", "does not say that it is a QEMU"),
        ("#!/bin/sh\necho broken library >&2; exit 127\n", "ended with 127: broken library"),
        ("#!/nowhere/sh\n", "cannot be run"),
        ("no program at all", "cannot be run"),
    ],
)
async def test_what_is_no_qemu_is_named_in_one_line(tmp_path: Path, text: str, what: str) -> None:
    binary = make_program(tmp_path / "qemu", text)

    with pytest.raises(Terminal, match=what) as caught:
        await probe_capabilities(binary, tmp_path / "cache")
    assert caught.value.hint


async def test_a_missing_binary_names_the_package(tmp_path: Path) -> None:
    with pytest.raises(Terminal, match="No such file") as caught:
        await probe_capabilities(tmp_path / "none", tmp_path / "cache")
    assert "qemu-system-x86" in caught.value.hint


@pytest.mark.parametrize("version", QEMU_VERSIONS)
def test_every_served_qemu_has_what_a_vm_needs(version: str) -> None:
    known = capabilities_of(version)

    assert known.version_text.startswith(version)
    assert {"pvpanic-pci", "VGA", "vhost-user-fs-pci", "tpm-crb"} <= known.devices
    assert {"bridge", "tap", "user"} <= known.netdevs
    assert "sandbox" in known.options


def test_the_files_own_binary_wins(tmp_path: Path) -> None:
    binary = make_program(tmp_path / "qemu", "")
    vm = evolve(make_vm("a"), qemu=QemuOptions(binary=str(binary)))

    assert find_qemu(vm) == binary


@pytest.mark.parametrize("binary", ["qemu", "/nowhere/qemu", "/tmp"])
def test_a_binary_that_cannot_be_run_is_refused(binary: str) -> None:
    with pytest.raises(Terminal, match=r"qemu\.binary"):
        find_qemu(evolve(make_vm("a"), qemu=QemuOptions(binary=binary)))


def test_without_any_qemu_the_package_is_named() -> None:
    with pytest.raises(Terminal, match="no QEMU") as caught:
        find_qemu(make_vm("a"), candidates=(Path("/nowhere"),))
    assert caught.value.hint == capabilities.INSTALL_HINT
