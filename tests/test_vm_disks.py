"""Disks are made when missing, checked when there, and never overwritten. The qemu-img is real."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from attrs import evolve

from arcsup.errors import Terminal, Transient
from arcsup.model import Argv, Boot, Disk, DiskFormat, MiB, Vm
from arcsup.vm import disks, empty_image
from arcsup.vm.disks import check_files, create_missing_disks, find_medium
from arcsup.vm.empty_image import make_empty_image
from tests.vm_samples import make_vm

needs_qemu_img = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="needs qemu-img")


def vm_with(*wanted: Disk) -> Vm:
    return evolve(make_vm("a"), disks=wanted)


def image_info(path: Path) -> str:
    argv = ["qemu-img", "info", "--output=json", str(path)]
    return subprocess.check_output(argv, text=True)


@needs_qemu_img
async def test_a_missing_disk_is_made_with_its_size(tmp_path: Path) -> None:
    await create_missing_disks(vm_with(Disk("sub/a,b.qcow2", MiB(100))), tmp_path / "images")

    made = tmp_path / "images" / "sub" / "a,b.qcow2"
    assert f'"virtual-size": {100 * 2**20}' in image_info(made)
    assert made.stat().st_mode & 0o777 == 0o600
    assert list(made.parent.iterdir()) == [made]


@needs_qemu_img
async def test_an_overlay_names_its_base_and_its_format(tmp_path: Path) -> None:
    (tmp_path / "base.img").write_bytes(bytes(2**20))
    await create_missing_disks(vm_with(Disk("top.qcow2", base="base.img")), tmp_path)
    await create_missing_disks(vm_with(Disk("next.qcow2", base="top.qcow2")), tmp_path)

    assert f'"backing-filename": "{tmp_path / "base.img"}"' in image_info(tmp_path / "top.qcow2")
    assert '"backing-filename-format": "raw"' in image_info(tmp_path / "top.qcow2")
    assert '"backing-filename-format": "qcow2"' in image_info(tmp_path / "next.qcow2")


@needs_qemu_img
async def test_two_creators_make_one_disk(tmp_path: Path) -> None:
    vm = vm_with(Disk("a.qcow2", MiB(10)))
    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(create_missing_disks, vm, tmp_path)

    assert os.listdir(tmp_path) == ["a.qcow2"]


@needs_qemu_img
async def test_a_disk_that_appears_meanwhile_is_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = b"QFI\xfb of somebody else"

    async def run_slowly(command: Callable[[str], Argv], what: str, account: None) -> bytes:
        (tmp_path / "a.qcow2").write_bytes(theirs)
        return await make_empty_image(command, what, account)

    monkeypatch.setattr(disks, "make_empty_image", run_slowly)
    await create_missing_disks(vm_with(Disk("a.qcow2", MiB(10))), tmp_path)

    assert (tmp_path / "a.qcow2").read_bytes() == theirs
    assert os.listdir(tmp_path) == ["a.qcow2"]


@needs_qemu_img
async def test_what_a_crash_left_behind_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".a[1].qcow2.xyz.part").write_bytes(b"half done")
    (tmp_path / ".a1.qcow2.xyz.part").write_bytes(b"another disk's")
    await create_missing_disks(vm_with(Disk("a[1].qcow2", MiB(10))), tmp_path)

    assert sorted(os.listdir(tmp_path)) == [".a1.qcow2.xyz.part", "a[1].qcow2"]


async def test_a_disk_that_is_there_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "a.raw").write_bytes(b"precious")
    await create_missing_disks(
        vm_with(Disk("a.raw", MiB(10), format=DiskFormat.RAW, base="none")), tmp_path
    )

    assert (tmp_path / "a.raw").read_bytes() == b"precious"


@pytest.mark.parametrize(
    ("disk", "what", "hint"),
    [
        (Disk("none"), "does not exist", "size"),
        (Disk("none", MiB(1), readonly=True), "does not exist", "read-only"),
        (Disk("none", base="no-base"), r"its base .*No such file", "base"),
        (Disk("none", base="fifo"), r"its base .*is a FIFO", "base"),
        (Disk("none", MiB(1), format=DiskFormat.RAW, base="raw"), "only qcow2", "qcow2"),
        (Disk("raw"), "is no qcow2 image", "format: raw"),
        (Disk("qcow2", format=DiskFormat.RAW), "is qcow2", "format: qcow2"),
        (Disk("folder"), "is no file", "path"),
        (Disk("fifo"), "is no file", "path"),
        (Disk("raw/x"), "not a directory", "path"),
        (Disk("dangling", MiB(1)), "no such file", "mode"),
        (Disk("/nowhere/a", MiB(1)), "cannot be made", "folder"),
        (Disk("x" * 300, MiB(1)), "name too long", ""),
    ],
)
async def test_what_cannot_be_used_is_named(
    tmp_path: Path, disk: Disk, what: str, hint: str
) -> None:
    (tmp_path / "raw").write_bytes(bytes(1024))
    (tmp_path / "qcow2").write_bytes(b"QFI\xfb" + bytes(1020))
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "dangling").symlink_to("nowhere")

    with pytest.raises(Terminal, match=f"(?i){what}") as caught:
        await create_missing_disks(vm_with(disk), tmp_path)
    assert caught.value.message.startswith("disks[0]: ")
    assert hint in caught.value.hint


def fake_qemu_img(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "qemu-img").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "qemu-img").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


async def test_qemu_img_is_quoted_when_it_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_qemu_img(tmp_path, monkeypatch, "echo 'qemu-img: the disk is full' >&2; exit 1")
    with pytest.raises(Terminal, match="cannot be made: qemu-img: the disk is full"):
        await create_missing_disks(vm_with(Disk("a", MiB(1))), tmp_path / "images")
    assert os.listdir(tmp_path / "images") == []


async def test_a_hanging_qemu_img_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(empty_image, "SECONDS_TO_CREATE", 0.2)
    fake_qemu_img(tmp_path, monkeypatch, "trap '' TERM; exec sleep 600")
    with trio.fail_after(10), pytest.raises(Transient, match="did not finish"):
        await create_missing_disks(vm_with(Disk("a", MiB(1))), tmp_path / "images")
    assert os.listdir(tmp_path / "images") == []


def test_missing_media_and_boot_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "there").touch()
    vm = evolve(make_vm("a"), cdroms=("there",), boot=Boot("there", "there"))
    check_files(vm, tmp_path)

    for wrong, what in (
        (evolve(vm, cdroms=("there", "none")), r"cdroms\[1\]"),
        (evolve(vm, boot=Boot("none")), r"boot\.kernel"),
        (evolve(vm, boot=Boot("there", "none")), r"boot\.initrd"),
    ):
        with pytest.raises(Terminal, match=rf"{what}: .*No such file"):
            check_files(wrong, tmp_path)


def test_nobody_waits_for_media_and_boot_files_that_are_pipes(tmp_path: Path) -> None:
    (tmp_path / "there").touch()
    os.mkfifo(tmp_path / "fifo")
    vm = make_vm("a")

    for wrong, what in (
        (evolve(vm, cdroms=("fifo",)), r"cdroms\[0\]: .* a file or a block device"),
        (evolve(vm, boot=Boot("fifo")), r"boot\.kernel: .* a regular file"),
        (evolve(vm, boot=Boot("there", "fifo")), r"boot\.initrd: .* a regular file"),
    ):
        with pytest.raises(Terminal, match=what) as caught:
            check_files(wrong, tmp_path)
        assert "is a FIFO" in caught.value.message


def test_a_missing_guest_tools_iso_is_made_by_a_verb(tmp_path: Path) -> None:
    with pytest.raises(Terminal) as caught:
        check_files(evolve(make_vm("a"), cdroms=("guest-tools.iso",)), tmp_path)
    assert caught.value.hint == "`arcsup guest-tools build` makes it"


def test_a_block_device_is_not_taken_for_a_file(tmp_path: Path) -> None:
    devices = [path for path in Path("/dev").iterdir() if path.is_block_device()]
    for device in devices[:1]:
        assert find_medium(str(device), tmp_path).block_device
    assert not find_medium("missing", tmp_path).block_device
