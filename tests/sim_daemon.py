"""The daemon on a kernel in memory: its own fleet, passes, choices and journal; no process.

What is real: reading files, the records' order, choosing, planning, carrying out, taking and giving
back slices, what follows an end. What is not: the kernel, QEMU, the clock and the disk.
"""

import json
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from unittest.mock import patch

import trio
import trio.testing
from attrs import define, evolve, field

from arcsup.allocation import Allocation
from arcsup.control.metrics import Metrics
from arcsup.devices import Inventory
from arcsup.events.dirty import Bell, Dirty
from arcsup.fleet import Fleet
from arcsup.look import DeviceLook
from arcsup.model import LastExit, MiB, VmName
from arcsup.places import Places
from arcsup.plan.assignment import Policy
from arcsup.plan.lifecycle import Evidence, Phase, Step
from arcsup.plan.ownership import with_owners
from arcsup.plan.plan import Intent
from arcsup.reconcile import Reconciler
from arcsup.spec.native import load_vm, vm_to_native
from arcsup.vf_journal import VfJournal
from arcsup.virtual_functions import VfKeeper
from arcsup.vm import supervise
from arcsup.vm.managed import ManagedVm, Workshop
from arcsup.vm.process import ProcessEnd, ProcessId
from arcsup.vm.record import Launch, OwnedProcess, Record, RecordStore
from arcsup.vm.slices import DeviceTrouble, take_slices
from tests.sim_kernel import DaemonKilled, SimKernel, patches

BOOT = "66666666-7777-8888-9999-000000000000"
MACHINE = "11111111-2222-3333-4444-555555555555"


@define(eq=False)
class Clock:
    """Stands for the module ``time`` where arcsup asks it."""

    now: float = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return 1.7e9 + self.now


class Disk(RecordStore):
    """The records, kept in memory: what is there outlives the daemon."""

    def __init__(self, point: Callable[[], None]) -> None:
        super().__init__(Path("/nonexistent/vms"))
        self.point = point
        self.kept: dict[VmName, Record] = {}
        self.directory: tuple[int, int] | None = None

    def load_all(self) -> tuple[dict[VmName, Record], dict[VmName, str]]:
        return dict(self.kept), {}

    async def save(self, record: Record) -> None:
        self.point()
        self.kept[record.name] = record
        self.point()

    async def remove(self, name: VmName) -> None:
        self.point()
        self.kept.pop(name, None)
        self.point()

    def known_directory(self) -> tuple[int, int] | None:
        return self.directory

    def keep_directory(self, identity: tuple[int, int]) -> None:
        self.directory = identity

    def forget_directory(self) -> None:
        self.directory = None

    def owned(self) -> set[str]:
        """Return the ids of all slices that the journal names."""
        return {owned.id for record in self.kept.values() for owned in record.slices}


class SimLook(DeviceLook):
    """Looks at the kernel in memory."""

    def __init__(self, kernel: SimKernel) -> None:
        super().__init__(Path("/nonexistent/sys"))
        self.kernel = kernel

    async def observe(self) -> Inventory:
        self.last = with_owners(self.kernel.inventory(), self.owners())
        return self.last


@define(eq=False)
class SimDaemon:
    """One life of a daemon; ``disk``, ``kernel`` and ``clock`` outlive it."""

    places: Places
    disk: Disk
    kernel: SimKernel
    clock: Clock
    fleet: Fleet = field(init=False)
    dirty: Dirty = field(factory=Dirty)

    def __attrs_post_init__(self) -> None:
        allocation = Allocation(SimLook(self.kernel), Policy())
        workshop = Workshop(
            places=self.places,
            machine_id=MACHINE,
            boot_id=BOOT,
            records=self.disk,
            tell=self._tell,
            changed=lambda: None,
            became_ready=lambda vm, _seconds: allocation.note_success(vm.record.slices),
            ended=self._ended,
            device_failed=allocation.note_failure,
        )
        self.fleet = Fleet(workshop, Bell(), 8, allocation)
        self.fleet.memory = lambda: MiB(1 << 20)
        allocation.look.owners = self.fleet.slice_owners

    def start(self) -> None:
        """Take up what earlier daemons left; DaemonKilled where it dies over it."""
        self.fleet.load_records()
        self._run(self._adopt_all)

    def make_pass(self) -> None:
        """Look at everything, decide, and carry it out to its end."""
        self._run(self._pass)

    def ask(self, name: VmName, intent: Intent) -> None:
        """Want something of a VM, as an operator does."""
        vm = self.fleet.vms[name]
        changes: dict[str, object] = {"intent": intent, "intent_boot": BOOT}
        if intent is Intent.RUN:
            changes |= {"halted": "", "failure": None, "retry_at": None}

        async def want() -> None:
            await vm.save(self.fleet.workshop, **changes)

        self._run(want)

    def notice_ends(self) -> None:
        """See which QEMUs have ended by themselves."""
        self._run(self._finish_the_ended)

    # --- inside -----------------------------------------------------------------------------

    def _run(self, work: Callable[[], Awaitable[None]]) -> None:
        """Run to the end what takes time in vain: the clock jumps."""
        with ExitStack() as patched:
            for name, value in patches(self.kernel).items():
                patched.enter_context(patch(f"arcsup.vm.slices.{name}", value))
            for module in ("fleet", "reconcile", "vm.supervise", "vm.managed"):
                patched.enter_context(patch(f"arcsup.{module}.time", self.clock))
            patched.enter_context(patch("arcsup.reconcile.supervise", self._supervise))
            try:
                trio.run(work, clock=trio.testing.MockClock(autojump_threshold=0))
            except* DaemonKilled:
                assert self.kernel.dead  # Several tasks may have found out.
        if self.kernel.dead:
            self.kernel.close_gates()
            raise DaemonKilled

    async def _pass(self) -> None:
        async with trio.open_nursery() as nursery:
            journal = VfJournal.load(self.places.state / "vfs.json", BOOT)
            sysfs, mark = self.places.sysfs, partial(self.dirty.mark, "devices")
            keeper = VfKeeper(sysfs, journal, lambda _kind, _message: None, mark, nursery)
            reconciler = Reconciler(self.fleet, self.dirty, Metrics("0"), nursery, 30.0, keeper)
            await reconciler._make_pass(frozenset({"devices"}))
        await self._obey_orders()

    async def _obey_orders(self) -> None:
        for vm in list(self.fleet.vms.values()):
            if vm.order is not None and vm.phase is not Phase.DOWN:
                self.kernel.point()
                vm.step(Step.STOP)
                for pid in self._qemus_of(vm):
                    self.kernel.end(pid)
                await supervise._finish(vm, self.fleet.workshop, ProcessEnd(), "")

    async def _finish_the_ended(self) -> None:
        for vm in list(self.fleet.vms.values()):
            if vm.phase is Phase.RUNNING and not self._qemus_of(vm):
                await supervise._finish(vm, self.fleet.workshop, ProcessEnd(signal=9), "")

    def _qemus_of(self, vm: ManagedVm) -> list[int]:
        return [pid for pid, qemu in self.kernel.qemus.items() if qemu.vm == vm.name]

    async def _adopt_all(self) -> None:
        for vm in list(self.fleet.vms.values()):
            launch = vm.record.launch
            if launch is None:
                continue
            pids = {owned.identity.pid for owned in launch.processes}
            if pids & set(self.kernel.qemus):
                supervise.begin(vm, "it is in the record")
                vm.running = load_vm(launch.text, vm.file, MACHINE)
                await self._become_ready(vm)
            else:
                await supervise.resume_vm(vm, self.fleet.workshop)

    async def _supervise(self, vm: ManagedVm, workshop: Workshop) -> None:
        """Start a QEMU in the order of vm/launch.py."""
        intent = Intent.RUN if vm.record.intent is Intent.RESTART else vm.record.intent
        launch = Launch(BOOT, json.dumps(vm_to_native(vm.vm)))
        await vm.save(workshop, launch=launch, intent=intent, halted="", retry_at=None)
        vm.running = vm.vm
        try:
            slices = await take_slices(vm, workshop)
        except DeviceTrouble as error:
            await supervise._finish(vm, workshop, ProcessEnd(), error.message, device_trouble=True)
            return
        pid = self.kernel.spawn(vm.name, tuple(owned.id for owned in slices))
        process = OwnedProcess("qemu", ProcessId("in memory", pid, 1))
        await vm.save(workshop, launch=evolve(launch, processes=(process,)))
        if self.kernel.open_gate(pid):
            await self._become_ready(vm)
            return
        for owned in slices:
            workshop.device_failed(owned)
        await supervise._finish(vm, workshop, ProcessEnd(code=1), "vfio", device_trouble=True)

    async def _become_ready(self, vm: ManagedVm) -> None:
        assert vm.record.launch is not None
        ready = evolve(vm.record.launch, ready_at=self.clock.now)
        await vm.save(self.fleet.workshop, launch=ready)
        vm.evidence = Evidence(was_ready=True)
        vm.step(Step.READY)
        self.fleet.workshop.became_ready(vm, 0.0)

    def _tell(self, vm: VmName | None, kind: str, message: str, **data: object) -> None:
        pass

    def _ended(self, vm: VmName, last_exit: LastExit, *, comes_back: bool) -> None:
        pass
