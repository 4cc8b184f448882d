"""How much memory this host's GPUs show on the PCI bus: a guest needs room for their BARs.

Source: the kernel's Documentation/PCI/sysfs-pci.rst (``resource``: a line for each BAR with start,
end and flags; the seventh is the expansion ROM) and include/linux/ioport.h for the flags.
"""

import re

from attrs import frozen

from arcsup.host.cards import PCI, is_gpu_class, offers_vgpus
from arcsup.host.sysfs import Sysfs

_LINE = re.compile(r"0x([0-9a-f]{1,16}) 0x([0-9a-f]{1,16}) 0x([0-9a-f]{1,16})")
_MEMORY, _PREFETCHABLE, _WIDE = 0x200, 0x2000, 0x100000
_BARS_AND_ROM = 7


@frozen
class BarSizes:
    """Bytes of memory BARs: those that may be anywhere, and those that must be below 4 GiB.

    Behind a bridge only a prefetchable BAR of 64 bits may be anywhere (PCI-to-PCI Bridge
    Architecture 1.2, section 3.2.5.6: the other window has 32 bits).
    """

    high: int = 0
    low: int = 0


def observe_largest(sysfs: Sysfs) -> BarSizes:
    """Return the most that one GPU of this host, or a part of one, has of each. Never raises."""
    found = [BarSizes()]
    for address in sysfs.names(PCI):
        path = f"{PCI}/{address}"
        if is_gpu_class(sysfs.hex_digits(f"{path}/class", 6)) or offers_vgpus(sysfs, path):
            found.append(parse_resources(sysfs.text(f"{path}/resource") or ""))
    return BarSizes(max(it.high for it in found), max(it.low for it in found))


def parse_resources(text: str) -> BarSizes:
    """Return the sums of one function; what is no line of a resource counts nothing."""
    high = low = 0
    for match in map(_LINE.fullmatch, text.splitlines()[:_BARS_AND_ROM]):
        if match is None:
            continue
        start, end, flags = (int(it, 16) for it in match.groups())
        if not flags & _MEMORY or end <= start:
            continue
        if flags & _PREFETCHABLE and flags & _WIDE:
            high += end - start + 1
        else:
            low += end - start + 1
    return BarSizes(high, low)
