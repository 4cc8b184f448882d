"""The lock of a VM, which its QEMU inherits, and QEMUs that no record tells of.

There are two lock files: one in the state directory, which outlives a wiped runtime directory, and
one in the VM's runtime folder. Whoever starts a QEMU or cleans up after one holds both; only their
holder may remove them. Nothing is concluded from a command line, which anybody can write: both
files are in folders that only the daemon's user can enter, so who has one open was started by it.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from arcsup.errors import Transient
from arcsup.model import VmName
from arcsup.places import Places
from arcsup.vm.process import Process, ProcessId, find_processes_holding, read_start_time

LOOK_AGAIN = 1.0
"""Seconds between two looks at a lock whose holder cannot be seen."""

# For reading: a lock is taken on a read-only file system, too (flock(2)).
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class LockHeld(Transient):
    """A QEMU that no record tells of has the VM's lock: nothing was started or cleaned."""


def lock_files(places: Places, name: VmName) -> tuple[Path, Path]:
    """Return a VM's lock files, in the order in which they are taken."""
    return places.state / "vms" / f"{name}.lock", places.run_of(name) / "lock"


@contextmanager
def vm_lock(places: Places, name: VmName) -> Iterator[tuple[int, ...]]:
    """Hold a VM's lock and yield its descriptors, for its QEMU to inherit.

    Raises LockHeld when somebody else has it, OSError where a file cannot be made.
    """
    with ExitStack() as held:
        descriptors = []
        for path in lock_files(places, name):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptors.append(_lock(path, os.O_CREAT, places, name))
            held.callback(os.close, descriptors[-1])
        yield tuple(descriptors)


@contextmanager
def hold_for_removal(places: Places, name: VmName) -> Iterator[None]:
    """Hold what there is of a VM's lock; nothing is made for it, so a full disk is no obstacle.

    Raises LockHeld when somebody else has it.
    """
    with ExitStack() as held:
        for path in lock_files(places, name):
            with suppress(FileNotFoundError):
                held.callback(os.close, _lock(path, 0, places, name))
        yield


def _lock(path: Path, create: int, places: Places, name: VmName) -> int:
    while True:
        descriptor = os.open(path, _FLAGS | create, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            holders = find_holders(places, name)
            raise LockHeld(describe_holder(holders), what_to_do(name)) from None
        if _is_at(descriptor, path):
            return descriptor
        # Its holder removed it between our opening and our locking: this lock keeps nobody out.
        os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        there = path.lstat()
    except FileNotFoundError:
        return False
    ours = os.fstat(descriptor)
    return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)


def is_held(places: Places, name: VmName) -> bool:
    """Tell whether somebody has a VM's lock; nothing is made for the look."""
    return any(map(_is_locked, lock_files(places, name)))


def _is_locked(path: Path) -> bool:
    try:
        descriptor = os.open(path, _FLAGS)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def find_holders(places: Places, name: VmName) -> tuple[int, ...]:
    """Return the pids of those that have a VM's lock open, as far as /proc lets us look."""
    pids = {pid for path in lock_files(places, name) for pid in find_processes_holding(path)}
    return tuple(sorted(pids - {os.getpid()}))


def names_held(places: Places) -> Iterator[VmName]:
    """Yield the VMs whose lock somebody has."""
    names = {path.stem for path in (places.state / "vms").glob("*.lock")}
    names |= {path.parent.name for path in places.run.glob("*/lock")}
    yield from (VmName(name) for name in sorted(names) if is_held(places, VmName(name)))


def describe_holder(pids: tuple[int, ...]) -> str:
    """Say that there is a QEMU without a record."""
    who = f"QEMU {', '.join(map(str, pids))}" if pids else "a process that cannot be seen"
    return f"{who} has the VM's lock, and no record tells of it"


def what_to_do(name: VmName) -> str:
    """Say how to go on from there."""
    return f"`arcsup kill {name}` ends it; after that the VM can be started"


def hold_process(places: Places, name: VmName, pid: int, boot_id: str) -> Process | None:
    """Take hold of a holder of the lock; None when the process is another or gone by now."""
    start_time = read_start_time(pid)
    if start_time is None:
        return None
    process = Process.find(ProcessId(boot_id, pid, start_time), boot_id=boot_id)
    if process is not None and pid not in find_holders(places, name):
        process.close()
        return None
    return process
