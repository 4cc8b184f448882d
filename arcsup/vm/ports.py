"""PCIe root ports, and the room for BARs that firmware sets aside behind those that are empty.

A guest's kernel cannot widen a port's window once it runs: without room of its own, SeaBIOS gives
a port 2 MiB, and a GPU that is plugged there has no memory (measured: QEMU 7.2, SeaBIOS 1.16.2).
Sources: QEMU's docs/pcie_pci_bridge.txt and hw/pci-bridge/gen_pcie_root_port.c (``mem-reserve``,
``pref64-reserve``); edk2's OvmfPkg/PciHotPlugInitDxe, which takes the same hints, and
OvmfPkg/Library/PlatformInitLib/MemDetect.c for the window that all 64-bit BARs share.
"""

import re
from collections.abc import Iterator, Sequence

from attrs import field, frozen

from arcsup.errors import Terminal
from arcsup.host.bars import BarSizes
from arcsup.model import Argv
from arcsup.vm.options import FUNCTIONS_PER_SLOT, AccelName, Slot

SPARE_PORTS = 4
"""PCIe root ports that every VM has, so that the first GPU moves nothing else."""

GIB, MIB = 2**30, 2**20

USUAL_HIGH, LEAST_HIGH = 8 * GIB, GIB
"""Bytes above 4 GiB for each empty port, and where the guest has too few addresses for that. The
host's cards may not tell what comes: a vGPU has 256 MiB or more, a card may be plugged later."""

LEAST_LOW, MOST_LOW = 32 * MIB, 64 * MIB
"""Bytes below 4 GiB for each empty port: NVIDIA's registers take 16 MiB. Eight times the most have
room in what q35 leaves there (measured under SeaBIOS and OVMF, with 4 GiB of memory)."""

WINDOW_OF_OLD_OVMF = 32 * GIB
"""What OVMF before 2022.11 has for 64-bit BARs, whatever the CPU; since then an eighth of all."""

DEFAULT_ADDRESS_BITS = 40
"""Of QEMU's CPUs that do not have the host's (target/i386/cpu.c, TCG_PHYS_ADDR_BITS)."""


@frozen
class Room:
    """What empty ports are planned by: the guest's physical address bits, and the host's GPUs."""

    address_bits: int = DEFAULT_ADDRESS_BITS
    largest: BarSizes = field(factory=BarSizes)


def find_address_bits(model: str, accel: AccelName, host: int | None) -> int:
    """Return how many physical address bits a guest's CPU has; ``host`` are the host's own.

    ``model`` is as in the VM's file, with features that may name them. Where they are not known,
    they are what any QEMU has. Source: QEMU's target/i386/host-cpu.c.
    """
    name = model.partition(",")[0]
    bits = DEFAULT_ADDRESS_BITS
    if accel == "kvm" and name in ("host", "max") and host is not None:
        bits = host
    for match in re.finditer(r"\bphys-bits(-limit)?=(\d{1,2})\b", model):
        bits = min(bits, int(match[2])) if match[1] else int(match[2])
    return min(max(bits, 36), 52)


def port_args(taken: Sequence[int], room: Room) -> Argv:
    """Return the root ports; ``taken`` are the numbers of those that have a device from the start.

    A port that has one needs no room set aside: firmware gives it what its device has.

    Raises:
        Terminal: there are more devices than ports.
    """
    count = _count_ports(taken)
    if count > FUNCTIONS_PER_SLOT:
        raise Terminal(
            f"{count} host devices in one VM", hint=f"at most {FUNCTIONS_PER_SLOT} have room"
        )
    empty = _find_empty(taken)
    low = min(max(_above(room.largest.low), LEAST_LOW), MOST_LOW)
    reserved = dict(zip(empty, _share_out(len(empty), room), strict=True))
    argv: list[str] = []
    for port in range(count):
        place = f"bus=pcie.0,addr={Slot.PORTS:#x}.{port:#x}"
        more = ",multifunction=on" if port == 0 else ""
        if port in reserved:
            more += f",mem-reserve={low // MIB}M,pref64-reserve={reserved[port] // MIB}M"
        argv += ["-device", f"pcie-root-port,id=port{port},chassis={port + 1},{place}{more}"]
    return tuple(argv)


def window_args(taken: Sequence[int], room: Room, given: Argv) -> Argv:
    """Return what has OVMF make its window for 64-bit BARs wide enough for the ports' room.

    ``given`` are the arguments of the VM's file, which may say so themselves: QEMU takes no file
    of its firmware configuration twice. Source: edk2's OvmfPkg/README, "opt/ovmf/X-PciMmio64Mb".
    """
    total = sum(_share_out(len(_find_empty(taken)), room))
    name = "opt/ovmf/X-PciMmio64Mb"
    if 2 * total <= WINDOW_OF_OLD_OVMF or any(name in it for it in given):
        return ()
    return ("-fw_cfg", f"name={name},string={_above(2 * total - 1) // MIB}")


def _count_ports(taken: Sequence[int]) -> int:
    return max([SPARE_PORTS, *(port + 1 for port in taken)])


def _find_empty(taken: Sequence[int]) -> list[int]:
    return [port for port in range(_count_ports(taken)) if port not in taken]


def _share_out(count: int, room: Room) -> Iterator[int]:
    """Yield bytes above 4 GiB for each empty port, the first ones first: they are used first.

    All together take half of what OVMF has for BARs, an eighth of all addresses: where that is
    not enough it gives some devices none, and the other half is for those that are there at the
    start (measured: with more, ports got no window at all).
    """
    left = 1 << (room.address_bits - 4)
    wanted = max(_above(room.largest.high), USUAL_HIGH)
    for later in reversed(range(count)):
        spare = left - later * LEAST_HIGH
        share = next((it for it in (wanted, USUAL_HIGH) if it <= spare), LEAST_HIGH)
        left -= share
        yield share


def _above(size: int) -> int:
    """Return the power of two above ``size``.

    SeaBIOS does not align a window by its size, and a BAR is aligned by its own: only in one of
    twice its size it has a place for certain.
    """
    return 1 << size.bit_length()
