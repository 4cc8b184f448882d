"""Opening one file of the VM directory with all the suspicion that a dropped-in file deserves."""

import errno
import fcntl
import os
import signal
import stat
from pathlib import Path

from attrs import frozen

from arcsup.opening import name_kind
from arcsup.spec.nodes import LARGEST_FILE

YOUNG = 0.1
"""Seconds since the last change in which a file may still be in the writing (without leases)."""

WRITER_LIMIT = 10.0
"""Seconds since the last change after which a file that is held open for writing is read anyway:
some network file systems say EAGAIN to every lease, and some programs never close."""

CLOCK_GRAIN = 0.02
"""Seconds in which a file can change twice without its times changing: the kernel stamps with the
clock of the last tick, 10 ms at CONFIG_HZ=100."""

Key = tuple[int, int, int, int, int]
"""Device, inode, size, mtime and ctime (ns): a file with the same key has not changed."""


@frozen
class Content:
    """A file that was read. ``key`` is None when the next look must read it again to be sure."""

    data: bytes
    key: Key | None


@frozen
class Unsettled:
    """Somebody is still writing the file."""


@frozen
class Unusable:
    """The file cannot or must not be read: why, and what to do."""

    message: str


def key_of(status: os.stat_result) -> Key:
    """Return what tells a changed file from an unchanged one."""
    return (
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )


def read_file(
    path: Path, directory: int, root: Path, now: float, *, system: bool
) -> Content | Unsettled | Unusable:
    """Return what a file of the VM directory holds. Never blocks and never raises OSError.

    ``directory`` is open on ``root``; ``now`` is the time of day in seconds.
    """
    try:
        # Opening a device can do something to it, so it is looked at before.
        if message := _why_not_usable(os.stat(path.name, dir_fd=directory)):
            return Unusable(message)
        # A FIFO without a writer would hold up a blocking open for ever (fifo(7)).
        file = os.open(path.name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except OSError as error:
        return Unusable(_why_not_opened(path, error))
    try:
        status = os.fstat(file)
        if message := _why_not_usable(status):
            return Unusable(message)
        if system and (message := find_insecurity(path, status, root)):
            return Unusable(message)
        if _is_being_written(file, status, now):
            return Unsettled()
        data = os.read(file, LARGEST_FILE + 1)
        if key_of(os.fstat(file)) != key_of(status) or len(data) != status.st_size:
            return Unsettled()
    except OSError as error:
        return Unusable(f"cannot be read: {error.strerror}")
    finally:
        os.close(file)  # also gives the lease back
    grainy = 0 <= now - status.st_mtime < CLOCK_GRAIN
    return Content(data, None if grainy else key_of(status))


def find_insecurity(path: Path, status: os.stat_result, root: Path) -> str:
    """Return why others than root could change a file that root acts on, "" if they cannot.

    A symlink's target counts, and the directories from there up to the VM directory, or to the
    file system's root when it lies elsewhere.
    """
    if message := tell_insecurity(status):
        return message
    if not path.is_symlink():
        return ""
    if os.lstat(path).st_uid != 0:
        return "is a symlink that does not belong to root; run: chown -h root"
    top = Path(os.path.realpath(root))
    for parent in Path(os.path.realpath(path)).parents:
        if parent == top:
            break
        if message := tell_insecurity(parent.stat()):
            return f"points into {parent}, which {message}"
    return ""


def tell_insecurity(status: os.stat_result) -> str:
    """Return why others than root could change what has this status, "" if they cannot."""
    if status.st_uid != 0:
        return f"belongs to user {status.st_uid}, expected root; run: chown root"
    # In a sticky directory others can make files but not replace those of root (unlink(2)).
    if stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX:
        return ""
    if status.st_mode & stat.S_IWOTH:
        return "can be written by everybody; run: chmod o-w"
    if status.st_mode & stat.S_IWGRP and status.st_gid != 0:
        return f"can be written by group {status.st_gid}; run: chmod g-w"
    return ""


def _is_being_written(file: int, status: os.stat_result, now: float) -> bool:
    """Tell whether somebody has the file open for writing, by asking for a read lease.

    fcntl(2): F_SETLEASE with F_RDLCK fails with EAGAIN while the file is open for writing. The
    lease is held until the file is closed, so that the content is of one piece. A writer who comes
    meanwhile waits those microseconds, and the kernel tells us by a signal: SIGIO, which would end
    the process, unless another one is chosen.
    """
    # Every write moves ctime, which no program can date ahead as it can mtime (inode(7)). Where a
    # server's clock is far ahead, no age is known; what is read too early is read anew.
    age = now - status.st_ctime
    try:
        fcntl.fcntl(file, fcntl.F_SETSIG, signal.SIGURG)  # ignored by default (signal(7))
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        if error.errno == errno.EAGAIN:
            return abs(age) < WRITER_LIMIT
        # EACCES: not ours; EINVAL, ENOLCK, EOPNOTSUPP: not on this file system.
        return 0 <= age < YOUNG
    return False


def _why_not_opened(path: Path, error: OSError) -> str:
    if error.errno == errno.ENOENT and path.is_symlink():
        return f"is a symlink to {path.readlink()}, which is not there"
    if error.errno == errno.EACCES:
        return f"cannot be read by user {os.geteuid()}; run: chmod u+r, or chown it"
    if error.errno == errno.ENXIO:
        return "is a socket or a device, expected a regular file"
    return f"cannot be opened: {error.strerror}"


def _why_not_usable(status: os.stat_result) -> str:
    mode = status.st_mode
    if not stat.S_ISREG(mode):
        return f"is a {name_kind(mode)}, expected a regular file"
    if status.st_size > LARGEST_FILE:
        return f"is longer than {LARGEST_FILE >> 20} MiB"
    return ""
