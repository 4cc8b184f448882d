"""Opening what somebody else has named: it may be anything, or become so at any moment."""

import errno
import os
import stat
from contextlib import ExitStack
from pathlib import Path
from typing import IO


def open_named(path: Path, *, or_block_device: bool = False) -> IO[bytes]:
    """Open a regular file for reading, or also a block device, without waiting for anybody.

    Raises OSError, for anything else, too.
    """
    # Opening a device can do something to it, so it is looked at before.
    _check_kind(path, path.stat(), or_block_device=or_block_device)
    with ExitStack() as opened:
        stream = opened.enter_context(open(path, "rb", opener=_open_at_once))
        _check_kind(path, os.fstat(stream.fileno()), or_block_device=or_block_device)
        opened.pop_all()
    return stream


def _open_at_once(path: str, flags: int) -> int:
    # By now it may be a FIFO, whose writer a blocking open would wait for (fifo(7)).
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)


def _check_kind(path: Path, status: os.stat_result, *, or_block_device: bool) -> None:
    mode = status.st_mode
    if stat.S_ISREG(mode) or (or_block_device and stat.S_ISBLK(mode)):
        return
    expected = "a file or a block device" if or_block_device else "a regular file"
    raise OSError(errno.EINVAL, f"is a {name_kind(mode)}, expected {expected}", str(path))


def name_kind(mode: int) -> str:
    """Return what something is that is no regular file."""
    kinds = {stat.S_IFDIR: "directory", stat.S_IFIFO: "FIFO", stat.S_IFSOCK: "socket"}
    return kinds.get(stat.S_IFMT(mode), "device")
