"""Overlays for one run: made by a daemon that may be root, and opens nothing a guest named."""

import json
import os
import struct
import subprocess
from pathlib import Path

import pytest
from attrs import evolve

from arcsup.errors import Terminal
from arcsup.model import Disk, DiskFormat
from arcsup.places import Places
from arcsup.vm.ephemeral import create_overlays
from tests.vm_samples import make_vm


def places_of(top: Path) -> Places:
    folders = {name: top / name for name in ("vms", "run", "state", "log")}
    return Places(config=top / "arcsup.yaml", sysfs=Path("/sys"), system=True, **folders)


async def make_overlay(top: Path, image: Path, image_format: DiskFormat) -> dict[str, object]:
    """Make one, and return what qemu-img tells of it without looking at its base."""
    disk = Disk(path=str(image), format=image_format, ephemeral=True)
    vm = evolve(make_vm("one"), disks=(disk,))
    places = places_of(top)
    await create_overlays(vm, places)
    argv = ["qemu-img", "info", "--output=json", str(places.overlays_of(vm.name) / "disk0.qcow2")]
    shown: dict[str, object] = json.loads(
        subprocess.run(argv, check=True, capture_output=True).stdout
    )
    return shown


async def test_an_overlay_is_made_without_opening_what_its_base_names(tmp_path: Path) -> None:
    image = tmp_path / "base.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "3M"], check=True)
    name = os.fsencode(tmp_path / "of-the-host")
    with image.open("r+b") as stream:
        stream.seek(4096)
        stream.write(name)
        stream.seek(8)
        stream.write(struct.pack(">QI", 4096, len(name)))

    shown = await make_overlay(tmp_path, image, DiskFormat.QCOW2)

    assert shown["virtual-size"] == 3 << 20
    assert shown["backing-filename"] == str(image)
    assert shown["backing-filename-format"] == "qcow2"


async def test_the_overlay_of_a_raw_image_has_whole_sectors(tmp_path: Path) -> None:
    image = tmp_path / "base.raw"
    image.write_bytes(bytes(1000))

    assert (await make_overlay(tmp_path, image, DiskFormat.RAW))["virtual-size"] == 1024


async def test_a_base_that_is_no_qcow2_image_has_no_size(tmp_path: Path) -> None:
    image = tmp_path / "base.qcow2"
    image.write_bytes(bytes(1000))

    with pytest.raises(Terminal, match="is no qcow2 image"):
        await make_overlay(tmp_path, image, DiskFormat.QCOW2)
