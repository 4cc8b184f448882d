"""The nodes below /dev by which QEMU opens a slice: the device's own (iommufd), or its group's.

With iommufd (kernel 6.6, CONFIG_VFIO_DEVICE_CDEV) each device has a node below /dev/vfio/devices,
and /dev/iommu holds what its VM's devices see of memory. Without it a node gives a whole IOMMU
group, and /dev/vfio/vfio holds the memory. While one way is open the kernel refuses the other for
the same group (EBUSY), so all functions of a slice go the same way.

Sources: Documentation/driver-api/vfio.rst, "VFIO Device cdev"; drivers/vfio/device_cdev.c.
"""

import os
from pathlib import Path

from arcsup.host.iommu import IommuGroups
from arcsup.host.owned import OwnedSlice
from arcsup.host.sysfs import Sysfs

DEV = Path("/dev")

IOMMU = Path("/dev/iommu")

DRIVERS = Path("/proc/devices")

_CDEV_REGION = "vfio-dev"
"""What VFIO calls its devices' nodes in /proc/devices."""


def offers_iommufd(iommu: Path = IOMMU, drivers: Path = DRIVERS) -> bool:
    """Tell whether this kernel gives devices by iommufd, and to this process's user."""
    # The node alone proves little: it may be there before the module is (modules.devname).
    return os.access(iommu, os.R_OK | os.W_OK) and lists_cdevs(drivers.read_text())


def lists_cdevs(drivers: str) -> bool:
    """Tell from the text of /proc/devices whether VFIO is loaded and gives devices nodes."""
    return any(line.split()[1:] == [_CDEV_REGION] for line in drivers.splitlines())


def has_cdevs(owned: OwnedSlice, sysfs: Sysfs) -> bool:
    """Tell whether the functions of a slice have nodes of their own; one not made yet will."""
    return all(_may_have_cdev(sysfs, device) for device in owned.devices)


def find_nodes(
    owned: OwnedSlice, sysfs: Sysfs, *, iommufd: bool, dev: Path = DEV
) -> tuple[Path, ...]:
    """Return the nodes that are a slice's alone, there yet or not; none where it has none yet.

    ``iommufd``: the VM's QEMU has /dev/iommu, and uses it where the devices can.
    """
    if iommufd and has_cdevs(owned, sysfs):
        names = [name for it in owned.devices for name in sysfs.names(f"{it}/vfio-dev")]
        return tuple(dev / "vfio/devices" / name for name in names)
    groups = IommuGroups(sysfs)
    numbers = {groups.number_of(device): None for device in owned.devices}
    return tuple(dev / "vfio" / str(number) for number in numbers if number is not None)


def find_shared_node(owned: OwnedSlice, sysfs: Sysfs, *, iommufd: bool, dev: Path = DEV) -> Path:
    """Return the node that all VMs open beside those."""
    return dev / ("iommu" if iommufd and has_cdevs(owned, sysfs) else "vfio/vfio")


def _may_have_cdev(sysfs: Sysfs, device: str) -> bool:
    # Without the option, and for a device that has no IOMMU, vfioN is there and no dev in it.
    names = sysfs.names(f"{device}/vfio-dev")
    return all(sysfs.has(f"{device}/vfio-dev/{name}/dev") for name in names)
