"""GPUs that come to a running VM and go from it, when its file asks for more of them or for fewer.

A slice is made and journalled before QEMU gets it, and taken back after the guest has let it go.
Until QEMU has it for good it is ``left_over`` in the journal, so that the next daemon, after a
crash at any step, gives it back, or finds QEMU with it and goes on from there.

Sources: QAPI device_add, device_del, DEVICE_DELETED, DEVICE_UNPLUG_GUEST_ERROR.
"""

import re
from collections.abc import Sequence
from functools import partial

import trio
from attrs import evolve
from qemu.qmp import ExecInterruptedError, QMPError
from qemu.qmp.qmp_client import ExecuteError

from arcsup.errors import ArcsupError, Refused, Transient
from arcsup.host.owned import OwnedSlice, SliceChoice
from arcsup.host.slices import create_slice, is_ready, prepare_slice
from arcsup.host.sysfs import Sysfs
from arcsup.host.vfio_nodes import find_nodes, has_cdevs
from arcsup.host.writer import comes_true
from arcsup.model import ConditionType, GpuKind, GpuRequest
from arcsup.vm.belongings import lend_files
from arcsup.vm.iommufd import OBJECT, was_launched_with_iommufd
from arcsup.vm.loans import Access, WantedFile
from arcsup.vm.managed import ManagedVm, Workshop
from arcsup.vm.presence import find_absent
from arcsup.vm.privileges import lockable_bytes
from arcsup.vm.process import limit_locked_memory
from arcsup.vm.qmp import Qmp, list_devices
from arcsup.vm.slices import READY_SECONDS, give_back, requests_by_slot

_PORT = re.compile(r"port\d+")
_SLICE = re.compile(r"(gpu|nic)\d+(-\d+)?")

PLUG_SECONDS = 60.0
"""Seconds for QEMU to take a device: it opens it and maps all of the guest's memory for it."""

UNPLUG_SECONDS = 30.0
"""Seconds for the guest to let a device go; one that has not booted does not hear of it."""


def is_live_change(old: Sequence[GpuRequest], new: Sequence[GpuRequest]) -> bool:
    """Tell whether a running VM can get from one list to the other: only the ends differ.

    What is in the middle names the others by its number. A slice with a display is part of QEMU's
    start (vfio-pci-nohotplug), and a virtio GPU has no slice.
    """
    shorter, longer = sorted((tuple(old), tuple(new)), key=len)
    more = longer[len(shorter) :]
    plugs = all(it.kind is not GpuKind.VIRTIO and not it.display for it in more)
    return bool(more) and longer[: len(shorter)] == shorter and plugs


def wants_change(vm: ManagedVm) -> bool:
    """Tell whether a running VM's file asks for GPUs to come or go, and that may be tried."""
    return (
        vm.running is not None
        and vm.gpus_refused != vm.vm
        and is_live_change(vm.running.gpus, vm.vm.gpus)
    )


async def change_gpus(vm: ManagedVm, workshop: Workshop) -> None:
    """Bring a running VM's GPUs in line with its file; what is refused is told and stays pending.

    ``vm.choices`` are the slices that were chosen for the file's version.
    """
    wanted = vm.vm
    try:
        await _change(vm, workshop, vm.choices)
    except (ArcsupError, QMPError, OSError, trio.TooSlowError) as error:
        why = str(error) or "QEMU did not answer in time"
        vm.gpus_refused = wanted
        vm.set_condition(ConditionType.GPUS_CHANGED, "Refused", why, status=False)
        workshop.tell(vm.name, "gpus-refused", f"its GPUs stay as they were: {why}")
    finally:
        vm.changing_gpus, vm.choices = False, ()
        workshop.changed()


async def _change(vm: ManagedVm, workshop: Workshop, choices: Sequence[SliceChoice]) -> None:
    qmp, running = vm.qmp, vm.running
    if qmp is None or running is None:
        raise Transient("QEMU's monitor is silent")
    slots, had = set(requests_by_slot(vm.vm)), set(requests_by_slot(running))
    await _detach(vm, workshop, qmp, had - slots)
    attached = await _settle_earlier(vm, workshop, qmp, slots)
    needed = {slot for slot, it in requests_by_slot(vm.vm).items() if not it.optional}
    missing = slots - {it.slot for it in vm.record.slices_in_use if it.mac is None}
    missing -= {owned.slot for owned in attached}
    for choice in choices:
        if choice.mac is None and choice.slot in missing:
            attached.append(await _attach(vm, workshop, qmp, choice))
            missing.discard(choice.slot)
    if missing & needed:
        raise Transient(f"there is nothing for gpus[{min(missing & needed)}] now")
    await _make_good(vm, workshop, attached, slots)


async def _make_good(
    vm: ManagedVm, workshop: Workshop, attached: Sequence[OwnedSlice], slots: set[int]
) -> None:
    """Write down that QEMU runs with what the file asks for."""
    launch, running = vm.record.launch, vm.running
    if launch is None or running is None:
        raise Transient("QEMU has ended meanwhile")
    vm.running = evolve(running, gpus=vm.vm.gpus)
    message = "the VM has the GPUs that its file asks for"
    vm.set_condition(ConditionType.GPUS_CHANGED, "Changed", message, status=True)
    names = {owned.slot for owned in attached}
    slices = tuple(
        evolve(it, left_over=False) if it.mac is None and it.slot in names else it
        for it in vm.record.slices
    )
    gone = {f"gpu{slot}" for slot in requests_by_slot(running) if slot not in slots}
    devices = sorted({*launch.devices, *(f"gpu{slot}" for slot in names)} - gone)
    launch = evolve(launch, devices=tuple(devices))
    await vm.save(workshop, launch=launch, slices=slices)
    await vm.save_running(workshop)
    workshop.tell(vm.name, "gpus-changed", message)
    vm.plugged.set()
    vm.plugged = trio.Event()


async def _settle_earlier(
    vm: ManagedVm, workshop: Workshop, qmp: Qmp, slots: set[int]
) -> list[OwnedSlice]:
    """Return what an interrupted change has attached already, and give back what it has not."""
    attached = []
    used = {it.slot for it in vm.record.slices_in_use if it.mac is None}
    for owned in [it for it in vm.record.slices if it.left_over and it.mac is None]:
        present = not await find_absent([f"gpu{owned.slot}"], qmp)
        if present and owned.slot in slots - used:
            attached.append(owned)
        elif await give_back(vm, workshop, owned):
            await _drop(vm, workshop, owned)
    return attached


async def _drop(vm: ManagedVm, workshop: Workshop, owned: OwnedSlice) -> None:
    left = tuple(other for other in vm.record.slices if other is not owned)
    await vm.save(workshop, slices=left)


async def _attach(vm: ManagedVm, workshop: Workshop, qmp: Qmp, choice: SliceChoice) -> OwnedSlice:
    sysfs, iommufd = Sysfs(workshop.places.sysfs), was_launched_with_iommufd(vm.record.launch)
    prepared = await prepare_slice(choice, sysfs)
    if len(prepared.rebindings) > 1:
        raise Refused(f"{choice.id} has companions, and they come only with a start")
    owned = evolve(prepared, left_over=True)
    await vm.save(workshop, slices=(*vm.record.slices, owned))
    try:
        await create_slice(owned, sysfs)
        await _lend(vm, workshop, owned, iommufd)
        if not await comes_true(partial(_is_usable, owned, sysfs, iommufd), seconds=READY_SECONDS):
            raise Transient(f"{owned.id}: {is_ready(owned, sysfs, iommufd=iommufd)}")
        await _plug(vm, qmp, owned, by_iommufd=iommufd and has_cdevs(owned, sysfs))
    except (ArcsupError, ExecuteError):
        if await give_back(vm, workshop, owned):
            await _drop(vm, workshop, owned)
        raise
    workshop.tell(vm.name, "device-attached", f"gpus[{owned.slot}] is {owned.id}", id=owned.id)
    return owned


async def _lend(vm: ManagedVm, workshop: Workshop, owned: OwnedSlice, iommufd: bool) -> None:
    """Let QEMU's user have the slice; it goes back to its owner with everything else."""
    account = vm.record.launch.account if vm.record.launch else None
    if account is None or vm.process is None:
        return
    limit = lockable_bytes(vm.vm, charged_together=iommufd and workshop.shares_user)
    limit_locked_memory(vm.process.pid, limit)
    nodes = find_nodes(owned, Sysfs(workshop.places.sysfs), iommufd=iommufd)
    wanted = [WantedFile(owned.asked_by, node, Access.OWN, own_file=True) for node in nodes]
    await lend_files(vm, workshop, wanted, account, private_tmp=False)


def _is_usable(owned: OwnedSlice, sysfs: Sysfs, iommufd: bool) -> bool:
    return not is_ready(owned, sysfs, iommufd=iommufd)


async def _plug(vm: ManagedVm, qmp: Qmp, owned: OwnedSlice, *, by_iommufd: bool) -> None:
    way = {"iommufd": OBJECT} if by_iommufd else {}
    port = await _find_free_port(vm, qmp)
    with trio.fail_after(PLUG_SECONDS):
        await qmp.execute(
            "device_add",
            {
                "driver": "vfio-pci",
                "id": f"gpu{owned.slot}",
                "sysfsdev": owned.path,
                "bus": port,
                "addr": "0x0",
                **way,
            },
        )


async def _find_free_port(vm: ManagedVm, qmp: Qmp) -> str:
    """Return the first root port that QEMU was started with and nothing sits on."""
    ports = (
        [it for it in vm.record.launch.devices if _PORT.fullmatch(it)] if vm.record.launch else []
    )
    with trio.fail_after(PLUG_SECONDS):
        for device in filter(_SLICE.fullmatch, await list_devices(qmp)):
            where = {"path": f"/machine/peripheral/{device}", "property": "parent_bus"}
            used = str(await qmp.execute("qom-get", where)).rpartition("/")[2]
            ports = [port for port in ports if port != used]
    if not ports:
        raise Refused("QEMU has no PCIe port left for it: only a start makes more")
    return min(ports, key=lambda port: int(port.removeprefix("port")))


async def _detach(vm: ManagedVm, workshop: Workshop, qmp: Qmp, slots: set[int]) -> None:
    """Have QEMU give up the slices of these slots, and take them back."""
    leaving = [it for it in vm.record.slices_in_use if it.mac is None and it.slot in slots]
    for owned in leaving:
        await _unplug(vm, qmp, f"gpu{owned.slot}")
    ids = {owned.id for owned in leaving}
    slices = (evolve(it, left_over=True) if it.id in ids else it for it in vm.record.slices)
    if leaving:
        await vm.save(workshop, slices=tuple(slices))


async def _unplug(vm: ManagedVm, qmp: Qmp, device: str) -> None:
    if await find_absent([device], qmp):
        return
    gone = vm.unplugs.setdefault(device, trio.Event())
    try:
        await _ask_to_unplug(qmp, device)
        with trio.move_on_after(UNPLUG_SECONDS):
            await gone.wait()
    finally:
        vm.unplugs.pop(device, None)
    if not await find_absent([device], qmp):
        raise Refused(
            f"the guest has not let {device} go",
            "it goes with the guest's next reset, or when the guest has booted",
        )


async def _ask_to_unplug(qmp: Qmp, device: str) -> None:
    try:
        await qmp.execute("device_del", {"id": device})
    except ExecInterruptedError:
        raise
    except ExecuteError as error:
        # It was asked for before, and the guest still has it.
        if "already in the process of unplug" not in str(error):
            raise


def note_unplugged(vm: ManagedVm, device: str, *, gone: bool) -> bool:
    """Take note that QEMU has given up a device, or that the guest keeps it.

    Returns whether a change that had been refused may be tried again for it.
    """
    if (waiting := vm.unplugs.get(device)) is not None:
        waiting.set()
        return False
    if not gone or not _SLICE.fullmatch(device) or vm.gpus_refused is None:
        return False
    vm.gpus_refused = None
    return True


def note_awaited(vm: ManagedVm, awaited: str) -> None:
    """Say of a running VM which GPU that its file asks for by now is not there yet."""
    if awaited and not vm.changing_gpus and wants_change(vm):
        vm.set_condition(ConditionType.GPUS_CHANGED, "Waiting", awaited, status=False)
