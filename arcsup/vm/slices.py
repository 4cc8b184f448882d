"""A VM's slices of host devices: made before its QEMU, kept over a crash, given back when it stays
down. The record names each before it is touched, so that a crash loses none and doubles none.
"""

from collections.abc import Awaitable, Collection, Iterable
from functools import partial
from pathlib import Path

import trio
from attrs import evolve

from arcsup.errors import ArcsupError, Transient
from arcsup.host.owned import OwnedSlice, SliceChoice
from arcsup.host.slices import create_slice, is_ready, prepare_slice, remove_slice
from arcsup.host.sysfs import Sysfs
from arcsup.host.vfio_nodes import has_cdevs
from arcsup.host.writer import comes_true
from arcsup.model import ConditionType, GpuRequest, Vm
from arcsup.plan.assignment import VmRequests, slots_of
from arcsup.plan.lifecycle import Phase
from arcsup.vm.commandline import SliceDevice
from arcsup.vm.iommufd import was_launched_with_iommufd
from arcsup.vm.managed import ManagedVm, Workshop
from arcsup.vm.options import FUNCTIONS_PER_SLOT

READY_SECONDS = 10.0
"""Seconds for a slice's node to appear and be usable: udev's rules run after the kernel's event."""

RETRY_SECONDS = 5.0
"""Seconds after which devices that could not be given back are tried again."""


class DeviceTrouble(Transient):
    """A device could not be had, through no fault of the VM: waited for, at no cost."""


async def take_slices(
    vm: ManagedVm, workshop: Workshop, *, iommufd: bool = False
) -> tuple[OwnedSlice, ...]:
    """Make the slices that were chosen for ``vm`` and return them, ready for QEMU.

    ``iommufd``: that QEMU has /dev/iommu.
    Those that it has and were not chosen again are given back; one that does not come back is
    kept in the record, and keeps nobody from another. Raises DeviceTrouble.
    """
    sysfs = Sysfs(workshop.places.sysfs)
    chosen = [await _prepare(choice, sysfs) for choice in vm.choices]
    known = {_identity(owned): owned for owned in vm.record.slices}
    # What was bound before must not be remembered as what it is bound to now.
    taken = tuple(_take_up(owned, known.get(_identity(owned))) for owned in chosen)
    wanted = {_identity(owned) for owned in taken}
    unwanted = (owned for owned in vm.record.slices if _identity(owned) not in wanted)
    stale = tuple(evolve(owned, left_over=True) for owned in unwanted)
    if taken or stale:
        await vm.save(workshop, slices=(*taken, *stale))
    vm.choices = ()  # The record names them from here on.
    left = [owned for owned in stale if not await give_back(vm, workshop, owned)]
    for owned in taken:
        await _guard(vm, workshop, owned, create_slice(owned, sysfs, beside=taken))
    # Two of one IOMMU group are usable only when both are bound.
    for owned in taken:
        if not await comes_true(partial(_usable, owned, sysfs, iommufd), seconds=READY_SECONDS):
            workshop.device_failed(owned)
            raise DeviceTrouble(f"{owned.id}: {is_ready(owned, sysfs, iommufd=iommufd)}")
        if _identity(owned) not in known:
            force = ", whatever of the host used it (force)" if owned.force else ""
            workshop.tell(vm.name, "device-taken", f"{_in_words(owned)}{force}", id=owned.id)
    if stale:
        await vm.save(workshop, slices=(*taken, *left))
    return taken


def _identity(owned: OwnedSlice) -> tuple[str, str, str | None]:
    """An mdev of the same uuid may be wanted of another type, or on another parent."""
    return owned.id, owned.parent, owned.type


def _take_up(owned: OwnedSlice, had: OwnedSlice | None) -> OwnedSlice:
    """Return what a VM had, for what asks for it now.

    Not what another boot of the host had, nor another device: what is seen now was before us then.
    """
    if had is None or had.boot != owned.boot or not _is_same_device(had, owned):
        return owned
    return evolve(had, slot=owned.slot, mac=owned.mac, left_over=False, adopted=False)


def _is_same_device(had: OwnedSlice, owned: OwnedSlice) -> bool:
    known = {each.address: each.identity for each in had.rebindings}
    return all(
        known.get(each.address, each.identity).may_be(each.identity) for each in owned.rebindings
    )


def _usable(owned: OwnedSlice, sysfs: Sysfs, iommufd: bool) -> bool:
    return not is_ready(owned, sysfs, iommufd=iommufd)


async def _prepare(choice: SliceChoice, sysfs: Sysfs) -> OwnedSlice:
    try:
        return await prepare_slice(choice, sysfs)
    except ArcsupError as error:
        # What is not there any more has not failed.
        raise DeviceTrouble(f"{choice.asked_by}: {error.message}", error.hint) from error


async def _guard(
    vm: ManagedVm, workshop: Workshop, owned: OwnedSlice, deed: Awaitable[None]
) -> None:
    try:
        await deed
    except ArcsupError as error:
        workshop.device_failed(owned)
        raise DeviceTrouble(f"{owned.asked_by}: {error.message}", error.hint) from error


async def release_slices(vm: ManagedVm, workshop: Workshop) -> bool:
    """Give back every slice of a VM that is down, of one that is up what is left over.

    Tells what does not come back; that stays in the record and is tried again. Returns whether all
    are back.
    """
    is_down = vm.phase is Phase.DOWN
    wanted_back = [owned for owned in vm.record.slices if is_down or owned.left_over]
    # There is one device of an id: what is left over of it on another card has gone with that card.
    taken = set() if is_down else {owned.id for owned in vm.record.slices_in_use}
    for owned in wanted_back:
        # Meanwhile the operator may have let it go; then it is nobody's.
        if owned in vm.record.slices and (
            owned.id in taken or await give_back(vm, workshop, owned)
        ):
            left = tuple(other for other in vm.record.slices if other is not owned)
            await vm.save(workshop, slices=left)
    if any(owned in vm.record.slices for owned in wanted_back):
        await trio.sleep(RETRY_SECONDS)
        return False
    vm.conditions.pop(ConditionType.DEVICES_RETURNED, None)
    return True


async def give_back(vm: ManagedVm, workshop: Workshop, owned: OwnedSlice) -> bool:
    """Give back one slice; tell, once, what keeps it from that, and what was left alone and why."""
    try:
        left_alone = await remove_slice(owned, Sysfs(workshop.places.sysfs))
    except ArcsupError as error:
        what = f"{owned.id}: {error.message}"
        told = vm.conditions.get(ConditionType.DEVICES_RETURNED)
        if told is None or told.message != what:
            workshop.tell(vm.name, "device-kept", what, id=owned.id)
        vm.set_condition(ConditionType.DEVICES_RETURNED, type(error).__name__, what, status=False)
        return False
    if left_alone:
        workshop.tell(vm.name, "device-left-alone", left_alone, id=owned.id)
    else:
        workshop.tell(vm.name, "device-returned", _in_words(owned), id=owned.id)
    return True


def find_lost_slices(vm: ManagedVm, workshop: Workshop) -> list[str]:
    """Return what is wrong with the slices of a VM that runs, one sentence each.

    A device that is pulled while QEMU has it open gives no event before QEMU lets go of it
    (measured), so somebody has to look.
    """
    sysfs = Sysfs(workshop.places.sysfs)
    iommufd = was_launched_with_iommufd(vm.record.launch)
    in_use = vm.record.slices_in_use
    found = (is_ready(owned, sysfs, iommufd=iommufd, in_use=True) for owned in in_use)
    return [why for why in found if why]


def find_cdev_slices(slices: Iterable[OwnedSlice], sysfs: Sysfs) -> frozenset[str]:
    """Return the ids of those that a QEMU with /dev/iommu opens by nodes of their own."""
    return frozenset(owned.id for owned in slices if has_cdevs(owned, sysfs))


def slice_devices(
    vm: Vm, slices: tuple[OwnedSlice, ...], *, by_iommufd: Collection[str] = ()
) -> tuple[SliceDevice, ...]:
    """Return the slices as QEMU's devices: one root port for each, companions beside their card.

    Network cards have the last ports, so that a further GPU moves none of them. ``by_iommufd`` are
    ids.
    """
    requests = requests_by_slot(vm)
    devices: list[SliceDevice] = []
    in_order = sorted(slices, key=lambda owned: owned.slot)
    networks = [owned for owned in in_order if owned.mac is not None]
    gpus = [owned for owned in in_order if owned.mac is None]
    last = max(FUNCTIONS_PER_SLOT, len(slices)) - 1
    for place, owned in enumerate(networks):
        path, iommufd = Path(owned.path), owned.id in by_iommufd
        devices.append(SliceDevice(f"nic{owned.slot}", path, last - place, iommufd=iommufd))
    for port, owned in enumerate(gpus):
        request = requests.get(owned.slot)
        display = request is not None and request.display
        name, path, iommufd = f"gpu{owned.slot}", Path(owned.path), owned.id in by_iommufd
        devices.append(SliceDevice(name, path, port, display=display, iommufd=iommufd))
        for function, companion in enumerate(owned.rebindings[1:], start=1):
            beside = path.with_name(companion.address)
            devices.append(
                SliceDevice(f"{name}-{function}", beside, port, function, iommufd=iommufd)
            )
    return tuple(devices)


def requests_by_slot(vm: Vm) -> dict[int, GpuRequest]:
    """Return what each slot of a VM asks for."""
    return dict(slots_of(VmRequests(vm.name, vm.uuid, vm.gpus)))


def _in_words(owned: OwnedSlice) -> str:
    what = f"{owned.type} " if owned.type else ""
    return f"{what}{owned.id} on {owned.parent}"
