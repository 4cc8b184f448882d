"""One QEMU from its start, or its adoption, to its end and what follows. One task per VM.

Cancelling the task leaves the QEMU running: the daemon may go, the VM stays. So nothing is tidied
up on the way out of a cancelled block; what the record says is what the next daemon goes by.
"""

import logging
import random
import signal
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial

import trio
from attrs import evolve

from arcsup.errors import (
    ArcsupError,
    NotRecorded,
    Terminal,
    Transient,
    describe_os_error,
    is_shortage,
)
from arcsup.host.cgroups import end_and_remove_group
from arcsup.host.kmsg import parse_oom_kills, read_kernel_log
from arcsup.host.writer import comes_true
from arcsup.host_trouble import is_host_trouble, tells_host_trouble
from arcsup.keep_going import keep_going
from arcsup.model import ConditionType, ExitClass, LastExit
from arcsup.plan.lifecycle import Evidence, Phase, Step, classify_exit
from arcsup.plan.mode import NORMAL
from arcsup.plan.plan import Intent
from arcsup.plan.restart import (
    AwaitDevice,
    Budget,
    GiveUp,
    Outcome,
    StartAgain,
    StayStopped,
    after_exit,
)
from arcsup.spec.native import load_vm
from arcsup.vm.addresses import watch_addresses
from arcsup.vm.belongings import take_back_belongings
from arcsup.vm.cleanup import GRACE, end_helpers, remove_runtime_folders
from arcsup.vm.control_groups import enclose, find_limit_reached
from arcsup.vm.ephemeral import remove_overlays
from arcsup.vm.firmware_conditions import watch_variables
from arcsup.vm.helpers import watch_helpers
from arcsup.vm.hooks import run_hooks
from arcsup.vm.launch import bring_up, find_last_words, start_qemu
from arcsup.vm.loopback import explain_refusal
from arcsup.vm.managed import ManagedVm, SeenEnd, StopOrder, Workshop
from arcsup.vm.monitor import keep_monitor
from arcsup.vm.process import Process, ProcessEnd, read_start_time
from arcsup.vm.record import Failure, Launch
from arcsup.vm.second_monitor import SECOND_MONITOR
from arcsup.vm.settling import settle_overlays
from arcsup.vm.shared_memory import remove_shared_memory
from arcsup.vm.slices import DeviceTrouble
from arcsup.vm.sound import keep_receiver
from arcsup.vm.stop import Rung, RungTaken, stop_qemu
from arcsup.vm.strays import LockHeld, Stray, hold_for_removal, is_held
from arcsup.vm.unrecorded import find_lost_record, look_for_stray, see_unrecorded

logger = logging.getLogger(__name__)

START_LIMIT = 60.0
"""Seconds a QEMU may take until its guest runs, plus one for each GiB it has to set aside."""

AFTER_TROUBLE = 5.0
"""Seconds after which a VM whose supervision went wrong is looked at as if by a new daemon."""

DEVICE_RETRY = 1.0
"""Seconds before a start that a device prevented is tried again; a second failure of the same
device quarantines it, so this is no loop."""

LOST_DEVICE_TIME = 10.0
"""Seconds a guest that lost a device may take to power down: the kernel waits for QEMU's end."""

SESSION = 3.0
"""Seconds within which a QEMU that was taken over greets on its monitor."""

LAST_WORDS = 5.0
"""Seconds to wait, after QEMU's end, for what it still had to say on its monitor."""


def begin(vm: ManagedVm, because: str) -> None:
    """Mark that ``vm`` is being started, so that nobody starts it a second time."""
    vm.step(Step.START, f"QEMU is being started: {because}")
    vm.starts += 1
    vm.order, vm.stopping_since, vm.end = None, None, None
    vm.adopted = False
    vm.evidence = Evidence(was_ready=False)
    vm.ready, vm.enclosed = trio.Event(), trio.Event()
    vm.not_saved = ""
    vm.conditions.clear()


async def supervise(vm: ManagedVm, workshop: Workshop) -> None:
    """Start a QEMU for a VM that has begun, and see it through to its end."""
    await _keep_at_it(vm, workshop, partial(_start, vm, workshop))


async def _start(vm: ManagedVm, workshop: Workshop) -> None:
    workshop.tell(vm.name, "starting", vm.reason)
    workshop.changed()
    try:
        vm.process = await start_qemu(vm, workshop)
    except NotRecorded:
        # Nothing is wrong with the VM: whoever keeps at it tries again, at no cost to its budget.
        raise
    except LockHeld:
        # Nothing was done, so there is nothing to undo, and it is no fault of the VM's.
        stray = await look_for_stray(vm, workshop)
        vm.step(Step.END)
        if stray is not None:
            await watch_unrecorded(vm, workshop, stray)
    except DeviceTrouble as error:
        await _finish(vm, workshop, ProcessEnd(), error.message, device_trouble=True)
    except (ArcsupError, OSError, RuntimeError, MemoryError) as error:
        await _note_failed_start(vm, workshop, error)
    else:
        await _see_through(vm, workshop, vm.process)


async def _note_failed_start(vm: ManagedVm, workshop: Workshop, error: Exception) -> None:
    """Settle a start that came to nothing. Raises what is a defect of ours."""
    if isinstance(error, ArcsupError):
        detail = f"{error.message}{f' ({error.hint})' if error.hint else ''}"
    elif isinstance(error, OSError):
        # One of our own directories is full, read-only, or somebody else's.
        detail = describe_os_error(error)
    else:
        detail = str(error) or "no memory"
    if is_host_trouble(error) and vm.order is None:
        await _wait_for_host(vm, workshop, detail)
    elif isinstance(error, Terminal | Transient | OSError):
        hopeless = isinstance(error, Terminal)
        await _finish(vm, workshop, ProcessEnd(), detail, terminal=hopeless)
    else:
        raise error


async def _wait_for_host(vm: ManagedVm, workshop: Workshop, why: str) -> None:
    """Undo a start for which the host lacks something, and hold back the next one for a while.

    It is no failure of the VM's, and costs nothing of its budget, however long it lasts.
    """
    if vm.hindrance_told != why:
        vm.hindrance_told = why
        workshop.tell(vm.name, "trouble", f"the host: {why}")
    await _undo(vm, workshop)
    vm.hindrance = f"the host: {why}"
    workshop.changed()
    # Several that were short of the same would else be short of it together, again and again.
    await trio.sleep(AFTER_TROUBLE * random.uniform(1, 2))
    vm.hindrance = ""
    workshop.changed()


async def watch_unrecorded(vm: ManagedVm, workshop: Workshop, stray: Stray | None = None) -> None:
    """See a QEMU that no record tells of to its end, or until it is adopted.

    The VM is not started before, and what its own record tells of is not touched. ``stray`` is who
    was found; None for a look here.
    """
    if stray is None:
        stray = await look_for_stray(vm, workshop)
        if stray is None or vm.unrecorded is not None:
            return  # It has ended since, or is watched already.
    if not await see_unrecorded(vm, workshop, stray):
        await _recover_until_done(vm, workshop, _end_of_unrecorded(vm))
        workshop.tell(vm.name, "unrecorded-ended", "the QEMU that no record told of has ended")
    vm.unrecorded, vm.taken_over, vm.order = None, False, None
    workshop.changed()
    if vm.record.launch is not None:
        await resume_vm(vm, workshop)


def _end_of_unrecorded(vm: ManagedVm) -> LastExit | None:
    """Return how it ended, None where that was not our doing, and nobody can tell."""
    if vm.order is None:
        return None
    killed = vm.record.intent is Intent.KILL
    detail = "its guest could not be asked: no record told of its QEMU"
    exit_class = ExitClass.KILLED if killed else ExitClass.STOPPED
    return LastExit(exit_class, None, None, datetime.now(UTC), detail, forced=not killed)


async def _recover_until_done(vm: ManagedVm, workshop: Workshop, end: LastExit | None) -> None:
    """Clean up after a QEMU that no record told of, however often that has to be tried."""
    while True:
        try:
            await _recover(vm, workshop, end)
            return
        except ArcsupError as error:
            workshop.tell(vm.name, "trouble", f"{error.message}; {error.hint}")
        except OSError as error:
            workshop.tell(vm.name, "trouble", describe_os_error(error))
        except (RuntimeError, MemoryError) as error:
            if not is_shortage(error):
                raise
            workshop.tell(vm.name, "trouble", str(error) or "no memory")
        await trio.sleep(AFTER_TROUBLE)


async def _recover(vm: ManagedVm, workshop: Workshop, end: LastExit | None) -> None:
    """Take away and give back what it had, by the copy of its record where that is left.

    A launch that the record itself tells of, and that no later one has followed, is the caller's to
    settle.
    """
    lost = await find_lost_record(vm, workshop)
    if lost is None and vm.record.launch is not None:
        return
    if lost is not None and lost.launch is not None:
        await vm.save(workshop, launch=lost.launch, slices=lost.slices, loans=lost.loans)
        vm.running = load_vm(lost.launch.text, vm.file, workshop.machine_id)
    await _tidy_up(vm, workshop)
    await remove_overlays(vm.name, workshop.places)
    if vm.record.launch is not None or end is not None:
        told = {} if end is None else {"last_exit": end, "since": end.at}
        await vm.save(workshop, launch=None, save=False, **told)
    vm.running = None
    vm.conditions.clear()


async def remove_leftovers(vm: ManagedVm, workshop: Workshop) -> None:
    """Try once more to remove what could not be removed when a VM went down; Transient if it stays.

    What it was, descriptors that were short or a read-only file system, passes by itself.
    """
    with hold_for_removal(workshop.places, vm.name):
        await remove_runtime_folders(workshop.places, vm.name)
        vm.not_removed = bool(list(remove_shared_memory(vm.vm)))


async def resume_vm(
    vm: ManagedVm, workshop: Workshop, adopted: Callable[[], None] = lambda: None
) -> None:
    """Go on with a launch that the record tells of; ``adopted`` is called where its QEMU runs."""
    begin(vm, "it is in the record")
    launch = vm.record.launch
    vm.evidence = Evidence(was_ready=launch is not None and launch.ready_at is not None)
    attempt = partial(_adopt, vm, workshop, adopted)
    await _keep_at_it(vm, workshop, attempt)


def is_gone(launch: Launch | None, boot_id: str) -> bool:
    """Tell whether a launch is recorded, and the QEMU that was started for it has ended."""
    if launch is None:
        return False
    identities = [it.identity for it in launch.processes if it.role == "qemu"]
    return launch.boot_id != boot_id or all(
        read_start_time(it.pid) != it.start_time for it in identities
    )


async def _adopt(vm: ManagedVm, workshop: Workshop, adopted: Callable[[], None]) -> None:
    # Without a free descriptor it is not known whether it runs, and nothing is concluded.
    process = find_qemu_process(vm, workshop.boot_id)
    if process is None:
        # The record may be an older one, of a launch that another has followed.
        stray = await look_for_stray(vm, workshop)
        if stray is not None:
            vm.step(Step.END)
            await watch_unrecorded(vm, workshop, stray)
            return
    else:
        adopted()
    await _resume(vm, workshop, process, "it ended while no daemon was there")


async def _resume(
    vm: ManagedVm, workshop: Workshop, process: Process | None, if_ended: str
) -> None:
    vm.adopted, vm.process = True, process
    was_ready = vm.evidence.was_ready
    if vm.record.launch is not None:
        vm.running = load_vm(vm.record.launch.text, vm.file, workshop.machine_id)
    if vm.process is not None:
        if was_ready:
            vm.step(Step.READY)
            vm.since = vm.record.since or vm.since
        workshop.tell(vm.name, "adopted", f"took over QEMU {vm.process.pid}", pid=vm.process.pid)
        workshop.changed()
        await _see_through(vm, workshop, vm.process)
    elif was_ready:
        await _finish(vm, workshop, ProcessEnd(), if_ended)
    else:
        await _undo(vm, workshop)
        workshop.tell(vm.name, "undone", "a start that was interrupted was undone")
        workshop.changed()


async def _undo(vm: ManagedVm, workshop: Workshop) -> None:
    """Half started is not failed: it is undone, and costs nothing."""
    await _tidy_up(vm, workshop)
    await remove_overlays(vm.name, workshop.places)
    await vm.save(workshop, launch=None, save=False)
    if vm.process is not None:
        vm.process.close()
    vm.process, vm.running, vm.order = None, None, None
    vm.conditions.clear()
    vm.step(Step.END)


async def _keep_at_it(
    vm: ManagedVm, workshop: Workshop, attempt: Callable[[], Awaitable[None]]
) -> None:
    """Keep one VM's trouble away from the others: a full disk, or a defect of ours.

    What is true is in the record and in /proc, so the way on is the one of a new daemon; but what
    was ordered and what was seen, of an end above all, is in neither and stays.
    """
    while True:
        try:
            await attempt()
            return
        except ArcsupError as error:
            why = f"{error.message}; {error.hint}"
            logger.error("%s", why, extra={"VM": vm.name})  # noqa: TRY400
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
            logger.exception("supervising it went wrong", extra={"VM": vm.name})
        workshop.tell(vm.name, "trouble", why)
        vm.set_condition(ConditionType.SUPERVISED, "Trouble", why, status=False)
        ended = None if vm.record.launch is None else vm.end
        if ended is not None:
            vm.step(Step.STOP, f"how its QEMU ended could not be settled: {why}")
            workshop.changed()
        await trio.sleep(AFTER_TROUBLE)
        if vm.process is not None:
            vm.process.close()
        vm.process = None
        if ended is not None:
            attempt = partial(_settle, vm, workshop, ended)
            continue
        vm.phase = Phase.DOWN
        if vm.record.launch is None:
            vm.running = None
            workshop.changed()
            return
        vm.step(Step.START, "it is in the record")
        vm.ready, vm.enclosed = trio.Event(), trio.Event()
        attempt = partial(_take_up_again, vm, workshop)


async def _take_up_again(vm: ManagedVm, workshop: Workshop) -> None:
    process = find_qemu_process(vm, workshop.boot_id)
    vm.conditions.clear()
    await _resume(vm, workshop, process, "it ended while nobody could watch it")


def find_qemu_process(vm: ManagedVm, boot_id: str) -> Process | None:
    """Return the QEMU that a VM's record tells of, if it still runs. Raises OSError: not seen."""
    for owned in vm.record.launch.processes if vm.record.launch else ():
        if owned.role == "qemu":
            return Process.find(owned.identity, boot_id=boot_id)
    return None


async def _see_through(vm: ManagedVm, workshop: Workshop, process: Process) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(enclose, vm, workshop)
        nursery.start_soon(keep_monitor, vm, workshop, bring_up)
        nursery.start_soon(_obey_orders, vm, workshop, process)
        nursery.start_soon(_limit_start, vm)
        nursery.start_soon(_run_post_start, vm, workshop)
        nursery.start_soon(keep_receiver, vm, workshop)
        nursery.start_soon(watch_helpers, vm, workshop)
        nursery.start_soon(watch_variables, vm, workshop)
        nursery.start_soon(watch_addresses, vm, workshop)
        end = await process.wait()
        if vm.qmp is not None:
            with trio.move_on_after(LAST_WORDS):
                await vm.session_over.wait()
        nursery.cancel_scope.cancel()
    if vm.order is not None:
        lost = vm.order.because if vm.order.device_lost else ""
        detail, terminal = vm.order.start_failed or lost, vm.order.hopeless
    else:
        detail = "" if vm.evidence.was_ready else _find_last_words(vm, workshop)
        if tells_host_trouble(detail):
            await _wait_for_host(vm, workshop, detail)
            return
        terminal = _was_rejected(end, detail)
    trouble = not vm.evidence.was_ready and _is_device_trouble(vm, detail)
    if trouble:
        for owned in vm.record.slices_in_use:
            workshop.device_failed(owned)
    await _finish(vm, workshop, end, detail, terminal=terminal, device_trouble=trouble)


def _find_last_words(vm: ManagedVm, workshop: Workshop) -> str:
    words = find_last_words(vm, workshop)
    return words if vm.running is None else explain_refusal(vm.running, words)


def _is_device_trouble(vm: ManagedVm, words: str) -> bool:
    """QEMU begins what it says of such a device with "vfio": it could not open or map it."""
    return bool(vm.record.slices_in_use) and "vfio" in words


def _was_rejected(end: ProcessEnd, words: str) -> bool:
    """QEMU exits with 1 when it does not like its command line or what that names.

    Some of what it names may be there, or free, a moment later.
    """
    return end.code == 1 and not any(hint in words for hint in _PASSING)


_PASSING = (
    "Could not set up host forwarding rule",
    "Address already in use",
    "lock",
    "Cannot allocate memory",
    "Device or resource busy",
    "Resource temporarily unavailable",
)


async def _limit_start(vm: ManagedVm) -> None:
    memory_gib = vm.running.memory_mib / 1024 if vm.running else 0
    await trio.sleep(START_LIMIT + memory_gib)
    if vm.phase is Phase.STARTING:
        why = f"QEMU was not ready within {START_LIMIT + memory_gib:.0f} s"
        vm.give_order(StopOrder(why, hard=True, start_failed=why))


async def _run_post_start(vm: ManagedVm, workshop: Workshop) -> None:
    await vm.ready.wait()
    await run_hooks(vm, workshop, "postStart")


async def _obey_orders(vm: ManagedVm, workshop: Workshop, process: Process) -> None:
    """End the QEMU when told to; a harder order overtakes a softer one that is under way."""
    while True:
        ordered = vm.ordered
        if vm.order is None:
            await ordered.wait()
            continue
        order = vm.order
        vm.step(Step.STOP, order.because)
        workshop.changed()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_climb, vm, workshop, process, order)
            # The end of QEMU cancels this task from outside.
            await ordered.wait()
            nursery.cancel_scope.cancel()


async def _climb(vm: ManagedVm, workshop: Workshop, process: Process, order: StopOrder) -> None:
    guest_time = (
        min(vm.vm.stop.timeout, LOST_DEVICE_TIME) if order.device_lost else vm.vm.stop.timeout
    )
    if vm.stopping_since is None:
        if not order.hard:
            await run_hooks(vm, workshop, "preStop")
        vm.stopping_since = trio.current_time()
    if vm.adopted and not order.hard:
        await _await_session(vm, vm.stopping_since + guest_time)
    try:
        await stop_qemu(
            process,
            lambda: vm.qmp,
            workshop.places.run_of(vm.name) / SECOND_MONITOR,
            workshop.places.run_of(vm.name) / "agent.sock",
            guest_time=guest_time,
            hard=order.hard,
            took=partial(_note_rung, vm, workshop),
            spent=trio.current_time() - vm.stopping_since,
        )
    except trio.TooSlowError:
        why = "SIGKILL did not end QEMU: the kernel is waiting for a device or a disk"
        vm.set_condition(ConditionType.STUCK, "Uninterruptible", why, status=True)
        vm.reason = why
        workshop.tell(vm.name, "stuck", why, pid=process.pid)
        workshop.changed()


async def _await_session(vm: ManagedVm, until: float) -> None:
    """Wait for the QMP session with a QEMU that was taken over: without one no guest is asked."""

    def settled() -> bool:
        known = vm.conditions.get(ConditionType.MONITOR_ANSWERS)
        # One that is silent already would take the guest's time, and there is the people's.
        return vm.qmp is not None or (known is not None and not known.status)

    patience = min(SESSION, until - trio.current_time())
    if patience > 0:
        await comes_true(settled, seconds=patience)


def _note_rung(vm: ManagedVm, workshop: Workshop, taken: RungTaken) -> None:
    verdict = "and QEMU ended" if taken.enough else "was not enough"
    workshop.tell(
        vm.name,
        "stopping",
        f"{taken.rung} {verdict} after {taken.seconds:.1f} s",
        rung=taken.rung,
        seconds=round(taken.seconds, 3),
        enough=taken.enough,
    )
    vm.stop_steps = (*vm.stop_steps, taken)


async def _finish(
    vm: ManagedVm,
    workshop: Workshop,
    end: ProcessEnd,
    detail: str,
    *,
    terminal: bool = False,
    device_trouble: bool = False,
) -> None:
    """Take note of an end, and settle it."""
    limit_reached, evidence = await _look_into(vm, end)
    exit_class = classify_exit(evidence)
    detail = limit_reached or detail or _took(vm)
    forced = _tell_forced(vm, workshop)
    last_exit = LastExit(exit_class, end.code, end.signal, datetime.now(UTC), detail, forced)
    vm.end = SeenEnd(last_exit, time.monotonic(), terminal, device_trouble)
    await _settle(vm, workshop, vm.end)


async def _settle(vm: ManagedVm, workshop: Workshop, end: SeenEnd) -> None:
    """Tidy up after an end, decide what follows, and make both durable in that order."""
    await _tidy_up(vm, workshop)
    kept = await settle_overlays(vm, workshop)
    await run_hooks(vm, workshop, "postStop")
    changes = _consequences(vm, workshop, end) | kept
    last_exit = end.last_exit
    await vm.save(workshop, launch=None, last_exit=last_exit, since=last_exit.at, **changes)
    if vm.process is not None:
        vm.process.close()
    vm.process, vm.running, vm.order, vm.stop_steps = None, None, None, ()
    vm.conditions.clear()
    vm.step(Step.END)
    workshop.ended(vm.name, last_exit, comes_back="restarts" in changes)
    workshop.changed()


def _wait_for_device(workshop: Workshop) -> dict[str, object]:
    """Nothing is wrong with the VM: it is tried again soon, or when the devices change."""
    at = time.monotonic() + DEVICE_RETRY
    return {"retry_at": at, "budget_boot": workshop.boot_id}


def _took(vm: ManagedVm) -> str:
    """What it took to end it: the last rung that was needed."""
    return f"{vm.stop_steps[-1].rung}, {vm.stop_steps[-1].seconds:.1f} s" if vm.stop_steps else ""


def _tell_forced(vm: ManagedVm, workshop: Workshop) -> bool:
    """Tell, of a guest that was to power down and did not, that its plug was pulled."""
    over = vm.evidence.found_shut_down or vm.evidence.panicked
    if vm.order is None or vm.order.hard or not vm.stop_steps or over:
        return False
    last = vm.stop_steps[-1]
    if last.rung is Rung.POWER_BUTTON or not vm.evidence.was_ready:
        return False
    asked = any(it.rung is Rung.POWER_BUTTON for it in vm.stop_steps)
    how = "did not power down" if asked else "could not be asked to power down"
    message = f"the guest {how}: its plug was pulled by {last.rung}"
    workshop.tell(vm.name, "plug-pulled", message, asked=asked, rung=last.rung)
    return True


async def _look_into(vm: ManagedVm, end: ProcessEnd) -> tuple[str, Evidence]:
    """Return which limit it was ended at, "" for none, and all that is known of its end.

    An end is seen once: what the host lacks for a look into its log is waited for.
    """
    found: list[tuple[str, Evidence]] = []

    async def look() -> None:
        limit = await find_limit_reached(vm, end)
        found.append((limit, await _complete_evidence(vm, end, at_limit=bool(limit))))

    await keep_going(f"{vm.name}: finding out how its QEMU ended", look)
    return found[0]


async def _complete_evidence(vm: ManagedVm, end: ProcessEnd, *, at_limit: bool) -> Evidence:
    asked = ""
    lost = vm.order is not None and vm.order.device_lost
    if vm.order is not None and not vm.order.start_failed and not lost:
        asked = "kill" if vm.order.hard else "stop"
    killed = end.signal == signal.SIGKILL and not asked and vm.process is not None
    out_of_memory = False
    if killed and not at_limit and vm.process is not None:
        log = await trio.to_thread.run_sync(read_kernel_log)
        out_of_memory = vm.process.pid in parse_oom_kills(log)
    return evolve(vm.evidence, asked=asked, out_of_memory=out_of_memory, device_lost=lost)


async def _tidy_up(vm: ManagedVm, workshop: Workshop) -> None:
    """End the helpers, take back and remove what this run had. May be done twice.

    Raises LockHeld, before anything is touched, while a QEMU lives that may be using it.
    Programs that a guest which broke out has started are in the VM's group, and end with it. What
    cannot be removed is told and left: it may be no reason for a VM never to have ended. The
    next start makes all of it anew, and says what is in its way.
    """
    # A shell that never became QEMU takes a moment to end.
    await comes_true(lambda: not is_held(workshop.places, vm.name), seconds=GRACE)
    with hold_for_removal(workshop.places, vm.name):
        await _remove_what_it_had(vm, workshop)


async def _remove_what_it_had(vm: ManagedVm, workshop: Workshop) -> None:
    launch = vm.record.launch
    if launch is not None:
        await end_helpers(launch, boot_id=workshop.boot_id)
    left = list(remove_shared_memory(vm.running)) if vm.running is not None else []
    # After another boot the name may be somebody else's.
    if launch is not None and launch.cgroup and launch.boot_id == workshop.boot_id:
        try:
            await end_and_remove_group(launch.cgroup)
        except OSError as error:
            left.append(f"programs in {launch.cgroup}: {error.strerror}")
    await take_back_belongings(vm, workshop)
    try:
        await remove_runtime_folders(workshop.places, vm.name)
    except (Transient, Terminal) as error:
        left.append(error.message)
    vm.not_removed = bool(left)
    for what in left:
        workshop.tell(vm.name, "not-removed", f"something of its last run stays: {what}")


def _consequences(vm: ManagedVm, workshop: Workshop, end: SeenEnd) -> dict[str, object]:
    """Return what changes in the record: the operator's intent comes before any policy."""
    if end.device_trouble:
        return _wait_for_device(workshop)
    intent = vm.record.intent
    if intent is Intent.RESTART:
        return {"intent": Intent.RUN, "intent_boot": workshop.boot_id, "retry_at": None}
    if vm.order is not None and not vm.order.start_failed and not vm.order.device_lost:
        over = intent in (Intent.STOP, Intent.KILL)
        return {"retry_at": None, "mode": NORMAL if over else vm.record.mode}
    exit_class, detail = end.last_exit.exit_class, end.last_exit.detail
    if exit_class is ExitClass.START_FAILED and end.hopeless:
        return _consequences_of(vm, workshop, GiveUp(detail or "QEMU did not start"))
    now = time.monotonic()
    ready_at = vm.record.launch.ready_at if vm.record.launch else None
    outcome = after_exit(
        exit_class,
        vm.vm.restart,
        vm.record.budget if vm.record.budget_boot == workshop.boot_id else Budget(),
        now=now,
        ran_for=end.at - ready_at if ready_at is not None else 0.0,
        chance=random.random(),
        detail=detail,
    )
    return _consequences_of(vm, workshop, outcome)


def _consequences_of(vm: ManagedVm, workshop: Workshop, outcome: Outcome) -> dict[str, object]:
    match outcome:
        case StartAgain(at, budget):
            return {
                "budget": budget,
                "budget_boot": workshop.boot_id,
                "retry_at": at,
                "restarts": vm.record.restarts + 1,
            }
        case StayStopped(because):
            return {
                "halted": because,
                "halted_boot": workshop.boot_id,
                "intent": Intent.NONE,
                "mode": NORMAL,
                "retry_at": None,
            }
        case GiveUp(because):
            failure = Failure(because, vm.record.source.digest)
            return {"failure": failure, "retry_at": None, "budget": Budget()}
        case AwaitDevice():
            # The kernel needs a moment until the device tree shows that it is gone.
            return _wait_for_device(workshop)
