"""Who holds a VFIO device is seen from the processes' open files."""

import os
import shutil
from pathlib import Path

import pytest

from arcsup.host.holders import Holders, find_holders


def populate_process(proc: Path, pid: int, *targets: str) -> None:
    folder = proc / str(pid) / "fd"
    folder.mkdir(parents=True)
    for number, target in enumerate(targets):
        (folder / str(number)).symlink_to(target)


def test_groups_and_devices_are_found_by_pid(tmp_path: Path) -> None:
    populate_process(tmp_path, 10, "/dev/null", "/dev/vfio/vfio", "/dev/vfio/7")
    populate_process(tmp_path, 11, "/dev/vfio/devices/vfio0", "anon_inode:[vfio-device]")
    populate_process(tmp_path, 12, "/dev/vfio/noiommu-3", "/dev/vfio/70")
    populate_process(tmp_path, 13, "/dev/vfio/7 (deleted)", "/home/a/dev/vfio/8")
    (tmp_path / "self").mkdir()
    (tmp_path / "14").mkdir()
    holders = find_holders(tmp_path)
    assert holders.of(7, None) == (10, 13)
    assert holders.of(9, "vfio0") == (11,)
    assert holders.of(3, None) == (12,)
    assert holders.of(8, "vfio1") == holders.of(None, None) == ()
    assert holders.complete


@pytest.mark.skipif(os.geteuid() == 0, reason="root may look into every process")
def test_a_process_that_may_not_be_looked_into_leaves_doubt() -> None:
    assert not find_holders().complete


def test_what_could_not_be_read_leaves_doubt_and_hides_no_other(tmp_path: Path) -> None:
    populate_process(tmp_path, 10, "/dev/vfio/7")
    (tmp_path / "11").mkdir()
    (tmp_path / "11/fd").symlink_to("fd")  # ELOOP
    assert find_holders(tmp_path) == Holders({"7": (10,)}, unseen=(11,))

    (tmp_path / "11/fd").unlink()
    (tmp_path / "11/fd").mkdir()
    (tmp_path / "11/fd/0").write_text("no link")  # EINVAL
    assert find_holders(tmp_path) == Holders({"7": (10,)}, unseen=(11,))


def test_a_path_that_is_longer_than_any_of_vfio_leaves_no_doubt(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/10").symlink_to("/proc/self")
    deep, part = os.open(tmp_path, os.O_DIRECTORY), "d" * 250
    for _ in range(20):
        os.mkdir(part, dir_fd=deep)
        deeper = os.open(part, os.O_DIRECTORY, dir_fd=deep)
        os.close(deep)
        deep = deeper
    shutil.rmtree(tmp_path / part)  # Its descriptor still tells the path.
    with pytest.raises(OSError, match="name too long"):
        os.readlink(f"/proc/self/fd/{deep}")
    assert find_holders(tmp_path / "proc").complete
    os.close(deep)


def test_the_processes_of_this_host_are_looked_into() -> None:
    assert all(pid > 0 for pids in find_holders().by_node.values() for pid in pids)
