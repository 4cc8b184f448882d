"""Slices of all kinds behind one interface: look, make, take back.

First ``prepare_slice``, whose answer goes into the ownership journal; only then ``create_slice``.
Each can be repeated after a crash at any instruction: what is there already is found, what is half
done is finished, and ``remove_slice`` undoes as much as there is.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

from arcsup.devices import Backend
from arcsup.errors import Terminal, Transient
from arcsup.host.accounts import Account
from arcsup.host.binding import (
    bind_slice,
    binding_obstacle,
    find_end_of_boot,
    find_stranger,
    observe_binding,
    require_unused,
    restore_slice,
)
from arcsup.host.cards import PCI
from arcsup.host.display import find_console, is_boot_display, observe_display
from arcsup.host.holders import find_holders
from arcsup.host.identity import boot_id
from arcsup.host.in_use import FindHolders
from arcsup.host.mdev import create_mdev, mdev_obstacle, remove_mdev
from arcsup.host.network_vfs import observe_vf_mac, return_vf_mac, set_vf_mac
from arcsup.host.owned import OwnedSlice, Rebinding, SliceChoice, device_path
from arcsup.host.sysfs import Sysfs
from arcsup.host.vendor_slices import create_vendor, find_type_id, remove_vendor, vendor_obstacle
from arcsup.host.vfio_nodes import DEV, find_nodes, find_shared_node
from arcsup.host.writer import unanswered_writes

__all__ = [
    "OwnedSlice",
    "Rebinding",
    "SliceChoice",
    "create_slice",
    "is_ready",
    "is_stuck",
    "prepare_slice",
    "remove_slice",
    "without_earlier_boots",
]


async def prepare_slice(choice: SliceChoice, sysfs: Sysfs) -> OwnedSlice:
    """Look at what a choice would change, and change nothing.

    Raises Terminal for the host's own display without ``forced``, Transient where something is
    not there yet, or the host uses it (without ``force``), Stuck where the kernel does not answer.
    """
    slice_id, slice_type = choice.id, choice.type
    rebindings: tuple[Rebinding, ...] = ()
    if choice.backend is Backend.MDEV:
        # The kernel writes uuids in lower case whatever it was given.
        slice_id = slice_id.lower()
    elif choice.backend is Backend.VENDOR_VFIO:
        slice_type = find_type_id(sysfs, slice_id, slice_type or "")
    else:
        addresses = (slice_id, *choice.companions)
        if choice.backend is Backend.PASSTHROUGH and not choice.forced:
            for address in addresses:
                _require_not_the_hosts(sysfs, address)
        if not choice.force:
            await require_unused(sysfs, addresses)
        rebindings = tuple([await observe_binding(sysfs, address) for address in addresses])
    return OwnedSlice(
        backend=choice.backend,
        slot=choice.slot,
        id=slice_id,
        card=choice.card,
        parent=choice.parent,
        type=slice_type,
        path=sysfs.full(device_path(choice.backend, slice_id)),
        rebindings=rebindings,
        vram_mib=choice.vram_mib,
        mac=choice.mac,
        former_mac=await observe_vf_mac(sysfs, slice_id) if choice.mac is not None else None,
        boot=boot_id(),
        force=choice.force,
    )


async def create_slice(
    owned: OwnedSlice, sysfs: Sysfs, *, beside: Iterable[OwnedSlice] = ()
) -> None:
    """Make a slice, or find it made; afterwards it was seen to be as wanted.

    ``beside`` are the slices that the same VM gets, made yet or not: what is in one IOMMU group
    with this one keeps nobody from it then.
    Raises Transient (taken meanwhile, busy, not there yet), Stuck (no answer from the kernel) or
    Terminal (an unknown type, no IOMMU, a group that is not viable).
    """
    match owned.backend:
        case Backend.MDEV:
            await create_mdev(owned, sysfs)
        case Backend.VENDOR_VFIO:
            await create_vendor(owned, sysfs)
        case Backend.SRIOV | Backend.PASSTHROUGH:
            if owned.mac is not None:
                await set_vf_mac(sysfs, owned.id, owned.mac)
            theirs = [it.address for other in beside for it in other.rebindings]
            await bind_slice(owned, sysfs, beside=theirs)


async def remove_slice(
    owned: OwnedSlice, sysfs: Sysfs, *, holders: FindHolders = find_holders
) -> str:
    """Take a slice back, or find it gone; what is not ours is left as it is.

    ``holders`` looks who has VFIO devices open. Returns why something was left alone, "" where
    nothing was. Raises Refused while somebody has this one, Stuck where the device does not come
    back.
    """
    if because := find_end_of_boot(owned):
        return because
    match owned.backend:
        case Backend.MDEV:
            await remove_mdev(owned, sysfs, holders)
        case Backend.VENDOR_VFIO:
            await remove_vendor(owned, sysfs, holders)
        case Backend.SRIOV | Backend.PASSTHROUGH:
            if owned.mac is not None and not find_stranger(owned.rebindings[0], sysfs):
                await return_vf_mac(owned, sysfs, holders)
            return await restore_slice(owned, sysfs, holders)
    return ""


def without_earlier_boots(slices: Iterable[OwnedSlice]) -> list[OwnedSlice]:
    """Return the slices of a journal that may still be as it tells.

    What an earlier boot of the host had is nobody's now: it was made anew, or is another device.
    """
    now = boot_id()
    return [owned for owned in slices if owned.boot in ("", now)]


def is_stuck(owned: OwnedSlice, sysfs: Sysfs) -> str:
    """Return that the kernel has not answered the taking back of a slice, in words; else "".

    Until it has, the slice can neither be made anew nor given to anybody.
    """
    prefix = f"{sysfs.full(owned.device)}/"
    path = next((path for path in unanswered_writes() if path.startswith(prefix)), None)
    return f"{owned.id} is stuck: the kernel does not answer at {path}" if path else ""


def is_ready(
    owned: OwnedSlice,
    sysfs: Sysfs,
    *,
    iommufd: bool = False,
    in_use: bool = False,
    account: Account | None = None,
    dev: Path = DEV,
) -> str:
    """Return what is missing until QEMU can open the slice; "" when nothing is.

    ``iommufd``: that QEMU has /dev/iommu. ``in_use``: it has opened the slice already, so only what
    is seen to be missing counts. ``account`` is whom it runs as (None: our own).
    """
    looks: Mapping[Backend, Callable[[OwnedSlice, Sysfs], str]] = {
        Backend.MDEV: mdev_obstacle,
        Backend.VENDOR_VFIO: partial(vendor_obstacle, in_use=in_use),
        Backend.SRIOV: binding_obstacle,
        Backend.PASSTHROUGH: binding_obstacle,
    }
    if obstacle := looks[owned.backend](owned, sysfs):
        return obstacle
    if sysfs.link_name(f"{owned.device}/iommu_group") is None:
        return f"{owned.id} has no IOMMU group"
    nodes = find_nodes(owned, sysfs, iommufd=iommufd, dev=dev)
    if not nodes:
        return f"{owned.id} has no node below {dev}/vfio yet"
    for each in (find_shared_node(owned, sysfs, iommufd=iommufd, dev=dev), *nodes):
        if missing := _node_obstacle(each, account):
            return missing
    return ""


def _node_obstacle(node: Path, account: Account | None) -> str:
    try:
        status = node.stat()
    except OSError:
        return f"{node} is not there yet"
    wanted = os.R_OK | os.W_OK
    is_open = os.access(node, wanted) if account is None else account.may(status, wanted)
    return "" if is_open else f"{node} may not be read and written by QEMU's user"


def _require_not_the_hosts(sysfs: Sysfs, address: str) -> None:
    path = f"{PCI}/{address}"
    real = sysfs.real(path)
    if real is None:
        raise Transient(f"{address} is not there")
    reason = observe_display(sysfs, path, real, find_console(sysfs))
    if not reason and is_boot_display(sysfs, path):
        reason = "it is the boot display"
    if reason:
        raise Terminal(
            f"{address} shows the host's own picture: {reason}",
            "take another card, or name this one's address in the request to have it all the same",
        )
