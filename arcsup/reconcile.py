"""Observe, plan, carry out: one task decides, and only here are decisions acted on."""

import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

import trio
from attrs import define, field

from arcsup.allocation import awaits_whole_card, policy_of, wants_devices
from arcsup.alongside import leaves
from arcsup.control.metrics import Metrics
from arcsup.control.reading_socket import ReadingSocket
from arcsup.errors import ArcsupError, describe_os_error, is_shortage
from arcsup.events.dirty import Dirty
from arcsup.fleet import Fleet, View, default_start_slots
from arcsup.host.accounts import Accounts, find_accounts
from arcsup.plan.lifecycle import Phase
from arcsup.plan.plan import (
    Action,
    ChangeGpus,
    ChangeMedia,
    ForgetVm,
    ReleaseDevices,
    StartVm,
    StopVm,
    next_deadline,
    plan,
)
from arcsup.spec.config import (
    Config,
    Isolation,
    find_changes_for_later,
    load_config,
)
from arcsup.virtual_functions import VfKeeper
from arcsup.vm.live_gpus import change_gpus, note_awaited
from arcsup.vm.managed import ManagedVm, StopOrder, Workshop
from arcsup.vm.media import change_media
from arcsup.vm.slices import find_lost_slices, release_slices
from arcsup.vm.strays import LockHeld, find_strays, hold_for_removal
from arcsup.vm.supervise import (
    begin,
    is_gone,
    remove_leftovers,
    resume_vm,
    supervise,
    watch_unrecorded,
)
from arcsup.vm.unrecorded import seek

logger = logging.getLogger(__name__)

LONGEST_BREATH = 0.05
"""A pass is followed by a pause as long as itself, up to this many seconds; marks are merged."""

_OF_DEVICES = frozenset({"kernel", "devices", "operator"})
"""Reasons after which the devices may be others; a pass without any reason is the resync."""

DEVICE_CHECK = 2.0
"""How often, in seconds, the devices of running VMs are looked at: a card that is pulled while it
is open gives no event."""

AFTER_AN_ERROR = 2.0
"""Seconds after which a pass that failed (a full disk, say) is made again."""


@define(eq=False)
class Reconciler:
    """Brings what runs in line with what is wanted, again and again."""

    fleet: Fleet
    dirty: Dirty
    metrics: Metrics
    nursery: trio.Nursery
    resync: float
    keeper: VfKeeper
    config: Config = field(factory=Config)
    """What the daemon was started with."""
    reading: ReadingSocket | None = None
    ending: bool = False
    """The daemon is about to end: nothing is started any more."""
    look_for_strays: bool = True
    """Whether QEMUs that no record tells of are still to be looked for."""
    files_read: trio.Event = field(factory=trio.Event)
    """Set once the VM directory was looked at: who asks before would be told of too few VMs."""
    last_pass: float = field(factory=time.monotonic)

    async def run(self) -> None:
        """Make a pass whenever something may have changed, for ever."""
        while True:
            started = time.monotonic()
            # What could not be recorded was not done either; the next pass finds it so.
            try:
                reasons = await self.dirty.wait(at_most=self._patience())
                for reason in reasons or ("resync",):
                    self.metrics.count_event_seen(reason)
                started = time.monotonic()
                await self._make_pass(reasons)
            except* ArcsupError as group:
                await self._try_again([f"{it.message}; {it.hint}" for it in leaves(group)])
            except* OSError as group:
                await self._try_again([describe_os_error(it) for it in leaves(group)])
            except* (RuntimeError, MemoryError) as group:
                if not is_shortage(group):
                    raise
                await self._try_again([str(it) or "out of memory" for it in leaves(group)])
            else:
                self.metrics.observe_reconcile(time.monotonic() - started)
            self.last_pass = time.monotonic()
            # When a hundred VMs change at once, passes must not take the CPU that they need.
            await trio.sleep(min(self.last_pass - started, LONGEST_BREATH))

    async def _try_again(self, problems: Sequence[str]) -> None:
        for problem in dict.fromkeys(problems):
            logger.error("%s", problem)
        await trio.sleep(AFTER_AN_ERROR)
        self.dirty.mark("retry")

    def reload(self) -> Sequence[str]:
        """Read the configuration and look at everything anew; believe a replaced VM directory.

        VMs that run keep their user; their next start has the new one. Returns the keys of the
        configuration that have changed, and are taken only by the next daemon. Raises SpecError
        for a faulty configuration, Terminal for a user or a group that does not exist; the last
        good one stays in force.
        """
        workshop = self.fleet.workshop
        config = load_config(workshop.places.config)
        accounts = workshop.accounts and choose_accounts(config, workshop.machine_id)
        if self.reading is not None:
            self.reading.give_to(config.monitoring_group)
        workshop.accounts, workshop.image_folders = accounts, config.image_dirs
        workshop.iommufd, workshop.usb = config.iommufd, config.usb
        self.resync = config.resync
        self.fleet.start_slots = config.start_limit or default_start_slots()
        self.fleet.allocation.policy = policy_of(config)
        self.keeper.retry()
        self.fleet.believe_directory()
        self.dirty.mark("operator")
        later = find_changes_for_later(self.config, config)
        if later:
            logger.warning("taken when the daemon is started again: %s", ", ".join(later))
        return later

    async def _make_pass(self, reasons: frozenset[str]) -> None:
        try:
            await self.fleet.read_files()
        except Exception:
            # What is new could not be recorded, but whoever is to end must end all the same.
            self._stop_who_must_end()
            raise
        finally:
            self._watch_unrecorded()
            self.files_read.set()
        if self.ending:
            return
        await self.fleet.observe_usb(anew=not reasons or bool(reasons & _OF_DEVICES))
        view = await self._look_at_devices(reasons)
        for action in plan(view.wanted, view.seen, view.host, view.now):
            await self._carry_out(action)
        self._remove_stale_answers()
        await self._remove_leftovers()
        await self._record_what_was_not()

    def _remove_stale_answers(self) -> None:
        """Remove what no run's mode names, but nothing of VMs of which a record may be lost."""
        fleet = self.fleet
        unknown = {vm.name for vm in fleet.vms.values() if vm.unrecorded is not None}
        unknown |= {*fleet.unrecorded, *fleet.unreadable}
        fleet.answers.remove_stale((vm.record.mode for vm in fleet.vms.values()), spared=unknown)

    async def _remove_leftovers(self) -> None:
        for vm in list(self.fleet.vms.values()):
            if vm.not_removed and vm.phase is Phase.DOWN and vm.unrecorded is None:
                # It was told when it began; whether it is over is seen at the next look.
                with suppress(ArcsupError, OSError):
                    await remove_leftovers(vm, self.fleet.workshop)

    def _watch_unrecorded(self) -> None:
        """Look for QEMUs that no record tells of, and watch them, if that has not been done.

        Once, with the files read: what this daemon starts is in a record before it begins.
        """
        if not self.look_for_strays:
            return
        fleet = self.fleet
        strays = find_strays(seek(fleet.workshop, *fleet.vms.values()))
        self.look_for_strays = False
        for name, found in strays.items():
            vm = fleet.vms.get(name) or fleet.take_in_unrecorded(name)
            if vm is not None and is_gone(vm.record.launch, fleet.workshop.boot_id):
                continue  # Whoever takes up that launch looks for another QEMU first.
            if vm is None or vm.phase is not Phase.DOWN:
                # A record that cannot be read, or two QEMUs of an older version's making.
                fleet.unrecorded[name] = found
            elif vm.unrecorded is None:
                # At once: the VM must not be started before that task has its turn.
                vm.unrecorded = found[0]
                self.nursery.start_soon(watch_unrecorded, vm, fleet.workshop, found[0])

    def _stop_who_must_end(self) -> None:
        view = self.fleet.look()
        for action in plan(view.wanted, view.seen, view.host, view.now):
            if isinstance(action, StopVm) and not self.ending:
                order = StopOrder(action.because, hard=action.hard)
                self.fleet.vms[action.name].give_order(order)

    async def _record_what_was_not(self) -> None:
        """Write down who was ended while there was no room for it. Raises NotRecorded."""
        for vm in list(self.fleet.vms.values()):
            if vm.unsaved:
                await vm.save(self.fleet.workshop)

    async def _look_at_devices(self, reasons: frozenset[str]) -> View:
        """Choose slices for all VMs that are or should be up, and look again."""
        view, allocation = self.fleet.look(), self.fleet.allocation
        vms = self.fleet.vms.values()
        asked = any(wants_devices(vm.vm) or vm.record.slices for vm in vms)
        configured = allocation.policy.cards or self.keeper.journal.quotas
        if not asked and not configured:
            # Whoever lacked a device, and asks for none any more, must not go on waiting for it.
            return self.fleet.look() if allocation.forget_assignment() else view
        if allocation.inventory is None or not reasons or reasons & _OF_DEVICES:
            await allocation.observe(whole=any(map(awaits_whole_card, vms)))
        if allocation.inventory is not None:
            self.keeper.tend(allocation.inventory, allocation.policy.cards, self._users())
            allocation.busy = dict(self.keeper.busy)
            allocation.uniform = frozenset(self.keeper.uniform)
        self._stop_those_that_lost_a_device()
        # Not for those that were up before the look, which took its time: a VM that was asked for
        # meanwhile would start with nothing chosen for it, without its GPU.
        allocation.assign(vms, self.fleet.look().up)
        for vm in vms:
            note_awaited(vm, allocation.awaited_by(vm.name))
        return self.fleet.look()

    def _users(self) -> dict[str, str]:
        """Return which VM has something of a card, or is about to, by card."""
        users: dict[str, str] = {}
        for vm in self.fleet.vms.values():
            cards = {owned.card for owned in vm.record.slices} | {it.card for it in vm.promised}
            users |= dict.fromkeys(cards, f"VM {vm.name}")
        return users

    def _stop_those_that_lost_a_device(self) -> None:
        for vm in self.fleet.vms.values():
            if vm.phase not in (Phase.RUNNING, Phase.PAUSED) or not vm.record.slices:
                continue
            if lost := self._find_loss(vm):
                self.fleet.workshop.tell(vm.name, "device-lost", lost)
                vm.give_order(StopOrder(lost, device_lost=True))

    def _find_loss(self, vm: ManagedVm) -> str:
        """Return what is wrong with the devices of a VM that runs, "" where nothing is."""
        since = vm.record.launch.started_at if vm.record.launch else 0.0
        heard = self.fleet.allocation.losses.find(vm.record.slices_in_use, since)
        return heard or next(iter(find_lost_slices(vm, self.fleet.workshop)), "")

    def _patience(self) -> float:
        """Return the seconds until something has to be looked at even if nobody marks."""
        view = self.fleet.look()
        limits = [self.resync]
        if (deadline := next_deadline(view.wanted, view.seen, view.now)) is not None:
            limits.append(deadline - view.now)
        snapshot = self.fleet.snapshot
        if snapshot is not None and snapshot.look_again_at is not None:
            limits.append(snapshot.look_again_at - time.time())
        if any(vm.record.slices and vm.phase is not Phase.DOWN for vm in self.fleet.vms.values()):
            limits.append(DEVICE_CHECK)
        return max(0.0, min(limits))

    async def _carry_out(self, action: Action) -> None:
        vm = self.fleet.vms[action.name]
        match action:
            case StartVm(because=because):
                # While other actions were carried out, somebody may have asked to stop it.
                if vm.phase is not Phase.DOWN or not self.fleet.is_to_run(vm):
                    return
                vm.choices = self.fleet.allocation.choices_for(vm.name)
                vm.gpu_node = self.fleet.allocation.numa_node_of(vm.name)
                begin(vm, because)
                self.nursery.start_soon(supervise, vm, self.fleet.workshop)
            case StopVm(because=because, hard=hard):
                vm.give_order(StopOrder(because, hard=hard))
            case ChangeMedia() if vm.qmp is not None:
                vm.media_tried = vm.vm
                self._start_beside(change_media, vm)
            case ChangeGpus():
                vm.choices = self.fleet.allocation.choices_for(vm.name)
                vm.changing_gpus = True
                self._start_beside(change_gpus, vm)
            case ReleaseDevices():
                self._release(vm)
            case ForgetVm(because=because):
                if vm.record.slices:
                    self._release(vm)
                else:
                    await self._forget(vm, because)

    def _start_beside(
        self, change: Callable[[ManagedVm, Workshop], Awaitable[None]], vm: ManagedVm
    ) -> None:
        """Change a VM that runs; what the host had nothing left for is made good by a pass."""

        async def run() -> None:
            try:
                await change(vm, self.fleet.workshop)
            except Exception as error:
                if not is_shortage(error):
                    raise
                vm.media_tried = None
                await self._try_again([f"{vm.name}: {error}"])

        self.nursery.start_soon(run)

    def _release(self, vm: ManagedVm) -> None:
        async def release() -> None:
            try:
                await release_slices(vm, self.fleet.workshop)
            except ArcsupError as error:
                await self._try_again([f"{error.message}; {error.hint}"])
            except OSError as error:
                await self._try_again([describe_os_error(error)])
            except Exception as error:
                if not is_shortage(error):
                    raise
                await self._try_again([f"{vm.name}: {error}"])
            finally:
                vm.releasing = False
                self.dirty.mark("devices")

        vm.releasing = True
        self.nursery.start_soon(release)

    async def _forget(self, vm: ManagedVm, because: str) -> None:
        # While other actions were carried out, or the record is removed, it may be asked for again.
        if self.fleet.is_wanted(vm):
            return
        workshop = self.fleet.workshop
        try:
            with hold_for_removal(workshop.places, vm.name):
                await workshop.records.remove(vm.name)
        except LockHeld:
            # Without its record, what that QEMU has would be lost.
            self.nursery.start_soon(watch_unrecorded, vm, workshop)
            return
        if self.fleet.is_wanted(vm):
            return
        del self.fleet.vms[vm.name]
        self.metrics.forget(vm.name)
        if vm.record.transient:
            because = "it has ended; its file is not in the VM directory"
        self.fleet.workshop.tell(vm.name, "removed", because)
        self.fleet.changed.ring()

    def adopt_all(self) -> None:
        """Take over every QEMU that an earlier daemon left."""
        workshop = self.fleet.workshop
        for vm in self.fleet.vms.values():
            if vm.record.launch is not None:
                self.nursery.start_soon(resume_vm, vm, workshop, self.metrics.count_adopted)


def choose_accounts(config: Config, machine: str) -> Accounts:
    """Return whom VMs run as where the daemon is root. Raises Terminal."""
    per_vm = config.isolation is Isolation.PER_VM
    accounts = find_accounts(config.user, per_vm=per_vm, seed=machine)
    whom = "users of their own" if per_vm else f"user {accounts.shared.uid}"
    logger.info("VMs run as %s", whom)
    return accounts
