"""Mediated device types that parents offer, and the devices that were made of them.

Source: Documentation/ABI/testing/sysfs-bus-vfio-mdev, drivers/vfio/mdev/mdev_sysfs.c.
"""

import time
from collections.abc import Iterable, Sequence

from attrs import frozen

from arcsup.devices import Backend, SliceType
from arcsup.host.sysfs import Sysfs
from arcsup.host.vgpu_types import most_of, vram_of

DEVICES = "bus/mdev/devices"

_LINK_TRIES = 5
_LINK_PAUSE = 0.004
"""The kernel makes ``mdev_type`` after it has told of the device; seconds between looks for it."""


@frozen
class Mdev:
    """A mediated device; ``parent`` is its parent's resolved path, ``type`` None when not known."""

    uuid: str
    path: str
    parent: str
    type: str | None


@frozen
class Offer:
    """What one parent offers; ``unsettled`` are types whose driver is still binding."""

    types: tuple[SliceType, ...] = ()
    unsettled: tuple[str, ...] = ()


def observe_offer(sysfs: Sysfs, path: str, parent: str) -> Offer:
    """Return the types of the parent at ``path``, whose address (or name) is ``parent``."""
    folder = f"{path}/mdev_supported_types"
    ids = [name for name in sysfs.names(folder) if sysfs.is_folder(f"{folder}/{name}")]
    # The kernel puts the bus's name where the driver's is not known yet (dev_driver_string()).
    unsettled = tuple(name for name in ids if name.startswith("pci-"))
    types = (
        _observe_type(sysfs, f"{folder}/{name}", name, parent)
        for name in ids
        if name not in unsettled
    )
    return Offer(tuple(types), unsettled)


def _observe_type(sysfs: Sysfs, path: str, type_id: str, parent: str) -> SliceType:
    name = sysfs.text(f"{path}/name") or type_id  # Optional before kernel 6.1.
    description = sysfs.text(f"{path}/description") or ""
    return SliceType(
        id=type_id,
        name=name,
        vram_mib=vram_of(type_id, name, description),
        available=sysfs.count(f"{path}/available_instances"),
        maximum=most_of(description),
        device_api=sysfs.text(f"{path}/device_api") or "",
        parent=parent,
        backend=Backend.MDEV,
    )


def find_parents(sysfs: Sysfs, mdevs: Sequence[Mdev]) -> list[str]:
    """Return the resolved paths of parents that the mdev class or a device of theirs leads to.

    PCI parents are found among the PCI devices as well: the class is there only while the module
    is, and is no authority.
    """
    linked = (sysfs.real(f"class/mdev_bus/{name}") for name in sysfs.names("class/mdev_bus"))
    found = {path for path in linked if path is not None}
    return sorted(found | {mdev.parent for mdev in mdevs})


def observe_mdevs(sysfs: Sysfs) -> tuple[Mdev, ...]:
    """Return all mediated devices; one whose parent cannot be told is left out and a fault."""
    found = [_observe_mdev(sysfs, name) for name in sysfs.names(DEVICES)]
    return tuple(_await_types(sysfs, [mdev for mdev in found if mdev is not None]))


def _observe_mdev(sysfs: Sysfs, name: str) -> Mdev | None:
    path = f"{DEVICES}/{name}"
    real = sysfs.real(path)
    if real is None:
        return None
    parent = real.rpartition("/")[0]
    if not parent.startswith("devices/"):
        sysfs.fault(path, "has no parent")
        return None
    return Mdev(name.lower(), path, parent, sysfs.link_name(f"{path}/mdev_type"))


def _await_types(sysfs: Sysfs, mdevs: Sequence[Mdev]) -> Iterable[Mdev]:
    """Look again for links that are about to be made; one that does not come is a fault."""
    missing = {mdev.uuid: mdev for mdev in mdevs if mdev.type is None}
    types: dict[str, str] = {}
    for _ in range(_LINK_TRIES if missing else 0):
        time.sleep(_LINK_PAUSE)
        links = {uuid: sysfs.link_name(f"{m.path}/mdev_type") for uuid, m in missing.items()}
        types = {uuid: name for uuid, name in links.items() if name is not None}
        if len(types) == len(missing):
            break
    for uuid, mdev in missing.items():
        if uuid not in types:
            sysfs.fault(mdev.path, "its type is not known: mdev_type is not there")
    return [
        Mdev(mdev.uuid, mdev.path, mdev.parent, mdev.type or types.get(mdev.uuid)) for mdev in mdevs
    ]
