"""Stores of UEFI variables as OVMF lays them out, small enough for a test."""

import struct
from uuid import UUID

GLOBAL = UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")
SWITCH = UUID("f0a30bc7-af08-4556-99c4-001009c93a44")
AUTHENTICATED = UUID("aaf32c78-947b-439a-a180-2e144ec37792")
NV_DATA = UUID("fff12b8d-7696-4c8b-a985-2747075b4f50")
HEADER = 72
ADDED, BEING_REPLACED, DELETED = 0x3F, 0x3E, 0x3C


def variable(name: str, data: bytes = b"\1", vendor: UUID = GLOBAL, *, state: int = ADDED) -> bytes:
    """Return a variable with its header, filled up to where the next one begins."""
    label = f"{name}\0".encode("utf-16-le")
    header = struct.pack(
        "<HBBIQ16sIII16s",
        *(0x55AA, state, 0, 7, 0, bytes(16), 0, len(label), len(data), vendor.bytes_le),
    )
    content = header + label + data
    return content.ljust((len(content) + 3) & ~3, b"\xff")


def flash(*variables: bytes, size: int = 4096, kind: UUID = AUTHENTICATED) -> bytes:
    """Return a store of ``size`` bytes that the firmware takes as its own."""
    store = size // 2 - HEADER
    fields = (NV_DATA.bytes_le, size, b"_FVH", 0x4FEFF, HEADER, 0, 0, 0, 2)
    header = struct.pack("<16x16sQ4sIHHHBB", *fields)
    header += struct.pack("<IIII", size // 512, 512, 0, 0)
    checksum = -sum(struct.unpack(f"<{HEADER // 2}H", header)) & 0xFFFF
    header = header[:50] + struct.pack("<H", checksum) + header[52:]
    head = header + struct.pack("<16sIBBHI", kind.bytes_le, store, 0x5A, 0xFE, 0, 0)
    return (head + b"".join(variables)).ljust(size, b"\xff")


PLAIN = flash(variable("BootOrder", b"\0\0"))
SECURE = flash(variable("BootOrder", b"\0\0"), variable("PK", b"the key"))
