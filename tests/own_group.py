"""A control group of a test's own, in the kernel's hierarchy of the second version."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from arcsup.host.cgroups import find_group
from arcsup.host.loopback import find_obstacle


def find_tree() -> Path | None:
    """Return where the hierarchy is mounted; beside those of the first version it is elsewhere."""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, place, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(place)
    return None


needs_filter = pytest.mark.skipif(
    find_tree() is None or bool(find_obstacle()),
    reason="no control groups of the second version, or no right to filter what they do",
)


@contextmanager
def own_group() -> Iterator[Path]:
    """Yield the folder of a new group; nothing that was started in it may be left in the end.

    This process is put back to where it was.
    """
    tree = find_tree()
    assert tree is not None
    before = find_group()
    assert before is not None
    folder = tree / f"arcsup-test-{os.getpid()}"
    folder.mkdir()
    try:
        yield folder
    finally:
        move(os.getpid(), tree / before.lstrip("/"))
        folder.rmdir()


def move(pid: int, folder: Path) -> None:
    """Put a process into a group."""
    (folder / "cgroup.procs").write_text(f"{pid}\n")


def errno_in(folder: Path, do: Callable[[], object]) -> int:
    """Return with which error number a child in the group fails to do something; 0 if it can."""
    pid = os.fork()
    if pid == 0:
        code = 255
        try:
            move(os.getpid(), folder)
            do()
            code = 0
        except OSError as error:
            code = error.errno or 255
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
