"""A real, tiny installer on an ISO: it boots, writes a system to the first disk, powers off.

Both say on the serial port what they are, the installed system too powers off at once. Sources:
ECMA-119 for the ISO; the El Torito specification, version 1.0, section 2 for what makes it boot.
"""

from pathlib import Path

SECTOR = 2048

INSTALLING = "installing"
INSTALLED = "installed"

_INSTALLER = (
    bytes.fromhex(
        "0e 1f"  # ds = cs
        "e8 00 00 5e"  # si = where this is
        "89 f3 81 c3 fb 01"  # bx = the system, 0x200 from the beginning
        "81 c6 2d 00"  # si = the text
        "ba f8 03 ac 84 c0 74 03 ee eb f8"  # write it to COM1
        "1e 07 b8 01 03 b9 01 00 ba 80 00 cd 13"  # write one sector, the first of disk 0x80
        "ba 04 06 b8 00 20 ef f4 eb fd"  # power off: SLP_EN into q35's PM1a_CNT
    )
    + f"{INSTALLING}\n\0".encode()
)

_SYSTEM = (
    bytes.fromhex(
        "31 c0 8e d8 be 1c 7c"  # ds = 0, si = the text
        "ba f8 03 ac 84 c0 74 03 ee eb f8"
        "ba 04 06 b8 00 20 ef f4 eb fd"
    )
    + f"{INSTALLED}\n\0".encode()
)


def write_installer(path: Path) -> Path:
    """Write the ISO and return its path."""
    boot = _INSTALLER.ljust(0x200, b"\0") + _SYSTEM.ljust(510, b"\0") + b"\x55\xaa"
    descriptor, catalog, image = 17, 19, 20
    sectors = {
        16: b"\x01CD001\x01",
        descriptor: (b"\0CD001\x01EL TORITO SPECIFICATION".ljust(0x47, b"\0"))
        + catalog.to_bytes(4, "little"),
        18: b"\xffCD001\x01",
        catalog: _catalog(image),
        image: boot,
    }
    content = bytearray(SECTOR * (image + 1))
    for number, data in sectors.items():
        content[number * SECTOR : number * SECTOR + len(data)] = data
    path.write_bytes(content)
    return path


def _catalog(image: int) -> bytes:
    # The validation entry's words add up to nothing: 0x0001 + 0xaa55 + 0x55aa.
    validation = bytearray(32)
    validation[0] = 1
    validation[28:32] = b"\xaa\x55\x55\xaa"
    entry = bytearray(32)
    entry[0] = 0x88  # bootable, no emulation
    entry[6] = 4  # sectors of 512 bytes
    entry[8:12] = image.to_bytes(4, "little")
    return bytes(validation + entry)
