"""QEMU's own lock on an image, held by us while the image is replaced.

Source: QEMU's block/file-posix.c (raw_apply_lock_bytes) and include/block/block-common.h. Byte
100 + n of the file is locked by whoever has permission n, byte 200 + n by whoever shares
permission n with nobody; the locks are shared ones of an open file description (fcntl(2)), and
who finds one that speaks against him gives up at once. Permission 1 is writing.
"""

import fcntl
import os
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from arcsup.errors import Terminal
from arcsup.host.writer import comes_true
from arcsup.opening import open_named
from arcsup.vm.process import find_processes_holding
from arcsup.vm.qemu_img import in_use

WRITES, ALONE = 100 + 1, 200 + 1
"""The bytes that say: I write, and: nobody else may. Readers of a backing file have the second."""

LETTING_GO = 10.0
"""Seconds that a QEMU which was refused the image may take to close it."""

_FLOCK = "hhqqi4x"
"""struct flock of Linux on 64 bit: type, whence, start, length, pid."""


@asynccontextmanager
async def hold_image(path: Path) -> AsyncIterator[None]:
    """Keep every QEMU from opening an image while the block runs.

    A QEMU that opened it before the block replaced it, and asks for its lock after the block,
    would go on with the old one: the block ends only when nobody has that any more.
    Raises Refused when somebody has it open, Terminal for a file that cannot be opened.
    """
    try:
        stream = open_named(path, or_block_device=True)
    except OSError as error:
        raise Terminal(f"{path}: {(error.strerror or str(error)).lower()}") from error
    with stream:
        if not _acquire(stream.fileno(), path):
            raise in_use(path)
        yield
        await _outlast_openers(stream.fileno(), path)


def _acquire(descriptor: int, path: Path) -> bool:
    """Take the lock; tell whether nobody else has one. Raises Terminal where there are no locks."""
    try:
        # As QEMU does: lock first, then look. Of two who do so at once at least one gives up.
        for byte in (WRITES, ALONE):
            _lock(descriptor, byte)
        return not any(_is_locked_by_another(descriptor, byte) for byte in (WRITES, ALONE))
    except BlockingIOError:
        return False
    except OSError as error:
        raise Terminal(f"{path}: its file system has no locks: {error.strerror}") from error


async def _outlast_openers(descriptor: int, path: Path) -> None:
    held = os.fstat(descriptor)
    if os.path.samestat(held, path.stat()):
        return
    old = Path(f"/proc/self/fd/{descriptor}")
    await comes_true(
        lambda: not set(find_processes_holding(old)) - {os.getpid()}, seconds=LETTING_GO
    )


def _lock(descriptor: int, byte: int) -> None:
    wanted = struct.pack(_FLOCK, fcntl.F_RDLCK, os.SEEK_SET, byte, 1, 0)
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, wanted)


def _is_locked_by_another(descriptor: int, byte: int) -> bool:
    asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
    answer = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, asked)
    kind: int = struct.unpack(_FLOCK, answer)[0]
    return kind != fcntl.F_UNLCK
