"""What each image builds upon, as it was when root first lent it: never as its header says later.

Who broke out of a guest can write any name into the header of its disk. Followed by root, that
name would open another VM's disk, or a password file, to it. So the link from an image to its base
is kept in the state directory before the image is lent for the first time, for as long as the
image is there: it outlives the record of its VM. What was written later holds only if the VM's
file says it too.
Sources: docs/interop/qcow2.txt of QEMU; statx(2) for the time of birth, which tells an image from
a later one that got its inode number.
"""

import ctypes
import json
import os
import stat
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import cattrs
from attrs import frozen
from cattrs.preconf.json import make_converter

from arcsup.durable import write_durably
from arcsup.errors import NotRecorded, Terminal
from arcsup.vm.qcow2 import is_file_name, place_of, read_header
from arcsup.vm.reach import Found

MOST_LINKS = 10_000
"""Images that are remembered; whoever was not lent for the longest time is forgotten first."""

_AT_EMPTY_PATH, _STATX_BTIME = 0x1000, 0x800
_STATX_SIZE, _BTIME_AT = 256, 80
"""Bytes of struct statx, and where stx_btime begins in it (linux/stat.h)."""


@frozen
class ImageId:
    """Which file an image is. ``born`` is in nanoseconds; 0 where its file system keeps no birth.

    ``path`` is its real path. A device number can be another one after the host has restarted.
    """

    path: str
    device: int
    inode: int
    born: int

    @classmethod
    def of(cls, found: Found) -> "ImageId":
        """Return which image was found."""
        status = found.status
        return cls(str(found.path), status.st_dev, status.st_ino, find_birth(found.descriptor))

    def is_same(self, other: "ImageId") -> bool:
        """Tell whether both are one file, renamed or not."""
        place = self.device == other.device or self.path == other.path
        return place and (self.inode, self.born) == (other.inode, other.born)


@frozen
class Link:
    """What an image builds upon, None for nothing. A raw one builds upon nothing ever."""

    image: ImageId
    raw: bool = False
    base: ImageId | None = None


@frozen
class Upper:
    """An image whose base is being looked for, and what may be believed about that base.

    ``named`` is the base that the VM's own file gives it, the only one that is believed of an image
    that is ``thrown_away`` after a run.
    """

    what: str
    image: ImageId
    status: os.stat_result
    known: Link | None
    named: Path | None
    thrown_away: bool = False


_converter = make_converter(forbid_extra_keys=True)


class ChainStore:
    """The links of all images that were ever lent, in one file. Who uses it sees to turns."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._links: tuple[Link, ...] | None = None

    def load(self) -> tuple[Link, ...]:
        """Return all links. Blocks. Raises Terminal where they cannot be read."""
        if self._links is None:
            try:
                raw: Any = json.loads(self._file.read_text())
                self._links = _converter.structure(raw, tuple[Link, ...])
            except FileNotFoundError:
                self._links = ()
            except (OSError, ValueError, TypeError, cattrs.BaseValidationError) as error:
                raise Terminal(
                    f"{self._file} cannot be read: {error}",
                    "it tells what the images build upon: restore it, or remove it after a look"
                    " with `arcsup image list` at what they say now",
                ) from error
        return self._links

    def save(self, links: Iterable[Link]) -> None:
        """Keep links, in the place of older ones of the same images. Blocks. Raises NotRecorded."""
        known = self.load()
        new = tuple(link for link in links if link not in known)
        if not new:
            return
        kept = (old for old in known if not any(old.image.is_same(link.image) for link in new))
        changed = (*kept, *new)[-MOST_LINKS:]
        try:
            write_durably(self._file, json.dumps(_converter.unstructure(changed)), 0o600)
        except OSError as error:
            raise NotRecorded(
                f"{self._file} cannot be written: {error.strerror}",
                "no image is lent whose base could not be recorded first",
            ) from error
        self._links = changed


def find_link(image: ImageId, links: Iterable[Link]) -> Link | None:
    """Return what is known of an image, None where it was never lent."""
    return next((link for link in links if link.image.is_same(image)), None)


def find_image(path: Path) -> ImageId:
    """Return which image a name leads to. Blocks. Raises OSError."""
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        status, real = os.fstat(descriptor), Path(f"/proc/self/fd/{descriptor}").readlink()
        return ImageId(str(real), status.st_dev, status.st_ino, find_birth(descriptor))
    finally:
        os.close(descriptor)


def find_birth(descriptor: int) -> int:
    """Return when a file was made, in nanoseconds since 1970; 0 where nothing tells."""
    buffer = ctypes.create_string_buffer(_STATX_SIZE)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.statx(descriptor, b"", _AT_EMPTY_PATH, _STATX_BTIME, buffer) != 0:
        return 0
    (mask,) = struct.unpack_from("=I", buffer)
    seconds, fraction = struct.unpack_from("=qI", buffer, _BTIME_AT)
    return int(seconds) * 10**9 + int(fraction) if mask & _STATX_BTIME else 0


def find_base(what: str, path: Path, descriptor: int) -> tuple[Path, str] | None:
    """Return the file that a qcow2 image says that it builds upon, and the format of that.

    None for nothing; the format is raw, qcow2, or "" where it is not said. Raises Terminal where
    the base is no file, or has a format of which is not known what it builds upon.
    """
    with open(f"/proc/self/fd/{descriptor}", "rb") as image:
        header = read_header(f"{what}: {path}", image)
    if header is None or header.base is None:
        return None
    if not is_file_name(header.base):
        raise Terminal(f"{what}: {path} builds upon {header.base!r}, which is no file", "rebase it")
    if header.base_format not in ("", "raw", "qcow2"):
        raise Terminal(
            f"{what}: {path} builds upon a base of format {header.base_format!r}",
            "convert that with qemu-img, and rebase it",
        )
    return place_of(path, header.base), header.base_format


def read_base_name(what: str, image: IO[bytes]) -> str | None:
    """Return the name of the file that an open qcow2 image builds upon; None where there is none.

    Raises Terminal where it keeps its data outside, or the header makes no sense.
    """
    header = read_header(what, image)
    return None if header is None else header.base


def check_base(upper: Upper, base: ImageId, status: os.stat_result) -> None:
    """Raise Terminal for a base that may have been named by a guest."""
    if any(_names(upper, base, status)):
        return
    known = "which no VM file names"
    if upper.known is not None:
        before = upper.known.base
        known = f"which built upon {before.path if before else 'nothing'} when it was lent first"
        known = f"{known}: a guest can have written that"
    raise Terminal(
        f"{upper.what}: {upper.image.path} says that it builds upon {base.path}, {known}",
        f"if it is meant, say `base: {base.path}` for this disk in the VM file",
    )


def _names(upper: Upper, base: ImageId, status: os.stat_result) -> Iterator[bool]:
    """Yield whether each of those who may say it names this base."""
    if upper.known is None and not upper.thrown_away:
        yield _is_believed(upper.status, status)
    elif upper.known is not None and (before := upper.known.base) is not None:
        # A base that was exchanged for a newer one is still at its place.
        yield before.path == base.path or before.is_same(base)
    if upper.named is not None:
        try:
            named = upper.named.stat()
        except OSError:
            return
        yield os.path.samestat(named, status)


def _is_believed(image: os.stat_result, base: os.stat_result) -> bool:
    """Tell whether the header of an image that was never lent may lead to a base.

    It may where nobody but root can have written it, or its writer could read the base anyway. A
    block device is another inode after each restart of the host, so nothing is known of it.
    """
    if base.st_mode & stat.S_IROTH:
        return True
    if not stat.S_ISREG(image.st_mode) or image.st_mode & 0o022:
        return False
    return image.st_uid in (0, base.st_uid)
