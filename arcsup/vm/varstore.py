"""What a store of UEFI variables is, read from its bytes alone. Pure; believes nothing.

A guest, or a QEMU that was taken over, may have written anything there: every length is checked
against what is there, and whatever makes no sense counts as no store.

Sources: edk2's MdePkg/Include/Pi/PiFirmwareVolume.h (EFI_FIRMWARE_VOLUME_HEADER),
MdeModulePkg/Include/Guid/VariableFormat.h (VARIABLE_STORE_HEADER, AUTHENTICATED_VARIABLE_HEADER),
OvmfPkg/QemuFlashFvbServicesRuntimeDxe (ValidateFvHeader: what OVMF formats anew, and does so
without a word), SecurityPkg/Include/Guid/AuthenticatedVariableFormat.h (SecureBootEnable);
QEMU's docs/interop/qcow2.txt.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import Final
from uuid import UUID

from attrs import frozen

LARGEST = 8 * 2**20
"""Bytes of the largest store: QEMU takes no more flash (hw/i386/pc_sysfw.c, FLASH_SIZE_LIMIT)."""

QCOW2_MAGIC: Final = b"QFI\xfb"

_VOLUME = struct.Struct("<16x16sQ4sIHHHBB")
_BLOCK = struct.Struct("<II")
_NV_DATA = UUID("fff12b8d-7696-4c8b-a985-2747075b4f50").bytes_le
_SMALLEST_HEADER = _VOLUME.size + 2 * _BLOCK.size
_LARGEST_HEADER = 4096

_STORE = struct.Struct("<16sIBBHI")
_AUTHENTICATED = UUID("aaf32c78-947b-439a-a180-2e144ec37792").bytes_le

_VARIABLE = struct.Struct("<HBBIQ16sIII16s")
_START_ID = 0x55AA
_ADDED, _IN_DELETED_TRANSITION = 0x3F, 0xFE
_GLOBAL = UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c").bytes_le
_SWITCH = UUID("f0a30bc7-af08-4556-99c4-001009c93a44").bytes_le


@frozen
class Layout:
    """How a store is laid out. A build takes its own layout only, and formats any other anew.

    ``volume`` and ``store`` are bytes; ``kind`` is the GUID of the form that variables have.
    """

    volume: int
    header: int
    revision: int
    kind: bytes
    store: int


def read_layout(flash: bytes) -> Layout | None:
    """Return the layout of a store; None where the firmware would not know it for one."""
    if len(flash) < _VOLUME.size:
        return None
    system, volume, signature, _, header, _, _, _, revision = _VOLUME.unpack_from(flash)
    if system != _NV_DATA or signature != b"_FVH" or volume > len(flash):
        return None
    if not _SMALLEST_HEADER <= header <= min(_LARGEST_HEADER, len(flash) - _STORE.size):
        return None
    if header % 2 or sum(struct.unpack_from(f"<{header // 2}H", flash)) & 0xFFFF:
        return None
    kind, store, formatted, _, _, _ = _STORE.unpack_from(flash, header)
    if formatted != 0x5A or not _STORE.size <= store <= volume - header:
        return None
    return Layout(volume, header, revision, kind, store)


def has_platform_key(flash: bytes) -> bool:
    """Tell whether a platform key is enrolled: without one, Secure Boot enforces nothing.

    Source: UEFI specification 2.10, section 32.3 ("setup mode").
    """
    return _find(flash, "PK", _GLOBAL) not in (None, b"")


def is_switched_off(flash: bytes) -> bool:
    """Tell whether somebody has switched Secure Boot off in the firmware's own menu."""
    return _find(flash, "SecureBootEnable", _SWITCH) == b"\0"


def _find(flash: bytes, name: str, vendor: bytes) -> bytes | None:
    """Return a variable's data; what is being replaced counts only without its successor."""
    wanted, older = f"{name}\0".encode("utf-16-le"), None
    for state, owner, label, data in _variables(flash):
        if (label, owner) != (wanted, vendor):
            continue
        if state == _ADDED:
            return data
        if state == _ADDED & _IN_DELETED_TRANSITION:
            older = data
    return older


def _variables(flash: bytes) -> Iterator[tuple[int, bytes, bytes, bytes]]:
    """Yield state, owner, name and data of each variable, until one makes no sense."""
    layout = read_layout(flash)
    if layout is None or layout.kind != _AUTHENTICATED:
        return
    at, end = layout.header + _STORE.size, layout.header + layout.store
    while at + _VARIABLE.size <= end:
        start, state, _, _, _, _, _, name, data, vendor = _VARIABLE.unpack_from(flash, at)
        begin = at + _VARIABLE.size
        if start != _START_ID or begin + name + data > end:
            return
        label = flash[begin : begin + name]
        yield state, vendor, label, flash[begin + name : begin + name + data]
        at = (begin + name + data + 3) & ~3


_QCOW2 = struct.Struct(">4sIQIIQIIQ")
_OFFSET = 0x00FF_FFFF_FFFF_FE00
_COMPRESSED, _ZEROES = 1 << 62, 1
_HARMLESS = 0b11
"""Incompatible features that change nothing here: "dirty" and "corrupt"."""


def read_qcow2(image: bytes) -> bytes | None:
    """Return the flash that a qcow2 image holds; None for what this cannot read, or is no image.

    One that builds upon another file, or keeps its data in one, is nothing that a guest's
    variables are kept in.
    """
    if len(image) < _QCOW2.size or not image.startswith(QCOW2_MAGIC):
        return None
    _, version, backing, _, bits, size, encrypted, entries, l1 = _QCOW2.unpack_from(image)
    features = int.from_bytes(image[72:80], "big") if version == 3 else 0
    if version not in (2, 3) or backing or encrypted or features & ~_HARMLESS:
        return None
    if not 9 <= bits <= 21 or size > LARGEST:
        return None
    cluster = 1 << bits
    clusters = -(-size // cluster)
    if entries < -(-clusters // (cluster // 8)):
        return None
    flash = bytearray()
    for index in range(clusters):
        piece = _read_cluster(image, l1, index, bits)
        if piece is None:
            return None
        flash += piece
    return bytes(flash[:size])


def _read_cluster(image: bytes, l1: int, index: int, bits: int) -> bytes | None:
    cluster = 1 << bits
    high, low = divmod(index, cluster // 8)
    table = _read_entry(image, l1 + 8 * high)
    if table is None or not table & _OFFSET:
        return bytes(cluster) if table is not None else None
    entry = _read_entry(image, (table & _OFFSET) + 8 * low)
    if entry is None:
        return None
    if entry & _COMPRESSED:
        return _inflate(image, entry, bits)
    offset = entry & _OFFSET
    if not offset or entry & _ZEROES:
        return bytes(cluster)
    # The last cluster of a file may be shorter than the others.
    piece = image[offset : offset + cluster]
    return piece.ljust(cluster, b"\0") if piece else None


def _read_entry(image: bytes, at: int) -> int | None:
    return int.from_bytes(image[at : at + 8], "big") if at + 8 <= len(image) else None


def _inflate(image: bytes, entry: int, bits: int) -> bytes | None:
    low = 62 - (bits - 8)
    offset, more = entry & ((1 << low) - 1), (entry & (_COMPRESSED - 1)) >> low
    packed = image[offset : offset - offset % 512 + 512 * (more + 1)]
    try:
        piece = zlib.decompressobj(-12).decompress(packed, 1 << bits)
    except zlib.error:
        return None
    return piece if len(piece) == 1 << bits else None
