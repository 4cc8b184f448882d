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
    """Return a file of an ISO image. Raises Refused when it is none, or has no such file."""
    iso = PyCdlib()
    try:
        iso.open(str(image))
    except (PyCdlibException, OSError) as error:
        raise Refused(f"{image}: is no ISO image: {error}", "name an installer's ISO") from error
    try:
        content = io.BytesIO()
        if iso.has_rock_ridge():
            iso.get_file_from_iso_fp(content, rr_path=path)
        else:
            iso.get_file_from_iso_fp(content, iso_path=f"{path.upper()};1")
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
