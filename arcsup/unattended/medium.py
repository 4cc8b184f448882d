"""ISO images that carry answers, and what is taken from an installer's own.

Sources: pycdlib's manual; the kernel's Documentation/driver-api/early-userspace/buffer-format.rst
for the archives of an initramfs, of which several may follow each other.
"""

import io
from collections.abc import Mapping
from pathlib import Path

from pycdlib import PyCdlib
from pycdlib.pycdlibexception import PyCdlibException

from arcsup.errors import Refused

LARGEST_FILE = 256 * 2**20
"""Bytes of a file that is taken from an ISO image. An installer's kernel and initrd have some 60
MiB; a sparse image of a few KiB may claim anything, and it is held in memory."""

JOLIET = 3
"""The level with names of 64 characters, which Windows and Linux read."""


def write_medium(label: str, files: Mapping[str, str]) -> bytes:
    """Return an ISO image with text files in its root, by name."""
    iso = PyCdlib()
    iso.new(joliet=JOLIET, rock_ridge="1.09", vol_ident=label)
    for number, (name, text) in enumerate(files.items()):
        data = text.encode()
        # Joliet and Rock Ridge have the names; the ISO's own are too short for them.
        path = f"/FILE{number}.;1"
        iso.add_fp(io.BytesIO(data), len(data), path, rr_name=name, joliet_path=f"/{name}")
    content = io.BytesIO()
    iso.write_fp(content)
    iso.close()
    return content.getvalue()


def read_file_of_iso(image: Path, path: str) -> bytes:
    """Return a file of an ISO image.

    Raises Refused when it is none, has no such file, or one larger than ``LARGEST_FILE``.
    """
    iso = PyCdlib()
    try:
        iso.open(str(image))
    except (PyCdlibException, OSError) as error:
        raise Refused(f"{image}: is no ISO image: {error}", "name an installer's ISO") from error
    try:
        content = io.BytesIO()
        name = {"rr_path": path} if iso.has_rock_ridge() else {"iso_path": f"{path.upper()};1"}
        size = iso.get_record(**name).get_data_length()
        if size > LARGEST_FILE:
            raise Refused(
                f"{image}: {path} claims {size >> 20} MiB, more than {LARGEST_FILE >> 20}",
                "name an installer's ISO",
            )
        iso.get_file_from_iso_fp(content, **name)
        return content.getvalue()
    except PyCdlibException as error:
        raise Refused(
            f"{image}: has no {path}", "this way is for Debian's amd64 installers"
        ) from error
    finally:
        iso.close()


def write_archive(name: str, text: str) -> bytes:
    """Return a cpio archive (newc) with one private file, to follow an initrd's own."""
    data = text.encode()
    return _entry(name, data, mode=0o100600) + _entry("TRAILER!!!", b"", mode=0)


def _entry(name: str, data: bytes, *, mode: int) -> bytes:
    fields = [0, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0]
    header = b"070701" + b"".join(f"{value:08x}".encode() for value in fields)
    return _pad(header + name.encode() + b"\0") + _pad(data)


def _pad(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)
