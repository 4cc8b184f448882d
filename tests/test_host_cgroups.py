"""Control groups as folders: made, filled, asked and removed; refused where they cannot be."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from arcsup.errors import Transient
from arcsup.host.cgroups import (
    Folders,
    Limits,
    end_and_remove_group,
    end_group,
    find_group,
    find_missing_controllers,
    has_hit_limit,
    prepare_folders,
)

LIMITS = Limits(3 * 2**30, 1028)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Return a hierarchy with a group that was given to the daemon."""
    for folder in (tmp_path, tmp_path / "given"):
        folder.mkdir(exist_ok=True)
        (folder / "cgroup.controllers").write_text("cpu io memory pids\n")
    (tmp_path / "given" / "cgroup.type").write_text("domain\n")
    return tmp_path


def test_the_group_of_a_process_is_that_of_the_second_version(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7/cgroup").write_text("8:pids:/\n4:memory:/docker/1\n0::/machine.slice/a.scope\n")
    assert find_group("7", tmp_path) == "/machine.slice/a.scope"
    (tmp_path / "7/cgroup").write_text("8:pids:/\n")
    assert find_group("7", tmp_path) is None
    assert find_group("8", tmp_path) is None


def test_below_the_root_the_daemon_stays_where_it_is(tree: Path) -> None:
    assert prepare_folders("/", tree) == Folders("/arcsup", tree)
    assert not (tree / "arcsup/daemon").exists()
    for folder in (tree, tree / "arcsup"):
        assert (folder / "cgroup.subtree_control").read_text() == "+memory +pids\n"


def test_in_a_group_of_its_own_the_daemon_makes_room(tree: Path) -> None:
    (tree / "given/arcsup/vm-forgotten-1").mkdir(parents=True)
    (tree / "given/arcsup/vm-in-use-2/full").mkdir(parents=True)

    assert prepare_folders("/given", tree) == Folders("/given/arcsup", tree)

    assert (tree / "given/arcsup/daemon/cgroup.procs").read_text() == f"{os.getpid()}\n"
    left = sorted(path.name for path in (tree / "given/arcsup").glob("vm-*"))
    assert left == ["vm-in-use-2"]


def test_a_group_that_others_are_in_too_is_left_as_it_was(tree: Path) -> None:
    # The kernel says EBUSY; a folder in the way is as good a reason.
    (tree / "given/cgroup.subtree_control").mkdir()

    with pytest.raises(Transient, match=r"given/cgroup\.subtree_control"):
        prepare_folders("/given", tree)

    assert (tree / "given/cgroup.procs").read_text() == f"{os.getpid()}\n"


def test_without_the_controllers_there_are_no_limits(tree: Path) -> None:
    (tree / "cgroup.controllers").write_text("cpu hugetlb\n")
    assert find_missing_controllers("/", tree) == {"memory", "pids"}
    with pytest.raises(Transient, match="no controller for memory and pids"):
        prepare_folders("/", tree)
    assert find_missing_controllers("/nowhere", tree) == {"memory", "pids"}


async def test_programs_are_limited_together(tree: Path) -> None:
    folders = Folders("/arcsup", tree)
    (tree / "arcsup").mkdir()

    assert await folders.enclose("web", [41, 42], LIMITS) == "/arcsup/vm-web-41"
    assert await folders.enclose("web", [41, 42], Limits(None, 5)) == "/arcsup/vm-web-41"

    group = tree / "arcsup/vm-web-41"
    assert (group / "memory.max").read_text() == "max\n"
    assert (group / "pids.max").read_text() == "5\n"
    assert (group / "cgroup.procs").read_text() == "42\n"  # The kernel keeps both.


async def test_what_cannot_be_made_is_told(tree: Path) -> None:
    with pytest.raises(Transient, match=r"nowhere/vm-web-41: No such file"):
        await Folders("/nowhere", tree).enclose("web", [41], LIMITS)


@pytest.mark.parametrize(
    ("events", "hit"),
    [
        ("low 0\nhigh 0\nmax 77\noom 1\noom_kill 1\noom_group_kill 0\n", True),
        ("low 0\nhigh 0\nmax 77\noom 0\noom_kill 0\n", False),
        ("low 0\nhigh 0\nmax 0\noom 0\noom_kill 1\n", False),  # For want of memory of the host.
        ("", False),
    ],
)
def test_the_groups_own_limit_is_told_from_the_hosts(tree: Path, events: str, *, hit: bool) -> None:
    (tree / "given/memory.events").write_text(events)
    assert has_hit_limit("/given", tree) is hit


def test_of_a_group_that_is_gone_nothing_is_known(tree: Path) -> None:
    assert not has_hit_limit("/gone", tree)


async def test_only_our_own_groups_are_removed_and_only_empty_ones(tree: Path) -> None:
    for name in ("vm-a-1", "vm-b-2", "arcsup-c-3.scope"):
        (tree / name).mkdir()
    (tree / "vm-b-2/full").mkdir()
    for name in ("vm-a-1", "vm-b-2", "arcsup-c-3.scope", "vm-gone-4"):
        await end_and_remove_group(f"/{name}", tree)
    assert not (tree / "vm-a-1").exists()
    assert (tree / "vm-b-2").exists()
    assert (tree / "arcsup-c-3.scope").exists()


def test_whatever_is_left_in_a_group_is_killed(tree: Path) -> None:
    group = tree / "vm-a-1"
    group.mkdir()
    with subprocess.Popen(["sleep", "60"]) as left:
        (group / "cgroup.procs").write_text(f"{left.pid}\n")

        assert end_group("/vm-a-1", tree)

        assert left.wait(30) == -signal.SIGKILL
    # It has gone in the meantime, and nobody has waited for the kernel to say so.
    assert end_group("/vm-a-1", tree)


def test_the_kernel_kills_a_group_at_once_where_it_can(tree: Path) -> None:
    group = tree / "vm-a-1"
    group.mkdir()
    (group / "cgroup.procs").write_text(f"{os.getpid()}\n")
    (group / "cgroup.kill").touch()

    assert end_group("/vm-a-1", tree)

    assert (group / "cgroup.kill").read_text() == "1\n"
    (group / "cgroup.procs").write_text("")
    assert not end_group("/vm-a-1", tree)
    assert not end_group("/gone", tree)
