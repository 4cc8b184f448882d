"""Proving that nobody has a device open before anything is taken from it."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import trio

from arcsup.errors import Refused
from arcsup.host.cards import PCI
from arcsup.host.holders import Holders, describe_process
from arcsup.host.iommu import IommuGroups, is_vfio_driver
from arcsup.host.sysfs import Sysfs

DEV = Path("/dev")

FindHolders = Callable[[], Holders]


async def require_free(
    sysfs: Sysfs, devices: Iterable[str], find: FindHolders, *, dev: Path = DEV
) -> None:
    """Look who has the devices at these paths, or their groups, open.

    Raises Refused with the pids, or with the process that could not be looked into, unless the
    kernel shows that nobody has the device's group, or VFIO does not have the device: what is taken
    away gives no EBUSY, it sleeps until the last one has closed.
    """
    # Thousands of small reads in /proc.
    holders = await trio.to_thread.run_sync(find)
    groups = IommuGroups(sysfs)
    for device in devices:
        names = sysfs.names(f"{device}/vfio-dev")
        pids = holders.of(groups.number_of(device), names[0] if names else None)
        name = device.rpartition("/")[2]
        if pids:
            who = ", ".join(str(pid) for pid in pids)
            raise Refused(
                f"{name} is in use by process {who}",
                "nothing was changed: end that process first",
            )
        if holders.unseen and not _has_no_user(sysfs, device, groups.number_of(device), dev):
            more = f" and {len(holders.unseen) - 1} more" if len(holders.unseen) > 1 else ""
            who = f"{describe_process(holders.unseen[0])}{more}"
            raise Refused(
                f"who uses {name} cannot be told: {who} could not be looked into",
                "let arcsup's daemon look into that process (as root), or end it",
            )


def _has_no_user(sysfs: Sysfs, device: str, group: int | None, dev: Path) -> bool:
    """Tell whether the kernel shows that nobody has a device, whoever cannot be looked into.

    It gives a group to one at a time, and not while one of its devices is open by a node of its own
    (vfio_group_fops_open in drivers/vfio/group.c: EBUSY). Asked only in doubt, because for that
    moment nobody else gets it. What no VFIO driver has, nobody has by VFIO: it goes only after the
    last one has closed (vfio_unregister_group_dev in drivers/vfio/vfio_main.c).
    """
    if not _may_be_vfios(sysfs, device):
        return True
    try:
        os.close(os.open(dev / "vfio" / str(group), os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK))
    except OSError:
        return False
    return True


def _may_be_vfios(sysfs: Sysfs, device: str) -> bool:
    # Before Linux 6.0 nothing but its driver told so of an mdev, and those have many names.
    if not device.startswith(f"{PCI}/") or not sysfs.is_folder(device):
        return True
    return is_vfio_driver(sysfs, device, sysfs.link_name(f"{device}/driver"))
