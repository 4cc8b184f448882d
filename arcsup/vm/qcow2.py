"""What the header of a qcow2 image says, read as bytes: no program follows it anywhere.

A guest may have written all of it. So nothing of it is opened here, and each part has a bound.
Source: QEMU, docs/interop/qcow2.txt; the bounds are those of its block/qcow2.h.
"""

import os
import re
import struct
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from attrs import frozen

from arcsup.errors import Terminal
from arcsup.vm.image_files import QCOW2_MAGIC

LONGEST_NAME = 1023
"""Bytes of a base's name ("must not be longer than 1023 bytes")."""

LONGEST_CHAIN = 32
"""Images that may build upon one another; a header may also name its own image."""

MOST_SNAPSHOTS = 65536
"""QCOW_MAX_SNAPSHOTS."""

LARGEST_TABLE = 16 * 2**20
"""Bytes of a table of snapshots that is read; a usual entry has a hundred."""

EXTENSIONS_END = 65536
"""Bytes within which the format of a base is said: they begin with the image."""

_HEADER = struct.Struct(">4sIQI4xQ28xIQ")
"""magic, version, backing_file_offset, backing_file_size, size, nb_snapshots and
snapshots_offset."""

_VERSION_3 = struct.Struct(">Q20xI")
"""incompatible_features and header_length, behind those."""

_EXTERNAL_DATA = 1 << 2

_EXTENSION = struct.Struct(">II")
_BACKING_FORMAT = 0xE2792ACA

_SNAPSHOT = struct.Struct(">8x4xHHI4x8x4xI")
"""id_str_size, name_size, date_sec and extra_data_size of an entry."""


_PROTOCOL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
"""What QEMU takes for a driver or a URL at the beginning of a name."""


@frozen
class Snapshot:
    """An internal snapshot of an image."""

    name: str
    at: datetime


@frozen
class Header:
    """What a qcow2 image says of itself. ``size`` is what a guest sees of it, in bytes.

    ``base`` is the name of what it builds upon, as it stands there; ``base_format`` is QEMU's word
    for that one's format, "" where it is not said. ``snapshots`` is how many there are, and where.
    """

    size: int
    base: str | None
    base_format: str
    snapshots: tuple[int, int]


def read_header(what: str, image: IO[bytes]) -> Header | None:
    """Return what an open image says; None for what is no qcow2 image.

    Raises Terminal where it keeps its data in another file or makes no sense, OSError.
    """
    image.seek(0)
    start = image.read(_HEADER.size + _VERSION_3.size)
    if len(start) < _HEADER.size or not start.startswith(QCOW2_MAGIC):
        return None
    _, version, at, length, size, count, table = _HEADER.unpack_from(start)
    if version not in (2, 3):
        raise Terminal(f"{what}: Unsupported qcow2 version {version}", "convert it with qemu-img")
    header_length = _HEADER.size
    if version == 3 and len(start) == _HEADER.size + _VERSION_3.size:
        features, header_length = _VERSION_3.unpack_from(start, _HEADER.size)
        if features & _EXTERNAL_DATA:
            raise Terminal(f"{what} keeps its data in another file", "convert it with qemu-img")
    base, base_format = None, ""
    if at != 0:
        name = _read(what, image, at, length) if 0 < length <= LONGEST_NAME else b""
        if not name or b"\0" in name:
            raise _damaged(what)
        base = os.fsdecode(name)
        base_format = _read_base_format(what, image, header_length, min(at, EXTENSIONS_END))
    return Header(size, base, base_format, (count, table))


def is_file_name(name: str) -> bool:
    """Tell whether QEMU takes the name of a base for that of a file."""
    return not _PROTOCOL.match(name)


def place_of(image: Path, name: str) -> Path:
    """Return the file that the name of a base means; what is no file stays as it is named."""
    return image.parent / name if is_file_name(name) else Path(name)


def _read_base_format(what: str, image: IO[bytes], at: int, end: int) -> str:
    while _HEADER.size <= at <= end - _EXTENSION.size:
        kind, length = _EXTENSION.unpack(_read(what, image, at, _EXTENSION.size))
        at += _EXTENSION.size
        if kind == 0:
            break
        if length > end - at:
            raise _damaged(what)
        if kind == _BACKING_FORMAT:
            return _read(what, image, at, length).decode("ascii", "replace")
        at += -(-length // 8) * 8
    return ""


def read_snapshots(what: str, image: IO[bytes]) -> tuple[Snapshot, ...]:
    """Return the snapshots inside an open image, none where it is not qcow2.

    Raises Terminal as ``read_header`` does, OSError.
    """
    header = read_header(what, image)
    count, at = (0, 0) if header is None else header.snapshots
    if count > MOST_SNAPSHOTS:
        raise _damaged(what)
    found, end = [], at + LARGEST_TABLE
    for _ in range(count):
        entry = _SNAPSHOT.unpack(_read(what, image, at, _SNAPSHOT.size))
        id_length, name_length, seconds, extra = entry
        at += _SNAPSHOT.size + extra + id_length
        if at + name_length > end:
            raise _damaged(what)
        name = _read(what, image, at, name_length).decode(errors="replace")
        found.append(Snapshot(name, datetime.fromtimestamp(seconds, UTC)))
        at = -(-(at + name_length) // 8) * 8
    return tuple(found)


def _read(what: str, image: IO[bytes], at: int, length: int) -> bytes:
    if at >= 2**63:
        raise _damaged(what)
    image.seek(at)
    found = image.read(length)
    if len(found) != length:
        raise _damaged(what)
    return found


def _damaged(what: str) -> Terminal:
    return Terminal(f"{what}: its qcow2 header is damaged", "qemu-img check tells more")
