"""Unpack a bzImage's kernel: `unpack_image.py VMLINUZ VMLINUX`.

The payload of Debian's x86 images is an ELF file packed with xz (CONFIG_KERNEL_XZ) or zstd;
Documentation/arch/x86/boot.rst gives its place as payload_offset (0x248) and payload_length
(0x24c), counted from the end of the setup sectors (0x1f1).
"""

import lzma
import struct
import subprocess
import sys
from pathlib import Path


def unpack(image: bytes) -> bytes:
    """The ELF file inside a bzImage."""
    sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (sectors + 1) * 512 + offset
    payload = image[start : start + length]
    if payload.startswith(b"\xfd7zXZ\x00"):
        # Four bytes with the unpacked size follow the stream; a decompressor object leaves them.
        return lzma.LZMADecompressor().decompress(payload)
    if payload.startswith(b"\x28\xb5\x2f\xfd"):
        return subprocess.run(
            ["zstd", "-dcq"], input=payload[:-4], capture_output=True, check=True
        ).stdout
    raise SystemExit(f"unknown packing of the kernel image: {payload[:6].hex()}")


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:3])
    target.write_bytes(unpack(source.read_bytes()))
