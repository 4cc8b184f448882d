"""Network cards with SR-IOV, and which of their virtual functions can be handed out.

Source: Documentation/ABI/testing/sysfs-bus-pci (physfn, virtfn, sriov_totalvfs) and sysfs-class-net
(operstate).
"""

from collections.abc import Mapping

from arcsup.devices import NetworkCard, NetworkVf
from arcsup.host.cards import PCI, observe_numa_node
from arcsup.host.holders import Holders
from arcsup.host.host_use import find_network_use
from arcsup.host.iommu import IommuGroups, is_vfio_driver
from arcsup.host.sriov import find_vfs
from arcsup.host.sysfs import Sysfs
from arcsup.model import VmName

_NETWORK_CLASS = "02"


def is_network_card(sysfs: Sysfs, path: str) -> bool:
    """Tell whether a PCI function is a network controller that can have virtual functions."""
    is_network = sysfs.hex_digits(f"{path}/class", 6).startswith(_NETWORK_CLASS)
    return is_network and sysfs.has(f"{path}/sriov_totalvfs")


def observe_network_cards(
    sysfs: Sysfs, groups: IommuGroups, owners: Mapping[str, VmName], holders: Holders
) -> tuple[NetworkCard, ...]:
    """Return the network cards of the tree, in the order of their addresses."""
    paths = {address: f"{PCI}/{address}" for address in sysfs.names(PCI)}
    return tuple(
        NetworkCard(
            address=address,
            vendor=sysfs.hex_digits(f"{path}/vendor", 4),
            device=sysfs.hex_digits(f"{path}/device", 4),
            driver=sysfs.link_name(f"{path}/driver"),
            numa_node=observe_numa_node(sysfs, path),
            vfs_total=sysfs.count(f"{path}/sriov_totalvfs") or 0,
            vfs=tuple(
                _observe_vf(sysfs, groups, vf, owners, holders)
                for vf in find_vfs(sysfs, address).values()
            ),
        )
        for address, path in sorted(paths.items())
        if is_network_card(sysfs, path)
    )


def _observe_vf(
    sysfs: Sysfs,
    groups: IommuGroups,
    address: str,
    owners: Mapping[str, VmName],
    holders: Holders,
) -> NetworkVf:
    path = f"{PCI}/{address}"
    group, vm = groups.number_of(path), owners.get(address)
    obstacle = reserved = ""
    driver = sysfs.link_name(f"{path}/driver")
    if group is None:
        obstacle = "it has no IOMMU group: the IOMMU is off (intel_iommu=on, amd_iommu=on)"
    elif blockers := groups.blockers(group, {address}):
        obstacle = "; ".join(blockers)
    elif vm is None and is_vfio_driver(sysfs, path, driver):
        devices = sysfs.names(f"{path}/vfio-dev")
        if holders.of(group, devices[0] if devices else None):
            obstacle = "in use by somebody else"
        else:
            # Put there at boot, or by another manager: only the operator can tell.
            reserved = (
                f"bound to {driver}, and not by arcsup; `parent: {address}` in the request takes it"
            )
    elif use := find_network_use(sysfs, path):
        obstacle = f"it {use}"
    return NetworkVf(address, group, vm, obstacle, reserved)
