"""Which of the kernel's VFIO drivers a PCI function is on, or goes to.

Beside vfio-pci there are variants for single devices (nvgrace-gpu, mlx5, xe …), whose guests lack
something with the plain one. They name the devices that they are for with ``vfio_pci:`` in
modules.alias (include/linux/pci.h, PCI_DRIVER_OVERRIDE_DEVICE_VFIO); libvirt chooses so, too.
"""

import os
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from arcsup.host.iommu import is_vfio_driver
from arcsup.host.sysfs import Sysfs

VFIO_PCI = "vfio-pci"

DRIVERS = "bus/pci/drivers"

_VENDORS_OWN = "nvidia"
"""It has a vfio-dev for its own virtual functions, which are dead on any other driver."""


def is_on_vfio(sysfs: Sysfs, path: str) -> bool:
    """Tell whether a VFIO driver that hands out whole functions has the one at ``path``."""
    driver = sysfs.link_name(f"{path}/driver")
    return driver != _VENDORS_OWN and is_vfio_driver(sysfs, path, driver)


def find_vfio_driver(sysfs: Sysfs, path: str, *, aliases: Path | None = None) -> str:
    """Return the VFIO driver for the function at ``path``: its variant where that is loaded.

    Of several the one with the fewest wildcards. ``aliases`` is the kernel's modules.alias.
    """
    aliases = aliases or Path(f"/lib/modules/{os.uname().release}/modules.alias")
    alias = (sysfs.text(f"{path}/modalias") or "").replace("pci:", "vfio_pci:", 1)
    loaded = {name.replace("-", "_"): name for name in sysfs.names(DRIVERS)}
    fitting = [
        (pattern.count("*"), loaded[module])
        for pattern, module in _vfio_aliases(aliases)
        if module in loaded and module != "vfio_pci" and fnmatchcase(alias, pattern)
    ]
    return min(fitting)[1] if fitting else VFIO_PCI


def _vfio_aliases(aliases: Path) -> Iterator[tuple[str, str]]:
    """Yield pattern and module of each line ``alias vfio_pci:PATTERN MODULE``."""
    try:
        lines = aliases.read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return  # A kernel without modules has the drivers built in, and then no such list.
    for line in lines:
        words = line.split()
        if len(words) == 3 and words[1].startswith("vfio_pci:"):
            yield words[1], words[2].replace("-", "_")
