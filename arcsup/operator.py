"""What an operator may ask of the daemon: the control socket's other end.

A command changes the operator's intent, makes that durable, and marks; the reconciler does the
rest. Nothing here starts anything itself, so a command and a crash at the same moment cannot
disagree. Only an end is ordered before it is durable: it must be possible on a full disk too.
"""

import os
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import trio
from attrs import define, evolve, field
from qemu.qmp import QMPError

import arcsup
from arcsup.control.events import EventLog
from arcsup.control.metrics import Metrics
from arcsup.errors import ArcsupError, NoSuchObject, Refused, TimedOut
from arcsup.explain import explain
from arcsup.fleet import Fleet, View
from arcsup.gpu_operator import GpuOperator
from arcsup.model import Event, ExitClass, State, Step, Vm, VmName, VmStatus, Why
from arcsup.plan.lifecycle import Phase
from arcsup.plan.mode import NORMAL, Mode
from arcsup.plan.plan import Intent
from arcsup.reconcile import Reconciler
from arcsup.saving import check_saving
from arcsup.show import show_bad_file, show_vm
from arcsup.spec.native import vm_to_native
from arcsup.steps import list_steps
from arcsup.text_reader import TextReader
from arcsup.transient import is_in_directory, take_up
from arcsup.unattended.store import Answers, add_answers
from arcsup.vm.live_clone import clone_running
from arcsup.vm.managed import ManagedVm, StopOrder
from arcsup.vm.modes import check_mode
from arcsup.vm.qemu_img import Report
from arcsup.vm.record import FRESH
from arcsup.vm.strays import what_to_do
from arcsup.vm.unrecorded import adopt

QMP_ANSWER = 30.0
"""Seconds an operator's QMP command may take."""

LARGEST_PICTURE = 64 * 2**20
"""Bytes of a screenshot that are read; one of an 8K display has about half of that as PNG."""

Condition = Callable[[], bool]

FILE_READ = 10.0
"""Seconds within which a file of the VM directory is read, slow disks and writers included."""

_UP = (Phase.RUNNING, Phase.PAUSED)


@define(eq=False)
class Operator:
    """Implements ``control.supervisor.Supervisor`` on a fleet."""

    fleet: Fleet
    reconciler: Reconciler
    event_log: EventLog
    metric: Metrics
    started: float = field(factory=monotonic)
    reader: TextReader = field(init=False)
    gpus: GpuOperator = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.reader = TextReader(self.fleet.workshop.machine_id)
        self.gpus = GpuOperator(self.fleet, self.reconciler.dirty, self.reader)

    # --- looking ---------------------------------------------------------------------------------

    def statuses(self) -> Sequence[VmStatus]:
        """Return all VMs in name order, files that are none among them."""
        view = self.fleet.look()
        shown = [self._show(vm, view) for vm in self.fleet.vms.values()]
        shown += [show_bad_file(bad) for bad in self.fleet.bad_files.values()]
        return sorted(shown, key=lambda status: (status.name, status.file))

    def status(self, name: str) -> VmStatus:
        """Return one VM and its kept events."""
        shown = self._show_named(name)
        return evolve(shown, events=tuple(event for _, event in self.event_log.since(0, name)))

    def _show_named(self, name: str) -> VmStatus:
        """Return one VM, or the file that is none. Raises NoSuchObject."""
        bad = [bad for bad in self.fleet.bad_files.values() if bad.name == name]
        if bad and name not in self.fleet.vms:
            return show_bad_file(bad[0])
        return self._show(self.fleet.find(name), self.fleet.look())

    def why(self, name: str) -> Why:
        """Return the chain from "not as desired" to its cause."""
        places = self.fleet.workshop.places
        return explain(self.status(name), self.fleet.vms, self.fleet.look(), places)

    def _show(self, vm: ManagedVm, view: View) -> VmStatus:
        return show_vm(vm, view, self.fleet.workshop.places)

    def definition(self, name: str) -> dict[str, Any]:
        """Return the VM as its file's last good version asks for it."""
        return dict(vm_to_native(self.fleet.find(name).vm))

    def steps(self) -> Sequence[Step]:
        """Return what the next pass would do."""
        return list_steps(self.fleet)

    def report(self) -> dict[str, Any]:
        """Return the daemon's own state."""
        places = self.fleet.workshop.places
        return {
            "version": arcsup.__version__,
            "pid": os.getpid(),
            "uptimeSeconds": round(monotonic() - self.started, 1),
            "places": {
                "vms": str(places.vms),
                "run": str(places.run),
                "state": str(places.state),
                "log": str(places.log),
                "sysfs": str(places.sysfs),
                "config": str(places.config),
            },
            "system": places.system,
            "findings": [*self.fleet.findings(), *self.reconciler.keeper.findings()],
        }

    def events(self, since: int, vm: str | None) -> Sequence[tuple[int, Event]]:
        """Return kept events after ``since``."""
        return self.event_log.since(since, vm)

    def follow(self, since: int, vm: str | None) -> AsyncGenerator[tuple[int, Event], None]:
        """Yield events after ``since`` for ever."""
        return self.event_log.follow(since, vm)

    def metrics(self) -> bytes:
        """Return the Prometheus text exposition."""
        return self.metric.expose(self.statuses())

    # --- asking ----------------------------------------------------------------------------------

    async def start(self, name: str, mode: Mode = NORMAL) -> None:
        """Want the VM to run, in ``mode``; leaves ``stopped`` and ``failed`` with a fresh budget.

        Raises Refused when it is up already in another mode.
        """
        vm = self.fleet.find(name)
        self._check_not_placeholder(vm)
        self._check_mode(mode, vm.asked, vm.file)
        words = "".join(f" --{word}" for word in mode.words)
        if vm.phase is Phase.STOPPING or (vm.order is not None and vm.phase is not Phase.DOWN):
            # It comes back once it is down: that is what restart means.
            asked = f"asked to start it{words} once it has stopped"
            await self._want(vm, Intent.RESTART, asked, mode=mode)
            return
        if vm.phase is not Phase.DOWN and mode != NORMAL and mode != vm.record.mode:
            raise Refused(f"{name} is up already, without{words}", f"arcsup stop {name} first")
        # Asked for without a word about the mode, what is up stays as it is.
        kept = vm.record.mode if vm.phase is not Phase.DOWN else mode
        asked = f"asked to start it{words}"
        # A stop that it comes before is not carried out, and what that was to keep goes with it.
        await self._want(vm, Intent.RUN, asked, fresh=True, mode=kept, save=False)

    async def submit(
        self, file: Path, source: str, mode: Mode = NORMAL, answers: Answers | None = None
    ) -> VmName:
        """Run the VM of a file, in ``mode``: until it is stopped, if the VM directory has it not.

        Its installer finds ``answers``. Raises SpecError for a faulty file, Refused when another VM
        has what it asks for.
        """
        workshop = self.fleet.workshop
        vm = await self.reader.load(source, file)
        self._check_mode(mode, vm, file)
        try:
            with self.fleet.answers.reserve(vm.name) as place:
                if answers is not None:
                    mode = await add_answers(mode, answers, place)
                if is_in_directory(self.fleet, file):
                    await self._await_reading(file, source, vm.name)
                    await self.start(vm.name, mode)
                else:
                    await take_up(self.fleet, file, source, vm, mode)
        finally:
            # Refused or not: what was written for it is looked at.
            self.reconciler.dirty.mark("operator")
        workshop.changed()
        return vm.name

    def _check_mode(self, mode: Mode, vm: Vm, file: Path) -> None:
        known = self.fleet.vms.get(vm.name)
        if known is not None and known.phase not in (Phase.DOWN, Phase.STOPPING):
            return  # It stays as it is, or is refused for that.
        again = known is not None and _never_came_up(known, mode)
        check_mode(mode, vm, file, self.fleet.workshop.places, again=again)

    async def _await_reading(self, file: Path, source: str, name: VmName) -> None:
        """Wait until a file of the VM directory, as just sent, is what its VM goes by."""

        def is_read() -> bool:
            vm = self.fleet.vms.get(name)
            return vm is not None and vm.record.source.text == source and not vm.record.transient

        self.reconciler.dirty.mark("files")
        if not await self._until(is_read, FILE_READ):
            vm = self.fleet.find(name)
            why = vm.faults[0] if vm.faults else f"VM {name} goes by another version of it"
            raise Refused(f"{file}: {why}", f"arcsup status {name}")

    async def stop(self, name: str, *, save: bool = False) -> None:
        """Want the VM to be stopped, durably; ``save``: keep what its ephemeral disks took."""
        vm = self.fleet.find(name)
        if save:
            await check_saving(self.fleet, vm)
        _end_unrecorded(vm)
        if vm.record.intent is not Intent.KILL or vm.phase is Phase.DOWN:
            # Who asked for that once still wants it when he asks again.
            save = save or (vm.record.save and vm.running is not None)
            await self._want(
                vm, Intent.STOP, "asked to stop it", mode=_mode_until_down(vm), save=save
            )

    async def kill(self, name: str) -> None:
        """Pull the plug and want the VM to be stopped, durably; nothing ephemeral is kept."""
        vm = self.fleet.find(name)
        _end_unrecorded(vm)
        await self._want(vm, Intent.KILL, "asked to kill it", mode=_mode_until_down(vm), save=False)

    async def adopt(self, name: str) -> None:
        """Go on with a QEMU that no record tells of, and want the VM to run.

        Raises Refused where there is none, or nothing tells what it has.
        """
        await adopt(self.fleet.find(name), self.fleet.workshop)
        self.fleet.workshop.tell(VmName(name), "adopt", "the operator asked to adopt its QEMU")
        self.reconciler.dirty.mark("operator")
        self.fleet.workshop.changed()

    def _check_not_placeholder(self, vm: ManagedVm) -> None:
        """Raise Refused for a VM that is only known by its QEMU: nothing would start after that."""
        if vm.unrecorded is not None and not self.fleet.is_wanted(vm):
            raise Refused(
                f"{vm.name} has no VM file, and {vm.unrecorded}",
                what_to_do(vm.name, vm.unrecorded),
            )

    async def restart(self, name: str) -> None:
        """Stop as ``stop`` does, then start with the file as it is now, in no mode."""
        vm = self.fleet.find(name)
        self._check_not_placeholder(vm)
        vm.restarted_from = vm.starts
        intent = Intent.RUN if vm.phase is Phase.DOWN else Intent.RESTART
        await self._want(vm, intent, "asked to restart it", fresh=True, mode=NORMAL)

    async def reset(self, name: str) -> None:
        """Press the reset button."""
        await self.qmp(name, "system_reset", {})

    async def pause(self, name: str) -> None:
        """Halt the virtual CPUs."""
        vm = self.fleet.find(name)
        if vm.phase is not Phase.RUNNING:
            raise Refused(f"{name} is not running", "`arcsup status` shows what it does")
        await self.qmp(name, "stop", {})
        await self._until(lambda: vm.phase is not Phase.RUNNING, QMP_ANSWER)

    async def resume(self, name: str) -> None:
        """Let paused virtual CPUs go on."""
        vm = self.fleet.find(name)
        if vm.phase is not Phase.PAUSED:
            raise Refused(f"{name} is not paused", "`arcsup status` shows what it does")
        await self.qmp(name, "cont", {})
        await self._until(lambda: vm.phase is not Phase.PAUSED, QMP_ANSWER)

    async def clear(self, name: str) -> None:
        """Leave ``failed`` with a fresh restart budget."""
        vm = self.fleet.find(name)
        if vm.record.failure is None:
            raise Refused(f"{name} has not failed", "`arcsup why` shows what it is waiting for")
        intent, mode = vm.record.intent, vm.record.mode
        await self._want(vm, intent, "cleared its failure", fresh=True, mode=mode)

    async def qmp(self, name: str, command: str, arguments: dict[str, Any]) -> Any:
        """Run one QMP command on the daemon's own monitor."""
        vm = self.fleet.find(name)
        if vm.qmp is None:
            raise Refused(f"{name} has no QEMU that answers", "`arcsup why` says what it is doing")
        try:
            with trio.fail_after(QMP_ANSWER):
                return await vm.qmp.execute(command, arguments)
        except trio.TooSlowError:
            raise TimedOut(f"{name}: QEMU did not answer {command} in {QMP_ANSWER:g} s") from None
        except QMPError as error:
            raise Refused(f"{name}: QEMU refuses {command}: {error}") from error

    async def screenshot(self, name: str) -> bytes:
        """Return the guest's first display as PNG."""
        vm = self.fleet.find(name)
        # In memory of our own: what QEMU's user has in a folder may be anything by the time that
        # it is read.
        with _open_memory() as (reader, writer):
            given = await self._give(vm, writer)
            try:
                await self.qmp(name, "screendump", {"filename": given, "format": "png"})
            finally:
                number = int(given.rpartition("/")[2])
                with trio.CancelScope(shield=True):
                    await self.qmp(name, "remove-fd", {"fdset-id": number})
            return await trio.to_thread.run_sync(os.pread, reader, LARGEST_PICTURE, 0)

    async def _give(self, vm: ManagedVm, descriptor: int) -> str:
        """Give a QEMU a descriptor for a picture; return the file name that it has there."""
        if vm.qmp is None:
            raise Refused(f"{vm.name} has no QEMU that answers", "`arcsup why` says what it does")
        try:
            with trio.fail_after(QMP_ANSWER):
                return await vm.qmp.add_descriptor(descriptor, "screenshot")
        except trio.TooSlowError:
            raise TimedOut(f"{vm.name}: QEMU did not answer in {QMP_ANSWER:g} s") from None
        except QMPError as error:
            raise Refused(f"{vm.name}: QEMU takes no descriptor: {error}") from error

    async def clone(self, name: str, source: Path, target: Path, report: Report) -> None:
        """Copy a disk of a VM that runs to a new image."""
        vm, workshop = self.fleet.find(name), self.fleet.workshop
        await clone_running(vm, workshop, source, target, report)

    async def reload(self) -> Sequence[str]:
        """Read the configuration and every VM file again; return what is taken only later."""
        return self.reconciler.reload()

    # --- waiting ---------------------------------------------------------------------------------

    async def settle(self, name: str, verb: str, timeout: float) -> VmStatus:  # noqa: ASYNC109
        """Wait until ``verb`` has had its effect, or cannot have it any more."""
        vm = self.fleet.find(name)

        def settled() -> bool:
            if verb in ("stop", "kill"):
                if vm.unrecorded is not None:
                    return False
                # On a full disk, that it has ended cannot be recorded either.
                return vm.phase is Phase.DOWN or bool(vm.unsaved and vm.end)
            began = verb != "restart" or vm.starts > vm.restarted_from
            # A guest may power off before anybody has looked: then it ran as well.
            ran = vm.phase in _UP or (vm.phase is Phase.DOWN and bool(vm.record.halted))
            return vm.record.failure is not None or (began and ran)

        if not await self._until(settled, timeout):
            shown = self.status(name)
            raise TimedOut(
                f"{name} is {shown.state} after {timeout:g} s: {shown.reason or 'no reason known'}",
                f"`arcsup why {name}` says more; it may still happen",
            )
        if vm.not_saved and verb == "stop":
            raise ArcsupError(
                f"{name} is stopped, but not saved: {vm.not_saved}",
                "`arcsup image commit` saves it once that is mended",
            )
        if verb not in ("stop", "kill") and vm.record.failure is not None:
            raise ArcsupError(
                f"{name} failed: {vm.record.failure.because}",
                f"`arcsup logs {name}` shows more; `arcsup clear {name}` or a changed file retries",
            )
        return self._show(vm, self.fleet.look())

    async def wait_for(
        self,
        name: str,
        state: State | None,
        timeout: float,  # noqa: ASYNC109
    ) -> VmStatus:
        """Wait until the VM is in ``state`` (None: gone)."""
        last = self._show_named(name)

        def there() -> bool:
            nonlocal last
            try:
                last = self._show_named(name)
            except NoSuchObject:
                return state is None
            return last.state is state

        if not await self._until(there, timeout):
            raise TimedOut(
                f"{name} is {last.state}, not {state or 'gone'}, after {timeout:g} s",
                f"`arcsup why {name}` says what it is waiting for",
            )
        return last

    async def _until(self, condition: Condition, limit: float) -> bool:
        with trio.move_on_after(limit):
            while not condition():
                await self.fleet.changed.wait()
            return True
        return condition()

    async def _want(
        self,
        vm: ManagedVm,
        intent: Intent,
        what: str,
        *,
        mode: Mode,
        fresh: bool = False,
        **more: object,
    ) -> None:
        boot = self.fleet.workshop.boot_id
        changes: dict[str, Any] = {"intent": intent, "intent_boot": boot, "mode": mode, **more}
        if fresh:
            changes |= FRESH
        told = f"the operator {what}"
        if intent in (Intent.STOP, Intent.KILL):
            # Ending it is possible whatever the disk says: the order first, then the record.
            if vm.phase is not Phase.DOWN:
                vm.give_order(StopOrder(told, hard=intent is Intent.KILL))
            if why := await vm.save_or_remember(self.fleet.workshop, **changes):
                told += f"; a restart of the daemon may forget it, for {why}"
        else:
            await vm.save(self.fleet.workshop, **changes)
        self.fleet.workshop.tell(vm.name, intent.value, told)
        self.reconciler.dirty.mark("operator")
        self.fleet.workshop.changed()


def _end_unrecorded(vm: ManagedVm) -> None:
    """Order the end of a QEMU that no record tells of: nobody can ask its guest.

    Raises Refused for another program that was handed the lock, and for what cannot be seen.
    """
    if vm.unrecorded is not None:
        if not vm.unrecorded.is_qemu:
            raise Refused(f"{vm.name}: {vm.unrecorded}", what_to_do(vm.name, vm.unrecorded))
        vm.give_order(StopOrder("the operator asked to end it", hard=True))


def _mode_until_down(vm: ManagedVm) -> Mode:
    """A QEMU ends in the mode that it runs in; nothing of a mode outlasts it."""
    return NORMAL if vm.phase is Phase.DOWN else vm.record.mode


def _never_came_up(vm: ManagedVm, mode: Mode) -> bool:
    """Tell whether a run like ``mode`` was tried, and its QEMU ended before the guest ran."""
    last, before = vm.record.last_exit, vm.record.mode
    failed = last is not None and last.exit_class is ExitClass.START_FAILED
    return failed and (before.purpose, before.disk_mib) == (mode.purpose, mode.disk_mib)


@contextmanager
def _open_memory() -> Iterator[tuple[int, int]]:
    """Yield descriptors of new memory, for reading and for writing."""
    reader = os.memfd_create("screenshot", os.MFD_CLOEXEC)
    try:
        # Of a set, QEMU takes the one that is open in the way it asks for (qemu_open).
        writer = os.open(f"/proc/self/fd/{reader}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            yield reader, writer
        finally:
            os.close(writer)
    finally:
        os.close(reader)
