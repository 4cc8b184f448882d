"""Proving that nobody has a device open before anything is taken from it."""

from collections.abc import Callable, Iterable

import trio

from arcsup.errors import Refused
from arcsup.host.holders import Holders
from arcsup.host.iommu import IommuGroups
from arcsup.host.sysfs import Sysfs

FindHolders = Callable[[], Holders]


async def require_free(sysfs: Sysfs, devices: Iterable[str], find: FindHolders) -> None:
    """Look who has the devices at these paths, or their groups, open.

    Raises Refused with the pids, or when some process could not be looked into: the kernel gives
    no EBUSY here, it sleeps until the last one has closed.
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
        if not holders.complete:
            raise Refused(
                f"who uses {name} cannot be told: some processes could not be looked into",
                "run arcsup's daemon as root",
            )
