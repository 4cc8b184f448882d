"""A QEMU that no record tells of: watched until it ends, or taken over when the operator says so.

What it has is known from the copy of the record in its VM's runtime folder (``record``). Where
that is gone too, nobody knows with which devices, helpers and owners of files it runs, and it can
only be ended.
"""

import trio
from qemu.qmp import QMPError

from arcsup.errors import Refused, Terminal, describe_os_error, is_shortage
from arcsup.model import ConditionType
from arcsup.plan.plan import Intent
from arcsup.spec.native import load_vm
from arcsup.vm.cleanup import GRACE
from arcsup.vm.managed import ManagedVm, Workshop
from arcsup.vm.process import Process, ProcessId, end_process, read_account
from arcsup.vm.qmp import check_peer, connect_qmp_socket, open_qmp, query_uuid
from arcsup.vm.record import FRESH, Launch, Record
from arcsup.vm.strays import (
    LOOK_AGAIN,
    Sought,
    Stray,
    find_stray,
    hold_process,
    what_to_do,
)

ANSWER = 5.0
"""Seconds within which the monitor of a QEMU that is adopted must answer."""


def seek(workshop: Workshop, *vms: ManagedVm) -> Sought:
    """Return what to look for where QEMUs of ``vms`` may run that no record tells of."""
    launches = (it.launch for it in workshop.records.known.values() if it.launch is not None)
    return Sought(
        workshop.places,
        workshop.boot_id,
        {vm.name: vm.vm.uuid for vm in vms},
        {owned.identity for launch in launches for owned in launch.processes},
        workshop.accounts,
    )


async def see_unrecorded(vm: ManagedVm, workshop: Workshop, stray: Stray) -> bool:
    """Watch who keeps a VM from being started until nobody does; end it when that is ordered.

    Return whether the operator has adopted it meanwhile.
    """
    told = ""
    found: Stray | None = stray
    while found is not None:
        vm.unrecorded = found
        if str(found) != told:
            told = str(found)
            sentence = f"{told}; {what_to_do(vm.name, found)}"
            workshop.tell(vm.name, "unrecorded", sentence, pid=found.pid)
            workshop.changed()
        process = hold_process(found, workshop.boot_id)
        if process is None or not found.is_qemu:
            # A program that was handed the lock may let go of it and live on.
            await trio.sleep(LOOK_AGAIN)
        else:
            await _see(vm, workshop, process)
        if process is not None:
            process.close()
        if vm.taken_over:
            return True
        found = await look_for_stray(vm, workshop)
    return False


async def look_for_stray(vm: ManagedVm, workshop: Workshop) -> Stray | None:
    """Return who keeps a VM from being started; where that cannot be seen, look until it can."""
    told = False
    while True:
        try:
            return await trio.to_thread.run_sync(find_stray, seek(workshop, vm), vm.name)
        except (OSError, RuntimeError, MemoryError) as error:
            if not isinstance(error, OSError) and not is_shortage(error):
                raise
            if not told:
                why = describe_os_error(error) if isinstance(error, OSError) else str(error)
                workshop.tell(vm.name, "trouble", f"its QEMU cannot be looked for: {why}")
            told = True
        await trio.sleep(LOOK_AGAIN)


async def _see(vm: ManagedVm, workshop: Workshop, process: Process) -> None:
    """Wait for its end, or until it is taken over; end it when ordered: no guest is asked."""
    async with trio.open_nursery() as nursery:

        async def obey() -> None:
            while vm.order is None and not vm.taken_over:
                await vm.ordered.wait()
            if vm.taken_over:
                nursery.cancel_scope.cancel()
                return
            try:
                await end_process(process, grace=GRACE)
            except trio.TooSlowError:
                why = f"SIGKILL did not end QEMU {process.pid}: the kernel is waiting"
                vm.set_condition(ConditionType.STUCK, "Uninterruptible", why, status=True)
                workshop.tell(vm.name, "stuck", why, pid=process.pid)
                workshop.changed()

        nursery.start_soon(obey)
        await process.wait()
        nursery.cancel_scope.cancel()


async def find_lost_record(vm: ManagedVm, workshop: Workshop) -> Record | None:
    """Return the copy of a later record than the VM has, None where there is none."""
    try:
        copy = await trio.to_thread.run_sync(workshop.records.load_copy, vm.name)
    except Terminal as error:
        workshop.tell(vm.name, "trouble", error.message)
        return None
    if copy is None or copy.launch is None or copy.launch.boot_id != workshop.boot_id:
        return None
    return None if _qemu_of(copy.launch) == _qemu_of(vm.record.launch) else copy


def _qemu_of(launch: Launch | None) -> ProcessId | None:
    processes = () if launch is None else launch.processes
    return next((it.identity for it in processes if it.role == "qemu"), None)


async def adopt(vm: ManagedVm, workshop: Workshop) -> None:
    """Take a QEMU that no record tells of as the VM's running one: the record first.

    Who watches it goes on from there, as a daemon does that was started again. Raises Refused
    where there is none, or where it cannot be known what it has; NotRecorded.
    """
    stray = vm.unrecorded
    if stray is None:
        raise Refused(
            f"no QEMU of {vm.name} runs that no record tells of", "`arcsup list` shows what runs"
        )
    if not stray.is_qemu or stray.identity is None:
        raise Refused(f"{vm.name}: {stray}", what_to_do(vm.name, stray))
    copy, launch = await _find_copy(vm, workshop, stray.identity)
    _check_unclaimed(vm, workshop, copy)
    await _ask(vm, workshop, launch, stray.identity.pid)
    if vm.unrecorded is not stray or vm.order is not None:
        raise Refused(f"{vm.name}: QEMU {stray.pid} is ending", f"arcsup status {vm.name}")
    changes = FRESH | {
        "launch": launch,
        "slices": copy.slices,
        "loans": copy.loans,
        "mode": copy.mode,
        "lasting": copy.lasting,
        "since": copy.since,
        "save": False,
        "halted_boot": "",
        "intent": Intent.RUN,
        "intent_boot": workshop.boot_id,
    }
    await vm.save(workshop, **changes)
    vm.taken_over = True
    vm.ordered.set()
    vm.ordered = trio.Event()


def _check_unclaimed(vm: ManagedVm, workshop: Workshop, copy: Record) -> None:
    """Raise Refused where an older record has given another VM what this QEMU has."""
    others = (it for it in workshop.records.known.values() if it.name != vm.name)
    claimed = {owned.id: other.name for other in others for owned in other.slices}
    for owned in copy.slices:
        if other := claimed.get(owned.id):
            raise Refused(
                f"{vm.name}: its QEMU has {owned.id}, which is VM {other}'s by that one's record",
                f"`arcsup gpu release {owned.id}` strikes it from there",
            )


async def _find_copy(
    vm: ManagedVm, workshop: Workshop, identity: ProcessId
) -> tuple[Record, Launch]:
    """Return the copy of the record that tells of its launch, and that. Raises Refused."""
    hint = f"`arcsup stop {vm.name}` or `kill` ends it"
    try:
        copy = await trio.to_thread.run_sync(workshop.records.load_copy, vm.name)
    except Terminal as error:
        raise Refused(f"{vm.name}: {error.message}", hint) from error
    place = workshop.places.run_of(vm.name)
    what = f"{vm.name}: nothing tells which devices and files QEMU {identity.pid} has"
    if copy is None or copy.launch is None:
        raise Refused(f"{what}: {place} has no copy of its record", hint)
    if _qemu_of(copy.launch) != identity:
        raise Refused(f"{what}: the record's copy in {place} is of another one", hint)
    account, expected = read_account(identity.pid), copy.launch.account
    if account != ((expected.uid, expected.gid) if expected is not None else read_account()):
        raise Refused(f"{vm.name}: QEMU {identity.pid} does not run as it was started", hint)
    return copy, copy.launch


async def _ask(vm: ManagedVm, workshop: Workshop, launch: Launch, pid: int) -> None:
    """See that its monitor answers, with the uuid that it was started with. Raises Refused."""
    hint = f"`arcsup stop {vm.name}` or `kill` ends it"
    try:
        expected = load_vm(launch.text, vm.file, workshop.machine_id).uuid
        with trio.fail_after(ANSWER):
            stream, peer = await connect_qmp_socket(workshop.places.run_of(vm.name) / "qmp.sock")
            async with stream:
                check_peer(peer, pid)
                async with open_qmp(stream) as qmp:
                    uuid = await query_uuid(qmp)
    except trio.TooSlowError:
        raise Refused(f"{vm.name}: QEMU {pid} does not answer on its monitor", hint) from None
    except (OSError, QMPError) as error:
        why = describe_os_error(error) if isinstance(error, OSError) else str(error)
        raise Refused(f"{vm.name}: QEMU {pid} cannot be asked: {why}", hint) from error
    if uuid != expected:
        raise Refused(f"{vm.name}: QEMU {pid} says that its uuid is {uuid}, not {expected}", hint)
