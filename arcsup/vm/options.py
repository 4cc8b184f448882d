"""What every part of the command line shares: QEMU's quoting, and who sits where on the PCI bus.

The places are fixed by role, so that adding or removing one optional thing never moves another:
to a guest (Windows above all) a device that moved is new hardware.
"""

from enum import IntEnum
from typing import Literal

from arcsup.errors import Terminal

AccelName = Literal["kvm", "tcg"]
"""What really runs the guest's instructions, once ``auto`` is decided."""

FUNCTIONS_PER_SLOT = 8
"""PCI has three bits for the function (PCI Local Bus Specification 3.0, section 3.2.2.3.4)."""


class Slot(IntEnum):
    """First slot on ``pcie.0`` of each role. q35 itself uses 0x00 and 0x1f."""

    DISPLAY = 0x01
    USB = 0x02
    SERIAL = 0x03
    RNG = 0x04
    PANIC = 0x05
    SCSI = 0x06
    LOOKING_GLASS = 0x07
    SCREAM = 0x08
    DISKS = 0x10
    NETWORKS = 0x14
    SHARES = 0x16
    GPUS = 0x18
    PORTS = 0x19
    SOUND = 0x1B


def escape(value: object) -> str:
    """Return a value as it stands inside a QEMU option string: a comma is doubled.

    Source: qemu-doc, "Introduction": "Options may contain a comma by doubling it".
    """
    return str(value).replace(",", ",,")


def on_off(value: bool) -> str:
    """Return QEMU's word for a boolean."""
    return "on" if value else "off"


def pci_place(first: Slot, index: int, *, slots: int, what: str) -> str:
    """Return ``addr=…`` of the index-th device of a role that has several, eight to a slot.

    Raises:
        Terminal: the role has no more room.
    """
    slot, function = divmod(index, FUNCTIONS_PER_SLOT)
    if slot >= slots:
        limit = slots * FUNCTIONS_PER_SLOT
        raise Terminal(f"more than {limit} {what}", hint=f"use at most {limit}")
    # Functions other than 0 are looked for only where function 0 says that it has siblings.
    siblings = ",multifunction=on" if function == 0 else ""
    return f"bus=pcie.0,addr={first + slot:#x}.{function:#x}{siblings}"
