"""All VMs of one daemon: what their files want, what their records remember, what runs.

Three sources meet here and nowhere else: the directory of VM files, the records on disk, and the
QEMU processes. ``look`` turns them into the values that the planner takes.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import trio
from attrs import Factory, define, evolve, field, frozen

from arcsup.allocation import Allocation
from arcsup.card_state import describe_stuck
from arcsup.errors import NoSuchObject, Refused, Terminal
from arcsup.events.dirty import Bell
from arcsup.host.memory import observe_available_memory
from arcsup.host.slices import is_stuck, without_earlier_boots
from arcsup.host.sysfs import Sysfs
from arcsup.host.writer import unanswered_writes
from arcsup.model import MiB, Vm, VmName
from arcsup.plan.lifecycle import Phase
from arcsup.plan.mode import NORMAL
from arcsup.plan.plan import HostSeen, Intent, Seen, Wanted, judge
from arcsup.plan.restart import Budget
from arcsup.real_paths import RealPaths
from arcsup.spec.directory import (
    Circumstances,
    DirectoryState,
    Entry,
    Snapshot,
    read_directory,
)
from arcsup.spec.faults import Fault
from arcsup.spec.identity import derive_uuid
from arcsup.spec.native import differences, read_vm, vm_to_native
from arcsup.spec.together import find_shared
from arcsup.unattended.store import AnswerStore
from arcsup.vm.live_gpus import wants_change
from arcsup.vm.managed import ManagedVm, Workshop
from arcsup.vm.record import WHAT_TO_DO, Record, Source
from arcsup.vm.run_room import tell_lack_of_room
from arcsup.vm.strays import Stray, what_to_do
from arcsup.vm.usb import UsbRequests, find_usb_awaited


@frozen
class BadFile:
    """A file that is wrong, and of which no good version is known."""

    name: VmName
    file: Path
    faults: tuple[str, ...]
    since: datetime


@frozen
class View:
    """One look at everything: what the planner takes. ``now`` is on the monotonic clock."""

    wanted: Mapping[VmName, Wanted]
    seen: Mapping[VmName, Seen]
    host: HostSeen
    now: float

    @property
    def up(self) -> frozenset[VmName]:
        """The VMs that are up or should be."""
        up = {n for n in self.wanted if judge(n, self.wanted, self.seen, self.host, self.now).up}
        up |= {name for name, it in self.seen.items() if it.phase is not Phase.DOWN}
        return frozenset(up)


@define(eq=False)
class Fleet:
    """The VMs by name, and the files that are none."""

    workshop: Workshop
    changed: Bell
    start_slots: int
    allocation: Allocation
    vms: dict[VmName, ManagedVm] = field(factory=dict)
    bad_files: dict[Path, BadFile] = field(factory=dict)
    unreadable: dict[VmName, str] = field(factory=dict)
    snapshot: Snapshot | None = None
    answers: AnswerStore = field(
        default=Factory(lambda it: AnswerStore(it.workshop.places.answers), takes_self=True)
    )
    unrecorded: dict[VmName, tuple[Stray, ...]] = field(factory=dict)
    """QEMUs that no record tells of, and that no VM here waits for."""
    held: str = ""
    """Why the VM directory is not believed although it can be read; "" when it is."""
    memory: Callable[[], MiB | None] = observe_available_memory
    """What the host can still give."""
    real_paths: RealPaths = field(factory=RealPaths)
    usb_awaited: dict[UsbRequests, str] = field(factory=dict)
    """Why VMs that are to run cannot have the USB devices that they ask for, "" where they can."""
    _last_good: dict[VmName, Vm] = field(factory=dict)
    _named: frozenset[VmName] | None = None
    """The VMs that files ask for; None while the directory cannot be believed: then all stay."""

    def find(self, name: str) -> ManagedVm:
        """Return a VM. Raises NoSuchObject, or Refused for a file that never was one."""
        vm = self.vms.get(VmName(name))
        if vm is not None:
            return vm
        for bad in self.bad_files.values():
            if bad.name == name:
                raise Refused(f"{name} is invalid: {bad.faults[0]}", f"edit {bad.file}")
        raise NoSuchObject(f"there is no VM {name}", "`arcsup list` shows those there are")

    def slice_owners(self) -> dict[str, VmName]:
        """Return which VM has which slice, by the slice's id."""
        return {
            owned.id: vm.name
            for vm in self.vms.values()
            for owned in without_earlier_boots(vm.record.slices)
        }

    def slice_homes(self) -> dict[str, str]:
        """Return which card each slice of the journal is on, by the slice's id."""
        return {it.id: it.card for vm in self.vms.values() for it in vm.record.slices}

    def findings(self) -> Iterator[str]:
        """Yield what is wrong beside single VMs: the directory, odd files, unreadable records."""
        if self.held:
            yield self.held
        if self.snapshot is not None:
            if self.snapshot.reason:
                yield self.snapshot.reason
            yield from map(str, self.snapshot.findings)
        yield from self.unreadable.values()
        yield from tell_lack_of_room(self.workshop.places, self.vms)
        for vm in self.vms.values():
            if vm.unrecorded is not None:
                yield f"{vm.name}: {vm.unrecorded}; {what_to_do(vm.name, vm.unrecorded)}"
        for whose, strays in sorted(self.unrecorded.items()):
            yield from (f"{whose}: {it}: end that process" for it in strays if it.is_there())
        yield from map(describe_stuck, sorted(unanswered_writes()))
        for name, because in sorted(self.allocation.losses.lost().items()):
            yield f"{name} is lost: {because}; `arcsup gpu unquarantine {name}` tries it again"
        for name in sorted(self.allocation.quarantined()):
            yield f"{name} failed too often: quarantined until `arcsup gpu unquarantine {name}`"

    def log_folders(self) -> dict[Path, VmName]:
        """Return where the logs are that grow, and whose they are."""
        places = self.workshop.places
        return {places.log_of(it.name): it.name for it in self.vms.values()}

    # --- records ---------------------------------------------------------------------------------

    def load_records(self) -> None:
        """Take up what earlier daemons knew. Called once, before anything else."""
        records, self.unreadable = self.workshop.records.load_all()
        for record in records.values():
            file = Path(record.source.file)
            parsed = read_vm(record.source.text, file, self.workshop.machine_id)
            if parsed.vm is None or parsed.vm.name != record.name:
                why = "; ".join(map(str, parsed.faults)) or f"it names {parsed.name}"
                where = self.workshop.records.path_of(record.name)
                self.unreadable[record.name] = f"{where} is wrong: {why}; {WHAT_TO_DO}"
                continue
            if record.intent_boot != self.workshop.boot_id:
                # A mode is a start's, and ends with it when the host does.
                record = evolve(record, mode=NORMAL)
            self.vms[record.name] = ManagedVm(record, parsed.vm)
            self._last_good[record.name] = parsed.vm

    def take_in_unrecorded(self, name: VmName) -> ManagedVm | None:
        """Take in a VM that has neither file nor record, for its QEMU; it is forgotten after that.

        Its definition is that of the record's copy in the runtime folder, where that is left.
        None where there is a record, which cannot be read.
        """
        if name in self.unreadable:
            return None
        workshop = self.workshop
        vm = Vm(name=name, uuid=derive_uuid(workshop.machine_id, name), autostart=False)
        file = workshop.places.vms / f"{name}.yaml"
        source = Source(str(file), json.dumps(vm_to_native(vm)), "")
        try:
            copy = workshop.records.load_copy(name)
        except Terminal as error:
            workshop.tell(name, "trouble", error.message)
            copy = None
        if copy is not None:
            parsed = read_vm(copy.source.text, Path(copy.source.file), workshop.machine_id)
            if parsed.vm is not None and parsed.vm.name == name:
                vm, source = parsed.vm, copy.source
        self.vms[name] = ManagedVm(Record(name, source, transient=True), vm)
        return self.vms[name]

    # --- files -----------------------------------------------------------------------------------

    async def read_files(self) -> None:
        """Read the VM directory and make each new good version durable.

        Raises a group of Terminal, or OSError, when the disk refuses.
        """
        workshop = self.workshop
        given = Circumstances(
            machine_id=workshop.machine_id,
            images=workshop.places.images,
            system=workshop.places.system,
            last_good=self._last_good,
            resolve=self.real_paths.resolve,
        )
        snapshot = await trio.to_thread.run_sync(
            partial(read_directory, workshop.places.vms, self.snapshot, given, time.time())
        )
        if snapshot is self.snapshot or not self._is_believable(snapshot):
            return
        before, self.snapshot = self.snapshot, snapshot
        try:
            self._keep_identity(snapshot)
            bad_files = await self._take_in_all(snapshot)
        except BaseException:
            # What could not be made durable is as good as unread: the next pass reads it again.
            self.snapshot = before
            raise
        self.bad_files = bad_files
        self._named = _names_of(snapshot)
        self.changed.ring()

    async def _take_in_all(self, snapshot: Snapshot) -> dict[Path, BadFile]:
        bad_files = {}
        async with trio.open_nursery() as nursery:
            for entry in snapshot.entries.values():
                if (fault := self.unreadable.get(entry.name)) is not None:
                    entry = evolve(entry, last_good=None, faults=(_as_fault(entry, fault),))
                if entry.last_good is None:
                    bad_files[entry.file] = self._as_bad_file(entry)
                else:
                    self._take_in(entry, entry.last_good, nursery)
        return bad_files

    def _take_in(self, entry: Entry, vm: Vm, nursery: trio.Nursery) -> None:
        source = Source(str(entry.file), entry.text, entry.digest)
        managed = self.vms.get(vm.name)
        if managed is None:
            managed = ManagedVm(Record(vm.name, source), vm)
            self.vms[vm.name] = managed
            nursery.start_soon(partial(managed.save, self.workshop))
        faults = tuple(map(str, entry.faults))
        if faults != managed.faults:
            managed.faults = faults
            for fault in faults:
                self.workshop.tell(vm.name, "file-invalid", fault)
        # One without a file that comes back with it as it was stops being transient.
        is_known = managed.record.source == source and not managed.record.transient
        if entry.vm is None or is_known:
            return
        managed.asked = vm
        changes: dict[str, object] = {"source": source, "transient": False}
        if managed.record.failure is not None and managed.record.failure.digest != source.digest:
            changes |= {"failure": None, "budget": Budget(), "retry_at": None}
        nursery.start_soon(partial(managed.save, self.workshop, **changes))
        self.workshop.tell(vm.name, "file-changed", f"{entry.file} was read")

    def _as_bad_file(self, entry: Entry) -> BadFile:
        faults = tuple(map(str, entry.faults))
        known = self.bad_files.get(entry.file)
        if known is not None and known.faults == faults:
            return known
        for fault in faults:
            self.workshop.tell(entry.name, "file-invalid", fault)
        return BadFile(entry.name, entry.file, faults, datetime.now(UTC))

    # An unmounted directory looks like one whose files were all removed, and the VMs of a whole
    # host would be stopped for it. While the daemon runs, read_directory sees the replacement;
    # across a restart of the daemon the identity that is kept here shows it.

    def _is_believable(self, snapshot: Snapshot) -> bool:
        self.held = ""
        if self.snapshot is not None or snapshot.directory is not DirectoryState.PRESENT:
            return True
        known = self.workshop.records.known_directory()
        if snapshot.entries or not self.vms or known in (None, snapshot.identity):
            return True
        self.held = (
            f"{self.workshop.places.vms} is another, empty directory than before (unmounted?);"
            " its VMs are kept; `arcsup reload` believes it"
        )
        return False

    def _keep_identity(self, snapshot: Snapshot) -> None:
        if snapshot.directory is not DirectoryState.PRESENT or snapshot.identity is None:
            return
        records = self.workshop.records
        if snapshot.identity != records.known_directory():
            records.keep_directory(snapshot.identity)

    def believe_directory(self) -> None:
        """Take the directory as it is, even if it was replaced by an empty one."""
        self.workshop.records.forget_directory()
        if self.snapshot is not None and self.snapshot.directory is DirectoryState.REPLACED_EMPTY:
            self.snapshot = None

    # --- one look --------------------------------------------------------------------------------

    def look(self) -> View:
        """Return everything that the planner decides from, as it is at this moment."""
        wanted = {vm.name: self._want(vm) for vm in self.vms.values() if self.is_wanted(vm)}
        # These may have something that the files promise to somebody else by now. Nobody compares
        # the file of a transient VM with those in the directory.
        strays = [
            vm
            for vm in self.vms.values()
            if vm.running is not None
            and (vm.record.transient or vm.name not in wanted or vm.running != vm.vm)
        ]
        return View(
            wanted=wanted,
            seen={vm.name: self._see(vm, strays) for vm in self.vms.values()},
            host=HostSeen(self.memory(), self.start_slots),
            now=time.monotonic(),
        )

    def is_wanted(self, vm: ManagedVm) -> bool:
        """Tell whether there is to be such a VM, running or not."""
        record = vm.record
        if record.transient:
            if vm.phase is not Phase.DOWN:
                return True
            stopped = record.intent in (Intent.STOP, Intent.KILL)
            over = stopped or (bool(record.halted) and not record.lasting)
            return not over and record.intent_boot == self.workshop.boot_id
        return self._named is None or vm.name in self._named

    def is_to_run(self, vm: ManagedVm) -> bool:
        """Tell whether it should be up as far as its file, its record and the operator say."""
        wanted = {vm.name: self._want(vm)}
        known = judge(vm.name, wanted, {}, HostSeen(), time.monotonic())
        return self.is_wanted(vm) and known.up

    def _want(self, vm: ManagedVm) -> Wanted:
        record, boot_id = vm.record, self.workshop.boot_id
        intent = record.intent
        if record.intent_boot != boot_id:
            # A stop outlasts the host's uptime; a start, a restart and a kill do not.
            intent = Intent.STOP if intent in (Intent.STOP, Intent.KILL) else Intent.NONE
        return Wanted(
            vm.vm,
            intent=intent,
            halted=record.halted if record.halted_boot == boot_id else "",
            failure=record.failure.because if record.failure else "",
        )

    def _see(self, vm: ManagedVm, strays: Sequence[ManagedVm]) -> Seen:
        current = vm.record.budget_boot == self.workshop.boot_id
        return Seen(
            phase=vm.phase,
            phase_since=vm.phase_since,
            dying=vm.order is not None and vm.order.hard,
            to_be_killed=self._want(vm).intent is Intent.KILL,
            differs=_differences(vm),
            retry_at=vm.record.retry_at if current else None,
            unrecorded="" if vm.unrecorded is None else str(vm.unrecorded),
            awaits=self._find_awaited(vm, strays) if vm.phase is Phase.DOWN else "",
            holds_devices=any(not owned.adopted for owned in vm.record.slices),
            hoards=vm.phase is Phase.DOWN and self.allocation.is_hoarding(vm),
            left_over=not (vm.changing_gpus or wants_change(vm))
            and any(owned.left_over for owned in vm.record.slices),
            releasing=vm.releasing,
            gpus_can_change=self._gpus_can_change(vm),
        )

    def _gpus_can_change(self, vm: ManagedVm) -> bool:
        """Tell whether what a running VM's file asks for beyond what it has is there.

        A change gives back what an earlier one has left over, so both never happen at once.
        """
        busy = vm.changing_gpus or vm.releasing or vm.order is not None
        # After a restart of the daemon the monitor takes a moment; its first answer marks.
        return (
            not busy
            and vm.qmp is not None
            and wants_change(vm)
            and not self.allocation.awaited_by(vm.name)
        )

    async def observe_usb(self, *, anew: bool) -> None:
        """Look what keeps USB devices from VMs that are to run; ``anew``: though it is known."""
        asking = {
            vm.vm.usb
            for vm in self.vms.values()
            if vm.vm.usb and vm.phase is Phase.DOWN and self.is_to_run(vm)
        }
        known = {} if anew else self.usb_awaited
        self.usb_awaited = {
            requests: known[requests]
            if requests in known
            else await find_usb_awaited(requests, self.workshop)
            for requests in asking
        }

    def _find_awaited(self, vm: ManagedVm, strays: Sequence[ManagedVm]) -> str:
        return (
            vm.hindrance
            or self._find_holder(vm, strays)
            or self._find_stuck(vm)
            or "; ".join(filter(None, self._list_devices_lacking(vm)))
        )

    def _list_devices_lacking(self, vm: ManagedVm) -> tuple[str, str]:
        return self.allocation.awaited_by(vm.name), self.usb_awaited.get(vm.vm.usb, "")

    def _find_stuck(self, vm: ManagedVm) -> str:
        """Return which of its own slices is only half given back, "" if none."""
        sysfs = Sysfs(self.workshop.places.sysfs)
        return next(filter(None, (is_stuck(owned, sysfs) for owned in vm.record.slices_in_use)), "")

    def _find_holder(self, vm: ManagedVm, strays: Sequence[ManagedVm]) -> str:
        """Return which VM must end before ``vm`` can have what it asks for, "" if none."""
        images = self.workshop.places.images
        for stray in strays:
            if stray is vm or stray.running is None:
                continue
            shared = find_shared(
                vm.vm, stray.running, lambda path: self.real_paths.resolve(images / path)
            )
            if shared:
                return f"VM {stray.name} to end, which still has {shared}"
        return ""


def _names_of(snapshot: Snapshot) -> frozenset[VmName] | None:
    if snapshot.directory is not DirectoryState.PRESENT:
        return None
    versions = (entry.last_good for entry in snapshot.entries.values())
    return frozenset(vm.name for vm in versions if vm is not None)


def _differences(vm: ManagedVm) -> tuple[str, ...]:
    if vm.running is None or vm.running == vm.vm:
        return ()
    keys = differences(vm.running, vm.vm)
    if vm.media_tried == vm.vm:
        # Once is enough: what a guest refused to let go of takes a restart.
        return tuple("cdroms" if key.startswith("cdroms[") else key for key in keys)
    return keys


def _as_fault(entry: Entry, message: str) -> Fault:
    return Fault(entry.file, 1, 1, "", message)


def default_start_slots() -> int:
    """Return how many VMs may be starting at once: two for each CPU of the host."""
    return 2 * (os.cpu_count() or 1)
