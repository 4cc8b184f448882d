"""What a daemon would do, without one: its files, journal and devices are read, nothing is written.

The same fleet, choosing and planning as the daemon's; only the records are not kept.
"""

from pathlib import Path

import trio
from attrs import evolve

from arcsup.allocation import Allocation, policy_of, wants_devices
from arcsup.devices import Inventory
from arcsup.errors import NoSuchObject, Terminal
from arcsup.events.dirty import Bell, Dirty
from arcsup.fleet import Fleet, default_start_slots
from arcsup.gpu_operator import GpuOperator, SlotVerdicts
from arcsup.host.identity import boot_id, machine_id
from arcsup.host.slices import prepare_slice
from arcsup.host.sysfs import Sysfs
from arcsup.look import DeviceLook
from arcsup.model import LastExit, MiB, Step, VmName
from arcsup.places import Places
from arcsup.plan.lifecycle import Phase
from arcsup.plan.mode import NORMAL, Mode, in_mode
from arcsup.spec.config import Config
from arcsup.spec.native import load_vm
from arcsup.steps import list_steps
from arcsup.text_reader import TextReader
from arcsup.vm.managed import ManagedVm, Workshop
from arcsup.vm.preview import Preview, preview_command
from arcsup.vm.record import ReadOnlyRecords, Record
from arcsup.vm.record import Source as RecordSource
from arcsup.vm.supervise import find_qemu_process


def plan_offline(places: Places, config: Config) -> list[Step]:
    """Return what a daemon with these places would do next.

    Raises NoSuchObject without a device tree, NotPermitted where the journal may not be read.
    """
    return trio.run(_plan_here, places, config)


def plan_for_host(places: Places, config: Config, inventory: Inventory) -> list[Step]:
    """Return what a daemon on the host of an inventory would do with these VM files.

    Slices that the inventory says are a VM's stay with it; memory is what the host's nodes have.
    """
    return trio.run(_plan_there, places, config, inventory)


def explain_offline(places: Places, config: Config, name: str) -> SlotVerdicts:
    """Return for each slot of a VM what every type of every card has for and against it."""
    return trio.run(_explain, places, config, name)


def explain_file_offline(places: Places, config: Config, file: Path, source: str) -> SlotVerdicts:
    """Return the same for a VM as a file asks for it. Raises SpecError."""
    return trio.run(_explain_file, places, config, file, source)


def preview_offline(
    source: str, file: Path, places: Places, config: Config, mode: Mode = NORMAL
) -> Preview:
    """Return what would be run for a VM file in ``mode``, with the slices that it would get now.

    Raises SpecError for a faulty file; Terminal, Transient where a device or a file is missing.
    """
    return trio.run(_preview, source, file, places, config, mode)


async def _preview(source: str, file: Path, places: Places, config: Config, mode: Mode) -> Preview:
    vm = in_mode(load_vm(source, file, str(machine_id(places.state))), mode)
    if not wants_devices(vm):
        return await preview_command(vm, places, by_iommufd=config.iommufd)
    fleet = await _look_at_all(places, config)
    allocation = fleet.allocation
    known = fleet.vms.get(vm.name)
    record = known.record if known else Record(vm.name, RecordSource(str(file), source, ""))
    asking = ManagedVm(evolve(record, mode=NORMAL), vm)
    others = (other for other in fleet.vms.values() if other.name != vm.name)
    allocation.assign((asking, *others), fleet.look().up | {vm.name})
    if lacking := allocation.awaited_by(vm.name):
        raise Terminal(
            f"{vm.name} waits for a device: {lacking}",
            f"`arcsup gpu types --for {file}` says what each card has for it",
        )
    sysfs = Sysfs(places.sysfs)
    chosen = [await prepare_slice(choice, sysfs) for choice in allocation.choices_for(vm.name)]
    node = allocation.numa_node_of(vm.name)
    return await preview_command(vm, places, tuple(chosen), node, by_iommufd=config.iommufd)


async def _plan_here(places: Places, config: Config) -> list[Step]:
    fleet = await _look_at_all(places, config)
    fleet.allocation.assign(fleet.vms.values(), fleet.look().up)
    return list_steps(fleet)


async def _plan_there(places: Places, config: Config, inventory: Inventory) -> list[Step]:
    fleet = _open_fleet(places, config)
    await fleet.read_files()
    fleet.start_slots = max(1, len(fleet.vms))
    total = sum(node.memory_mib for node in inventory.numa)
    fleet.memory = lambda: MiB(total) if total else None
    fleet.allocation.plan_on(inventory, fleet.vms.values(), fleet.look().up)
    return list_steps(fleet)


async def _explain(places: Places, config: Config, name: str) -> SlotVerdicts:
    return await _ask_about_gpus(await _look_at_all(places, config)).explain(name)


async def _explain_file(places: Places, config: Config, file: Path, source: str) -> SlotVerdicts:
    fleet = await _look_at_all(places, config)
    return await _ask_about_gpus(fleet).explain_file(file, source)


def _ask_about_gpus(fleet: Fleet) -> GpuOperator:
    return GpuOperator(fleet, Dirty(), TextReader(fleet.workshop.machine_id))


async def _look_at_all(places: Places, config: Config) -> Fleet:
    """Return the fleet as a daemon would find it: files, records, QEMUs that run, devices."""
    if not places.sysfs.is_dir():
        raise NoSuchObject(f"there is no device tree at {places.sysfs}", "--sysfs names another")
    fleet = _open_fleet(places, config)
    fleet.load_records()
    for vm in fleet.vms.values():
        _find_phase(vm, fleet.workshop)
    await fleet.read_files()
    fleet.allocation.look.owners = fleet.slice_owners
    await fleet.allocation.observe()
    await fleet.observe_usb(anew=True)
    return fleet


def _find_phase(vm: ManagedVm, workshop: Workshop) -> None:
    """Set the phase of a VM whose QEMU runs, and what it runs with."""
    launch = vm.record.launch
    process = find_qemu_process(vm, workshop.boot_id)
    if launch is None or process is None:
        return
    process.close()
    vm.phase = Phase.STARTING if launch.ready_at is None else Phase.RUNNING
    vm.running = load_vm(launch.text, vm.file, workshop.machine_id)


def _open_fleet(places: Places, config: Config) -> Fleet:
    allocation = Allocation(DeviceLook(places.sysfs), policy_of(config))
    workshop = Workshop(
        places=places,
        machine_id=str(machine_id(places.state)),
        boot_id=str(boot_id()),
        records=ReadOnlyRecords(places.state / "vms"),
        tell=_tell_nobody,
        changed=lambda: None,
        became_ready=lambda _vm, _seconds: None,
        ended=_ended,
        device_failed=lambda _choice: None,
        usb=config.usb,
    )
    return Fleet(workshop, Bell(), config.start_limit or default_start_slots(), allocation)


def _tell_nobody(vm: VmName | None, kind: str, message: str, **data: object) -> None:
    """Take no event: nothing happens here."""


def _ended(vm: VmName, last_exit: LastExit, *, comes_back: bool) -> None:
    """Take no end: nothing runs here."""
