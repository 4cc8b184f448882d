"""Image files on disk: made beside their place and put there whole, or not at all.

Sources: docs/interop/qcow2.txt of QEMU for the magic; ECMA-119 8.1 for that of a CD-ROM.
"""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from arcsup.durable import sync_folder
from arcsup.errors import NotPermitted, Terminal

QCOW2_MAGIC = b"QFI\xfb"
ISO_MAGIC, ISO_OFFSET = b"CD001", 16 * 2048 + 1


def has_qcow2_magic(image: IO[bytes]) -> bool:
    """Tell whether an open image is qcow2, by its first bytes."""
    image.seek(0)
    return image.read(len(QCOW2_MAGIC)) == QCOW2_MAGIC


def has_iso_magic(image: IO[bytes]) -> bool:
    """Tell whether an open image is a CD-ROM's, by its first volume descriptor."""
    image.seek(ISO_OFFSET)
    return image.read(len(ISO_MAGIC)) == ISO_MAGIC


def create_folder_of(image: Path) -> None:
    """Make the folders that are missing above an image: its QEMU, another user, can pass them."""
    missing = [folder for folder in image.parents if not folder.exists()]
    for folder in reversed(missing):
        folder.mkdir(mode=0o700, exist_ok=True)
        # A umask takes that away from what mkdir gives.
        folder.chmod(0o711)


@contextmanager
def telling(path: Path) -> Iterator[None]:
    """Turn what the system refuses in the block into NotPermitted or Terminal."""
    try:
        yield
    except PermissionError as error:
        raise NotPermitted(f"{error.filename or path}: you may not write there") from error
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise Terminal(f"{error.filename or path}: {why}", "check its folder") from error


@contextmanager
def part_of(path: Path) -> Iterator[IO[bytes]]:
    """Give an unfinished image beside ``path``; it is gone afterwards, whatever happened.

    The lock says that its maker lives: parts without one were left by a crash and are removed.
    """
    prefix, suffix = f".{path.name}.", ".part"
    for left in path.parent.glob(f"{_literal(prefix)}*{suffix}"):
        with suppress(OSError), open(left, "rb", opener=_open_at_once) as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink()
    with tempfile.NamedTemporaryFile(
        dir=path.parent, prefix=prefix, suffix=suffix, delete=False
    ) as part:
        try:
            fcntl.flock(part, fcntl.LOCK_EX)
            yield part.file
        finally:
            with suppress(FileNotFoundError):
                Path(part.name).unlink()


def _open_at_once(path: str, flags: int) -> int:
    """Open a file for reading; a FIFO that somebody has put there would be waited for."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)


def _literal(name: str) -> str:
    """Return a name in which no character means anything to ``glob``."""
    return "".join(f"[{character}]" if character in "*?[" else character for character in name)


def publish(part: IO[bytes], path: Path) -> bool:
    """Give a finished image its name, unless somebody else has made one meanwhile.

    Returns whether it was this one that got the name.
    """
    os.fsync(part.fileno())
    ours = True
    try:
        # A link, unlike a rename, never replaces what is there. By descriptor: in a folder of
        # somebody else's the part's name may be another file's by now.
        # Python follows the link in /proc (AT_SYMLINK_FOLLOW) only where a descriptor of a folder
        # is passed; with an absolute path that one is not looked at (linkat(2)).
        source = f"/proc/self/fd/{part.fileno()}"
        os.link(source, path, src_dir_fd=part.fileno(), follow_symlinks=True)
    except FileExistsError:
        ours = False
    sync_folder(path.parent)
    return ours


def replace(part: IO[bytes], path: Path) -> None:
    """Put a finished image in the place of another, with the owner and permissions of that one.

    Whoever that one was lent to could give it any mode: no image is a program.
    """
    old = path.stat()
    os.fchown(part.fileno(), old.st_uid, old.st_gid)
    os.fchmod(part.fileno(), old.st_mode & 0o666)
    os.fsync(part.fileno())
    Path(part.name).replace(path)
    sync_folder(path.parent)
