"""Anybody may make things where guests' frames lie, and knows their names beforehand."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import evolve

from arcsup.model import LookingGlass
from arcsup.vm.shared_memory import (
    create_shared_memory,
    find_shared_memory,
    remove_shared_memory,
)
from tests.security.other_user import LOCAL_USER, act_as, needs_root
from tests.vm_samples import make_vm

pytestmark = needs_root

VM = evolve(make_vm("a"), looking_glass=LookingGlass(320, 240))


@pytest.fixture
def shm() -> Iterator[Path]:
    """Return a folder as /dev/shm is: anybody makes files there, and removes none of others."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        Path(folder).chmod(0o1777)
        yield Path(folder)


def test_a_folder_of_another_user_keeps_no_frames_away(shm: Path) -> None:
    frames = shm / f"kvmfr-{VM.uuid}"
    act_as(LOCAL_USER, frames.mkdir)
    act_as(LOCAL_USER, (frames / "full").touch)
    pieces = find_shared_memory(VM, lambda _: False, folder=shm, dev=shm)

    assert remove_shared_memory(VM, shm) == (
        f"{frames}: it is no file, somebody else has put it there",
    )
    create_shared_memory(pieces, None)

    assert (frames.stat().st_uid, frames.stat().st_mode & 0o777) == (0, 0o600)
    assert remove_shared_memory(VM, shm) == ()
    assert not frames.exists()


def test_a_file_of_another_user_gets_no_frames(shm: Path) -> None:
    frames = shm / f"kvmfr-{VM.uuid}"
    act_as(LOCAL_USER, frames.touch)
    pieces = find_shared_memory(VM, lambda _: False, folder=shm, dev=shm)
    create_shared_memory(pieces, None)

    assert frames.stat().st_uid == 0
    with pytest.raises(PermissionError):
        act_as(LOCAL_USER, frames.unlink)
