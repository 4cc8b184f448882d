"""Keeping logs of VMs from growing without bound.

QEMU, swtpm and hooks hold their logs open for as long as they live, so a log cannot be moved away
under them. They were opened for appending: what is written after a truncation goes to the new end.
A limit of the process (RLIMIT_FSIZE) would count for its disk images too, and a pipe would end
with the daemon; so the logs are looked at, the sooner the faster they grow.

Some of them belong to whom QEMU runs as, who can give them any mode. So each is held by descriptor
while something is done to it, and what is kept is a new file with an owner and a mode of ours.
"""

import errno
import logging
import math
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import trio
from attrs import define, field

from arcsup.model import Seconds, VmName

logger = logging.getLogger(__name__)

LARGEST_LOG = 16 * 2**20
"""Bytes from which on a log is begun anew; the end of its old content is kept as NAME.log.1."""

SELDOM: Seconds = Seconds(2.0)
OFTEN: Seconds = Seconds(0.1)
"""Time between two looks: while the logs hardly grow, and at most often."""

FLOOD: Seconds = Seconds(60.0)
"""A log that is full again within this time is emptied without being kept: copying what nobody
can read any more would only double the work."""

KEPT_MODE = 0o640
"""Of what is kept: as of a log that the daemon opens."""


@define
class LogKeeper:
    """Looks at logs in folders, and begins anew what is too long."""

    largest: int = LARGEST_LOG
    clock: Callable[[], float] = time.monotonic
    _sizes: dict[Path, int] = field(factory=dict)
    _kept: dict[Path, float] = field(factory=dict)
    _floods: set[Path] = field(factory=set)

    def look(self, folders: Iterable[Path]) -> tuple[int, tuple[Path, ...]]:
        """Shorten what is too long; return the bytes that came since, and logs that now flood.

        Blocks; never raises OSError. A line that is written between a copy and the truncation is
        lost.
        """
        grown, sizes, floods = 0, {}, []
        for log, size in _find_logs(folders):
            before = self._sizes.get(log, 0)
            grown += max(0, size - before)
            sizes[log] = size
            if size <= self.largest:
                continue
            try:
                if self._begin_anew(log):
                    floods.append(log)
                sizes[log] = 0
            except OSError as error:
                logger.warning("%s cannot be rotated: %s", log, error.strerror)
        self._sizes = sizes
        return grown, tuple(floods)

    def _begin_anew(self, log: Path) -> bool:
        """Empty a log; return whether that is because of a flood not yet known."""
        now = self.clock()
        with _holding(log) as (folder, descriptor):
            if now - self._kept.get(log, -math.inf) >= FLOOD:
                # Also if it cannot be kept: on a full disk, it is what has to go the next time.
                self._kept[log] = now
                self._floods.discard(log)
                _keep_end(folder, log.name, descriptor, self.largest)
                os.truncate(descriptor, 0)
                logger.info("rotated %s", log)
                return False
            os.truncate(descriptor, 0)
        known = log in self._floods
        self._floods.add(log)
        return not known


async def keep_logs_short(
    find_folders: Callable[[], Mapping[Path, VmName]], tell: Callable[[VmName, str], None]
) -> None:
    """Look at the logs of all VMs, for ever; tell of those that somebody floods."""
    keeper = LogKeeper()
    pause: float = SELDOM
    while True:
        await trio.sleep(pause)
        folders = find_folders()
        grown, floods = await trio.to_thread.run_sync(keeper.look, folders)
        for log in floods:
            name = folders[log.parent]
            tell(name, f"{log} fills up faster than it can be read: what comes is thrown away")
        # So soon that at this rate it will not have grown by more than what may be there.
        pause = min(SELDOM, max(OFTEN, pause * LARGEST_LOG / max(grown, 1)))


def _find_logs(folders: Iterable[Path]) -> Iterator[tuple[Path, int]]:
    for folder in folders:
        try:
            if folder.is_symlink():
                continue  # Somebody else's logs, if any.
            for entry in os.scandir(folder):
                if entry.name.endswith(".log") and entry.is_file(follow_symlinks=False):
                    yield Path(entry.path), entry.stat(follow_symlinks=False).st_size
        except OSError as error:
            if not isinstance(error, FileNotFoundError):
                logger.warning("%s cannot be looked at: %s", folder, error.strerror)


@contextmanager
def _holding(log: Path) -> Iterator[tuple[int, int]]:
    """Hold a log's folder and the log itself. Raises OSError for what is no log of ours."""
    folder = os.open(log.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        # It was a regular file when it was listed; by now it may be a FIFO.
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(log.name, flags, dir_fd=folder)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
                raise OSError(errno.EPERM, "it is no file of its own alone", str(log))
            yield folder, descriptor
        finally:
            os.close(descriptor)
    finally:
        os.close(folder)


def _keep_end(folder: int, name: str, log: int, size: int) -> None:
    """Copy the last ``size`` bytes of a log to NAME.log.1, a file made anew. Raises OSError."""
    half = f".{name}.tmp"
    with suppress(FileNotFoundError):
        os.unlink(half, dir_fd=folder)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with open(os.open(half, flags, 0o600, dir_fd=folder), "wb") as target:
            end = os.fstat(log).st_size
            target.write(os.pread(log, size, max(0, end - size)))
            os.fchmod(target.fileno(), KEPT_MODE)
        os.replace(half, f"{name}.1", src_dir_fd=folder, dst_dir_fd=folder)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(half, dir_fd=folder)
