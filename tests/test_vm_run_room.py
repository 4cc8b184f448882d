"""A runtime directory that fills up is told, and who has filled it."""

import os
from pathlib import Path

import pytest

from arcsup.model import VmName
from arcsup.vm.run_room import tell_lack_of_room
from tests.small_host import places_in

NAMES = (VmName("one"), VmName("two"))


def fill(monkeypatch: pytest.MonkeyPatch, available: int) -> None:
    """Say that so many of 1000 blocks of 4 KiB are left."""
    room = os.statvfs_result((4096, 4096, 1000, available, available, 10, 10, 10, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _: room)


def test_room_enough_is_not_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(monkeypatch, 50)
    assert list(tell_lack_of_room(places_in(tmp_path), NAMES)) == []


def test_a_qemu_that_has_filled_the_runtime_directory_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = places_in(tmp_path)
    for name, size in zip(NAMES, (100, 3 << 20), strict=True):
        places.qemu_run_of(name).mkdir(parents=True)
        (places.qemu_run_of(name) / "junk").write_bytes(bytes(size))
    fill(monkeypatch, 49)

    (told,) = tell_lack_of_room(places, NAMES)

    assert told.startswith(f"{places.run} is nearly full (0 MiB left): no VM can be started; ")
    assert "QEMU of VM two has 3 MiB there" in told
    assert "VM one" not in told
