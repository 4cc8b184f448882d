"""What AMD's GIM tells of the virtual functions of a card: their type and their video memory.

Source: AMD's GPU-IOV module for MxGPU cards (S7150), ``gim_monitor.c`` and
``gim_monitor_ioctl.c``: a physical function has the file ``gpuvf``, with a line ``VF #NUMBER`` for
each virtual function and ``KEY:VALUE`` lines below it. ``BusId`` is its PCI address, ``Type`` the
card's name, ``VF Size`` its video memory (``1920 M``). The GIM of Instinct cards has no such file.
"""

import re
from collections.abc import Iterator

from attrs import frozen

from arcsup.host.sysfs import Sysfs
from arcsup.model import MiB

_SIZE = re.compile(r"(\d{1,7}) M")


@frozen
class GimVf:
    """A virtual function as GIM tells of it; ``vram_mib`` None where its size is no number."""

    address: str
    type: str
    vram_mib: MiB | None


def observe_gim_vfs(sysfs: Sysfs, path: str) -> list[GimVf]:
    """Return the virtual functions that GIM tells of; none where another driver has the card."""
    if not sysfs.has(f"{path}/gpuvf"):
        return []
    return list(parse_gpuvf(sysfs.text(f"{path}/gpuvf") or ""))


def parse_gpuvf(text: str) -> Iterator[GimVf]:
    """Yield the virtual functions of a ``gpuvf`` file that have an address."""
    for block in re.split(r"(?m)^VF #\d+$", text)[1:]:
        lines = (line.strip().partition(":") for line in block.splitlines())
        told = {key: value.strip() for key, _, value in lines}
        size = _SIZE.fullmatch(told.get("VF Size", ""))
        if address := told.get("BusId", "").lower():
            yield GimVf(address, told.get("Type", ""), MiB(int(size[1])) if size else None)
