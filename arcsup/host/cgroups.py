"""Control groups of the kernel's second version: where programs are, and what they may take.

Source: Documentation/admin-guide/cgroup-v2.rst ("Memory Interface Files", "PID", "Delegation",
"No Internal Process Constraint"); cgroups(7) for /proc/PID/cgroup.
"""

import errno
import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import trio
from attrs import frozen

from arcsup.errors import Transient

TREE = Path("/sys/fs/cgroup")
"""Where systemd and container engines mount the one hierarchy."""

NEEDED = frozenset({"memory", "pids"})
"""The controllers that limit a VM."""

_FOLDER = "arcsup"
_DAEMON = "daemon"


@frozen
class Limits:
    """What all programs of a VM may take together.

    ``memory`` is in bytes, None for no limit; ``tasks`` counts threads.
    """

    memory: int | None
    tasks: int


class ControlGroups(Protocol):
    """A way to give each VM a control group of its own."""

    async def enclose(self, name: str, pids: Sequence[int], limits: Limits) -> str:
        """Put programs into a new group for VM ``name``; return its path in the hierarchy.

        May be done twice. The first pid is QEMU's: it makes the group one of this run alone.
        Raises Transient.
        """
        ...


@frozen
class Folders:
    """Groups that the daemon makes itself, below ``parent`` of ``tree``: without systemd."""

    parent: str
    tree: Path = TREE

    async def enclose(self, name: str, pids: Sequence[int], limits: Limits) -> str:
        """Make a folder for the programs."""
        group = f"{self.parent}/vm-{name}-{pids[0]}"
        folder = _folder_of(group, self.tree)
        try:
            folder.mkdir(exist_ok=True)
            (folder / "memory.max").write_text(f"{limits.memory or 'max'}\n")
            (folder / "pids.max").write_text(f"{limits.tasks}\n")
            for pid in pids:
                join_group(group, pid, self.tree)
        except OSError as error:
            # Still empty, or the programs that are in it stay, and it goes after them.
            with suppress(OSError):
                folder.rmdir()
            raise Transient(f"{error.filename}: {error.strerror}") from error
        return group


def find_group(process: str = "self", proc: Path = Path("/proc")) -> str | None:
    """Return the group of a process; None where the second version is not mounted."""
    try:
        lines = (proc / process / "cgroup").read_text().splitlines()
    except FileNotFoundError:
        return None
    return next((line[3:] for line in lines if line.startswith("0::")), None)


def find_missing_controllers(group: str, tree: Path = TREE) -> frozenset[str]:
    """Return which of the controllers that limit a VM cannot be used below a group."""
    try:
        there = (_folder_of(group, tree) / "cgroup.controllers").read_text().split()
    except OSError:
        return NEEDED
    return NEEDED - set(there)


def prepare_folders(group: str, tree: Path = TREE) -> Folders:
    """Make ready that groups can be made below ``group``, which is this process's own.

    A group that hands on controllers may hold no processes, unless it is the root of all: so
    this process moves a step down. Raises Transient where that cannot be.
    """
    if missing := find_missing_controllers(group, tree):
        raise Transient(f"{tree}{group} has no controller for {' and '.join(sorted(missing))}")
    own = _folder_of(group, tree)
    top = own / _FOLDER
    try:
        top.mkdir(exist_ok=True)
        # What a daemon left that died between making a folder and writing that down.
        for folder in top.glob("vm-*"):
            with suppress(OSError):  # It has programs in it.
                folder.rmdir()
        if (own / "cgroup.type").exists():
            (top / _DAEMON).mkdir(exist_ok=True)
            (top / _DAEMON / "cgroup.procs").write_text(f"{os.getpid()}\n")
        for folder in (own, top):
            (folder / "cgroup.subtree_control").write_text("+memory +pids\n")
    except OSError as error:
        # Others are in the group too: it was not given to this process.
        with suppress(OSError):
            (own / "cgroup.procs").write_text(f"{os.getpid()}\n")
            (top / _DAEMON).rmdir()
            top.rmdir()
        raise Transient(f"{error.filename}: {error.strerror}") from error
    return Folders(f"{group.rstrip('/')}/{_FOLDER}", tree)


def join_group(group: str, pid: int, tree: Path = TREE) -> None:
    """Move a process into a group. Raises OSError."""
    (_folder_of(group, tree) / "cgroup.procs").write_text(f"{pid}\n")


def has_hit_limit(group: str, tree: Path = TREE) -> bool:
    """Tell whether the kernel killed a program of a group because that was at its own limit.

    False where the group is gone already. ``oom`` counts how often the group's own limit stood in
    the way, ``oom_kill`` its programs that were killed, whoever's limit it was.
    """
    try:
        lines = (_folder_of(group, tree) / "memory.events").read_text().splitlines()
    except OSError:
        return False
    counts = dict(line.split() for line in lines)
    return counts.get("oom", "0") != "0" and counts.get("oom_kill", "0") != "0"


def end_group(group: str, tree: Path = TREE) -> bool:
    """Kill every program of a group; return whether there were any. It may be gone already.

    By ``cgroup.kill`` (since Linux 5.14); before that one by one, and those of a fork in between at
    the next look. Raises OSError.
    """
    folder = _folder_of(group, tree)
    try:
        pids = (folder / "cgroup.procs").read_text().split()
        if pids and (folder / "cgroup.kill").exists():
            (folder / "cgroup.kill").write_text("1\n")
        else:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno == errno.ENODEV:  # Removed while it was read.
            return False
        raise
    return bool(pids)


async def end_and_remove_group(group: str, tree: Path = TREE) -> None:
    """Kill what is left in a group and, where the daemon made it, remove it.

    systemd removes its own with the last program. Raises OSError.
    """
    for _ in range(_LOOKS):
        if not await trio.to_thread.run_sync(end_group, group, tree):
            break
        # Killed programs stay in it until the kernel has taken them down.
        await trio.sleep(_BETWEEN_LOOKS)
    if not group.endswith(".scope"):
        with suppress(OSError):  # It is gone, or holds what cannot be ended; then it stays.
            await trio.to_thread.run_sync(_folder_of(group, tree).rmdir)


_LOOKS = 20
_BETWEEN_LOOKS = 0.05
"""Seconds. What does not end within a second waits for the kernel; the VM's end does not."""


def _folder_of(group: str, tree: Path) -> Path:
    return tree / group.lstrip("/")
