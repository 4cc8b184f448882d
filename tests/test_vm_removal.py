"""What a VM's programs left behind is removed, however it was made."""

import os
from pathlib import Path

import pytest

from arcsup.errors import Transient
from arcsup.vm.removal import remove_trees


def nest(folder: Path, depth: int) -> None:
    """Make folders in folders, deeper than a path can say."""
    folder.mkdir()
    at = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=at)
        below = os.open("d", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(at)


async def test_no_depth_keeps_a_folder_from_being_removed(tmp_path: Path) -> None:
    nest(tmp_path / "one", 5000)
    (tmp_path / "two").mkdir()

    await remove_trees(tmp_path / "one", tmp_path / "two", tmp_path / "never-was")

    assert list(tmp_path.iterdir()) == []


async def test_links_lead_nowhere_and_names_are_no_options(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").touch()
    folder = tmp_path / "-i"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path / "kept")
    (tmp_path / "link").symlink_to(tmp_path / "kept")

    await remove_trees(folder, tmp_path / "link")

    assert [path.name for path in tmp_path.rglob("*")] == ["kept", "file"]


async def test_what_stays_is_said() -> None:
    with pytest.raises(Transient, match="/proc/self/attr cannot be removed: "):
        await remove_trees(Path("/proc/self/attr"))
