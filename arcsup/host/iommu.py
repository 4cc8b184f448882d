"""IOMMU groups: who is in one, and who keeps it from being handed out.

VFIO gives a group to user space only as a whole. Source: drivers/vfio/vfio_main.c and
drivers/iommu/iommu.c (driver_managed_dma), Documentation/driver-api/vfio.rst.
"""

from collections.abc import Collection

from attrs import define, field

from arcsup.devices import IommuGroup
from arcsup.host.sysfs import Sysfs

_BRIDGES = ("0604", "0609")
"""PCI-to-PCI bridges; others (host, ISA) count like any device."""

_HARMLESS_DRIVERS = ("pci-stub", "pcieport")
"""They do no DMA of their own."""

_NO_IOMMU = "vfio-noiommu"
"""The name of a group that was made without an IOMMU behind it."""


def is_vfio_driver(sysfs: Sysfs, device: str, driver: str | None) -> bool:
    """Tell whether VFIO has the device: by its vfio-dev (kernel 6.0), else by its driver's name."""
    if driver is None:
        return False
    return "vfio" in driver or sysfs.is_folder(f"{device}/vfio-dev")


@define(eq=False)
class IommuGroups:
    """The groups of one look; a member that many ask about is looked at once."""

    sysfs: Sysfs
    _blocking: dict[str, str] = field(factory=dict)

    def number_of(self, device: str) -> int | None:
        """Return the group of the device at path ``device``; None where no IOMMU has it."""
        name = self.sysfs.link_name(f"{device}/iommu_group")
        if name is None:
            return None
        if not (name.isascii() and name.isdigit() and len(name) < 10):
            self.sysfs.fault(f"{device}/iommu_group", f"leads to no group: {name[:40]!r}")
            return None
        return int(name)

    def observe(self, number: int, along: Collection[str]) -> IommuGroup:
        """Return a group; ``along`` are the members that would be handed out together."""
        folder = f"kernel/iommu_groups/{number}"
        members = self.members(number)
        blockers = list(self.blocking(number, along).values())
        if not set(along) & set(members):
            blockers.append(f"group {number} does not tell its members")
        if self.sysfs.text(f"{folder}/name") == _NO_IOMMU:
            blockers.append(f"group {number} has no IOMMU behind it (noiommu mode)")
        return IommuGroup(number, tuple(members), tuple(blockers))

    def blockers(self, number: int | None, along: Collection[str]) -> tuple[str, ...]:
        """Return only what keeps a group from being viable; nothing where there is no group."""
        return () if number is None else self.observe(number, along).blockers

    def blocking(self, number: int, along: Collection[str]) -> dict[str, str]:
        """Return the members that keep a group from being viable, each with a sentence."""
        folder = f"kernel/iommu_groups/{number}"
        others = (member for member in self.members(number) if member not in along)
        found = {member: self._blocker(folder, member) for member in others}
        return {member: blocker for member, blocker in found.items() if blocker}

    def members(self, number: int) -> list[str]:
        """Return the devices of a group, in order."""
        return self.sysfs.names(f"kernel/iommu_groups/{number}/devices")

    def is_bridge(self, number: int, member: str) -> bool:
        """Tell whether a member is a bridge, which stays with the host."""
        device = f"kernel/iommu_groups/{number}/devices/{member}"
        return self.sysfs.hex_digits(f"{device}/class", 6).startswith(_BRIDGES)

    def _blocker(self, folder: str, member: str) -> str:
        if member not in self._blocking:
            self._blocking[member] = self._judge(f"{folder}/devices/{member}", member)
        return self._blocking[member]

    def _judge(self, device: str, member: str) -> str:
        driver = self.sysfs.link_name(f"{device}/driver")
        if driver is None or driver in _HARMLESS_DRIVERS:
            return ""
        if is_vfio_driver(self.sysfs, device, driver):
            return ""
        if self.sysfs.hex_digits(f"{device}/class", 6).startswith(_BRIDGES):
            return ""
        return f"{member} is in use by the host's driver {driver}"
