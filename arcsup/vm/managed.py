"""One VM as the daemon holds it: the values of its file and record, and the hold on its QEMU.

This is the only thing in the daemon that changes in place, and only trio tasks change it. What is
shown and what is decided are functions of it.
"""

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import trio
from attrs import Factory, define, evolve, field, frozen

from arcsup.errors import NotRecorded, Terminal
from arcsup.host.accounts import Accounts
from arcsup.host.cgroups import ControlGroups
from arcsup.host.owned import OwnedSlice, SliceChoice
from arcsup.model import Condition, ConditionType, LastExit, Vm, VmName
from arcsup.places import Places
from arcsup.plan.lifecycle import Evidence, Phase, Step, advance
from arcsup.plan.mode import NORMAL, in_mode
from arcsup.plan.usb import UsbPolicy
from arcsup.spec.native import vm_to_native
from arcsup.vm.process import Process
from arcsup.vm.qmp import Qmp
from arcsup.vm.record import Record, RecordStore
from arcsup.vm.restraint import Restraint
from arcsup.vm.stop import RungTaken
from arcsup.vm.strays import Stray
from arcsup.vm.viewer import Viewer


class Tell(Protocol):
    """Tells an event to whoever follows them, and logs it."""

    def __call__(self, vm: VmName | None, kind: str, message: str, **data: Any) -> None:
        """Tell of ``kind``; ``data`` is for programs."""
        ...


class Ended(Protocol):
    """Tells that a QEMU ended, and whether it will be started again by itself."""

    def __call__(self, vm: VmName, last_exit: LastExit, *, comes_back: bool) -> None:
        """Tell of one end."""
        ...


@define(eq=False)
class Workshop:
    """What the tasks of all VMs share. ``accounts`` to ``iommufd`` follow arcsup.yaml."""

    places: Places
    machine_id: str
    boot_id: str
    records: RecordStore
    tell: Tell
    changed: Callable[[], None]
    """Something about a VM changed: look again, and wake who waits for it."""
    became_ready: "Callable[[ManagedVm, float], None]"
    """A VM runs; the seconds from the decision to start it until then."""
    ended: Ended
    device_failed: Callable[[SliceChoice | OwnedSlice], None]
    """A slice could not be made or used."""
    viewer: Viewer | None = None
    """Who looks at the VMs; None is the daemon's own user."""
    accounts: Accounts | None = None
    """Whom QEMU runs as where the daemon is root; None where all is one user's."""
    control_groups: ControlGroups | None = None
    """How VMs get a control group each; None where they cannot have one."""
    private_tmp: bool = False
    """Whether VMs have a /tmp of their own."""
    no_privileged_files: bool = False
    """Whether what the daemon starts can make no set-user-ID program and no device node."""
    image_folders: tuple[Path, ...] = ()
    """Where images may be beside the images directory itself."""
    iommufd: bool = True
    """Devices go by iommufd where that can be."""
    usb: tuple[UsbPolicy, ...] = ()
    """Which USB devices of the host may be given to VMs."""
    hook_descriptors: int | None = None
    """How many descriptors hooks may open (a soft limit); None: as many as the daemon."""

    @property
    def shares_user(self) -> bool:
        """Whether the QEMUs of several VMs are one user of the kernel's."""
        return self.accounts is None or not self.accounts.per_vm


@frozen
class StopOrder:
    """That a QEMU is to end, why, and whether the guest is asked first."""

    because: str
    hard: bool = False
    start_failed: str = ""
    """Set when the order is the consequence of a start that did not work."""
    device_lost: bool = False
    """Whether it is a lost device that ends it, and not somebody's will."""
    hopeless: bool = False
    """Whether another start would fail the same way."""


@frozen
class SeenEnd:
    """How its QEMU ended, or why none was started, and what decides on what follows.

    ``at`` is when, on the monotonic clock; ``hopeless``: another start would fail the same way.
    """

    last_exit: LastExit
    at: float
    hopeless: bool = False
    device_trouble: bool = False


@define(eq=False)
class ManagedVm:
    """One VM under supervision."""

    record: Record
    asked: Vm
    """What its file asks for: the last version without faults."""
    faults: tuple[str, ...] = ()
    phase: Phase = Phase.DOWN
    phase_since: float = field(factory=time.monotonic)
    since: datetime = field(
        default=Factory(lambda it: it.record.since or datetime.now(UTC), takes_self=True)
    )
    starts: int = 0
    """How many QEMUs this daemon started or took over for it."""
    restarted_from: int = 0
    """``starts`` when the operator last asked for a restart."""
    running: Vm | None = None
    media_tried: Vm | None = None
    """The version whose CD-ROM images were put into the drives, or were refused by the guest."""
    gpus_refused: Vm | None = None
    """The version whose GPUs could not come to the running QEMU, or go from it."""
    changing_gpus: bool = False
    plugged: trio.Event = field(factory=trio.Event)
    """Set when GPUs have come to the running QEMU, or gone from it; then there is a new one."""
    cloning: bool = False
    """A disk of it is being copied."""
    unplugs: dict[str, trio.Event] = field(factory=dict)
    """Set when QEMU has given up the device of this id, or the guest has refused to."""
    process: Process | None = None
    not_removed: bool = False
    """Whether something of its last run is still there; it is tried again while the VM is down."""
    unrecorded: Stray | None = None
    """What keeps it from being started: a QEMU of it, as a rule, that no record tells of."""
    taken_over: bool = False
    """Whether the operator has adopted that QEMU: the record tells of it from here on."""
    qmp: Qmp | None = None
    session_over: trio.Event = field(factory=trio.Event)
    """Set when the QMP session of the moment has ended and all that it said is in."""
    ready: trio.Event = field(factory=trio.Event)
    """Set when the QEMU that this daemon started runs its guest."""
    enclosed: trio.Event = field(factory=trio.Event)
    """Set when its programs are in their control group, or cannot be."""
    adopted: bool = False
    choices: tuple[SliceChoice, ...] = ()
    """The slices of host devices that a start or a change under way is about to take."""
    gpu_node: int | None = None
    """The NUMA node of the first of them, None where nothing tells."""
    releasing: bool = False
    """Its devices are being given back."""
    evidence: Evidence = Evidence(was_ready=False)
    order: StopOrder | None = None
    ordered: trio.Event = field(factory=trio.Event)
    stopping_since: float | None = None
    """When its QEMU was first asked to end for ``order``, on trio's clock."""
    stop_steps: tuple[RungTaken, ...] = ()
    end: SeenEnd | None = None
    """How the QEMU that was there last has ended: nobody can look again until it is recorded."""
    not_saved: str = ""
    """Why what its last QEMU wrote to ephemeral disks could not be kept, and where it is."""
    unsaved: str = ""
    """Why the operator's wish to end it is not in its record yet, "" where it is."""
    conditions: dict[ConditionType, Condition] = field(factory=dict)
    restraint: Restraint = field(factory=Restraint)
    """How often what its QEMU says is told."""
    reason: str = ""
    """What ``list`` says beside the phase, while the process is up."""
    hindrance: str = ""
    """What the host lacks for its start; "" where nothing is known to be lacking."""
    hindrance_told: str = ""
    """The last such trouble that was told: it is tried again often, and told once."""

    @property
    def vm(self) -> Vm:
        """What is to run: what its file asks for, in the mode that the operator asked for."""
        mode = self.record.mode
        return self.asked if mode == NORMAL else in_mode(self.asked, mode)

    @property
    def promised(self) -> tuple[SliceChoice, ...]:
        """What was chosen for it and is nobody else's, though its record may not name it yet."""
        return self.choices if self.phase is Phase.STARTING or self.changing_gpus else ()

    @property
    def claims(self) -> tuple[OwnedSlice | SliceChoice, ...]:
        """What its slots have, and over that what they are about to have."""
        return (*self.record.slices_in_use, *self.promised)

    @property
    def name(self) -> VmName:
        """Its name."""
        return self.asked.name

    @property
    def file(self) -> Path:
        """Where its file is, or was."""
        return Path(self.record.source.file)

    @property
    def is_stuck(self) -> bool:
        """Whether not even SIGKILL has ended its QEMU."""
        return ConditionType.STUCK in self.conditions

    def step(self, step: Step, reason: str = "") -> None:
        """Move to the phase that follows; the table says which."""
        phase = advance(self.phase, step)
        if phase is not self.phase:
            self.phase = phase
            self.phase_since = time.monotonic()
            self.since = datetime.now(UTC)
        self.reason = reason

    def give_order(self, order: StopOrder) -> None:
        """Have its QEMU ended. A hard order overrides a soft one, never the other way round."""
        if self.order is None or (order.hard and not self.order.hard):
            self.order, self.stopping_since = order, None
            self.ordered.set()
            self.ordered = trio.Event()

    def set_condition(
        self, kind: ConditionType, reason: str, message: str, *, status: bool
    ) -> None:
        """Say something about the VM; ``since`` moves only when the statement turns round."""
        known = self.conditions.get(kind)
        since = known.since if known and known.status is status else datetime.now(UTC)
        self.conditions[kind] = Condition(kind, status, reason, message, since)

    async def save(self, workshop: Workshop, **changes: Any) -> None:
        """Change the record and make that durable before anything else happens.

        Raises Terminal when the disk refuses; then nothing has changed.
        """
        before = self.record
        self.record = changed = evolve(before, **changes)
        try:
            if self.unrecorded is None:
                await workshop.records.save(changed)
            else:
                await workshop.records.save_uncopied(changed)
        except Terminal:
            # Unless somebody has changed it further, which takes this change along.
            if self.record is changed:
                self.record = before
            raise
        if self.record is changed:
            # Whatever could not be written earlier was in it.
            self._note_unsaved("")

    async def save_or_remember(self, workshop: Workshop, **changes: Any) -> str:
        """Change the record as ``save`` does, for an end: that must not wait for room on a disk.

        Return why it is not durable, "" when it is. Then it holds for as long as this daemon lives
        or until ``save`` has worked: a later daemon would not know of it.
        """
        try:
            await self.save(workshop, **changes)
        except NotRecorded as error:
            self.record = evolve(self.record, **changes)
            self._note_unsaved(error.message)
            return error.message
        return ""

    def _note_unsaved(self, why: str) -> None:
        if why or self.unsaved:
            message = f"what the operator asked for is not recorded: {why}" if why else ""
            reason = "NotRecorded" if why else "Recorded"
            self.set_condition(ConditionType.RECORDED, reason, message, status=not why)
        self.unsaved = why

    async def save_running(self, workshop: Workshop) -> None:
        """Make durable what its QEMU runs with now, after a change to it while it ran."""
        if self.record.launch is not None and self.running is not None:
            text = json.dumps(vm_to_native(self.running))
            await self.save(workshop, launch=evolve(self.record.launch, text=text))
