"""Which slices the VMs get: the host's devices as last seen, the assignment, and what has failed.

Choosing is pure (plan/choose.py) and done for all VMs together before any device is touched. What
was chosen is written into a VM's record before it is made, and stays with the VM while it is
wanted up: a crash reuses the slice, and only a VM that stays down gives it back.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial

from attrs import Factory, define, evolve, field

from arcsup.devices import Backend, Inventory, Slice
from arcsup.host.owned import OwnedSlice, SliceChoice
from arcsup.host.slices import without_earlier_boots
from arcsup.look import DeviceLook
from arcsup.losses import Losses
from arcsup.model import GpuKind, NetworkType, Vm, VmName
from arcsup.network_allocation import (
    FindHeld,
    NetworkOutcomes,
    allocate_networks,
    as_slice_choices,
    networks_held,
    networks_held_on,
    version_of,
)
from arcsup.plan.assignment import (
    Assignment,
    Choice,
    Held,
    Place,
    Policy,
    VmRequests,
    slots_of,
)
from arcsup.plan.choose import assign
from arcsup.plan.lifecycle import Phase
from arcsup.plan.ownership import with_owners
from arcsup.plan.survey import TypeVerdict, explain_types
from arcsup.spec.config import Config, Placement
from arcsup.vm.managed import ManagedVm

STRIKES = 2
"""A slice that failed this often in a row is quarantined, and others are tried."""

_Problem = tuple[list[VmRequests], Inventory, Policy, Mapping[Place, Held]]
"""What ``assign`` takes."""


def policy_of(config: Config) -> Policy:
    """Return what the configuration says about GPUs."""
    return Policy(config.gpus, spread=config.placement is Placement.SPREAD)


def wants_devices(vm: Vm) -> bool:
    """Tell whether a VM asks for anything that only a device of the host can give."""
    has_network = any(network.type is NetworkType.VF for network in vm.networks)
    return has_network or any(request.kind is not GpuKind.VIRTIO for request in vm.gpus)


def awaits_whole_card(vm: ManagedVm) -> bool:
    """Tell whether a VM that is down asks for a whole card."""
    return vm.phase is Phase.DOWN and any(
        request.kind is GpuKind.PASSTHROUGH for request in vm.vm.gpus
    )


@define(eq=False)
class Allocation:
    """The one place that knows which slice goes where."""

    look: DeviceLook
    policy: Policy
    inventory: Inventory | None = None
    assignment: Assignment = field(factory=Assignment)
    networks: NetworkOutcomes = field(factory=dict)
    busy: Mapping[str, str] = field(factory=dict)
    """Why nothing of a card can be given now, by card."""
    uniform: frozenset[str] = frozenset()
    """Cards that could not be put in mixed-size mode."""
    strikes: dict[str, int] = field(factory=dict)
    used: Mapping[str, str] = field(factory=dict)
    """What of the host uses cards and what goes along with them, by function."""
    losses: Losses = field(
        default=Factory(lambda it: Losses(it.look.sysfs), takes_self=True), kw_only=True
    )
    _present: frozenset[str] = frozenset()
    """The ids of the slices that the last look has found."""

    def __attrs_post_init__(self) -> None:
        self.look.also = self.named
        self.look.lost = self.losses.lost

    async def observe(self, *, whole: bool = True) -> None:
        """Look at the host's GPUs; ``whole``: also at who on the host uses those of its drivers."""
        self.inventory = await self.look.observe()
        self.used = await self.look.find_use(self.inventory) if whole else {}
        slices = {piece.id for card in self.inventory.cards for piece in card.slices}
        vfs = (vf for card in self.inventory.network_cards for vf in card.vfs)
        self._present = frozenset(slices | {vf.address for vf in vfs if vf.vm is not None})

    def assign(self, vms: Iterable[ManagedVm], up: frozenset[VmName]) -> None:
        """Choose slices for all VMs that are ``up`` or should be; the result is ``assignment``."""
        if self.inventory is None:
            return
        inventory, vms = self.inventory, tuple(vms)
        self._choose(vms, up, lambda asking: self._pose(vms, asking, inventory), networks_held)

    def plan_on(
        self, inventory: Inventory, vms: Iterable[ManagedVm], up: frozenset[VmName]
    ) -> None:
        """Choose on another host, of which its inventory alone knows whose each slice is."""
        vms, self.inventory = tuple(vms), inventory

        def pose(asking: frozenset[VmName]) -> _Problem:
            requests = [requests_of(vm) for vm in vms if vm.name in asking and wants_devices(vm.vm)]
            return requests, inventory, self.policy, {}

        self._choose(vms, up, pose, partial(networks_held_on, inventory))

    def _choose(
        self,
        vms: tuple[ManagedVm, ...],
        up: frozenset[VmName],
        pose: Callable[[frozenset[VmName]], _Problem],
        held: FindHeld,
    ) -> None:
        in_vain = frozenset[VmName]()
        while True:
            # A VM that gets no network keeps no GPU from the others, and the other way round.
            problem = pose(up - in_vain)
            _, inventory, policy, _ = problem
            self.assignment = assign(*problem)
            asking = [vm for vm in vms if vm.name in up]
            self.networks = allocate_networks(asking, self.assignment, inventory, policy, held)
            refused = {place[0] for place, it in self.networks.items() if isinstance(it, str)}
            refused -= {vm.name for vm in asking if vm.phase is not Phase.DOWN}
            if refused <= in_vain:
                return
            in_vain |= refused

    def explain(
        self, vm: ManagedVm, vms: Iterable[ManagedVm], up: frozenset[VmName], inventory: Inventory
    ) -> dict[int, tuple[TypeVerdict, ...]]:
        """Return for each slot of ``vm`` every type of every card, and why it is (not) taken."""
        others = (other for other in vms if other.name != vm.name)
        problem = self._pose((vm, *others), up | {vm.name}, inventory)
        slots = slots_of(requests_of(vm))
        return {slot: explain_types((vm.name, slot), *problem) for slot, _ in slots}

    def find_slot(self, vm: ManagedVm, piece: Slice, inventory: Inventory) -> SliceChoice | None:
        """Return a slice that exists as the one of the slot that it suits; None: it suits none."""
        owners = {owned.id: vm.name for owned in vm.record.slices} | {piece.id: vm.name}
        kept = with_owners(inventory, owners)
        outcome = assign([requests_of(vm)], kept, self.policy, _held(vm))
        for slot, choice in outcome.choices_of(vm.name).items():
            if choice.id == piece.id and choice.exists:
                return _as_slice_choice(slot, choice)
        return None

    def _pose(
        self, vms: Iterable[ManagedVm], up: frozenset[VmName], inventory: Inventory
    ) -> _Problem:
        """Return what choosing takes. Whose a slice is, the journal says, not the last look."""
        vms = tuple(vms)
        asking = [vm for vm in vms if vm.name in up and wants_devices(version_of(vm))]
        owners = {it.id: vm.name for vm in vms for it in without_earlier_boots(vm.record.slices)}
        owners |= {choice.id: vm.name for vm in vms for choice in vm.promised}
        held = {place: one for vm in asking for place, one in _held(vm).items()}
        policy = evolve(
            self.policy,
            quarantined=self.quarantined(),
            busy=self.busy,
            uniform=self.uniform,
            lost=self.losses.lost(),
            owed=_find_owed(vms, up),
            used=self.used,
        )
        return [requests_of(vm) for vm in asking], with_owners(inventory, owners), policy, held

    def forget_assignment(self) -> bool:
        """Drop what was chosen and refused; tell whether there was anything."""
        before, self.assignment = (self.assignment, self.networks), Assignment()
        self.networks = {}
        return before != (self.assignment, self.networks)

    def named(self) -> frozenset[str]:
        """Return what the configuration names, PCI addresses among it."""
        return frozenset(entry.match for entry in self.policy.cards)

    def quarantined(self) -> frozenset[str]:
        """Return what has failed too often, by slice id or PARENT/TYPE."""
        return frozenset(name for name, count in self.strikes.items() if count >= STRIKES)

    def awaited_by(self, name: VmName) -> str:
        """Return what a VM lacks, in words; "" when it can have all that it must have."""
        obstacles = self.assignment.obstacles_of(name)
        lacks = [f"gpus[{slot}]: {refusal}" for slot, refusal in obstacles.items()]
        lacks += [
            f"networks[{place[1]}]: {why}"
            for place, why in self.networks.items()
            if place[0] == name and isinstance(why, str)
        ]
        return "; ".join(lacks)

    def is_hoarding(self, vm: ManagedVm) -> bool:
        """Tell whether a VM lacks a device, and has others that are there and that it has used."""
        has = any(it.id in self._present and not it.adopted for it in vm.record.slices)
        return has and bool(self.awaited_by(vm.name))

    def choices_for(self, name: VmName) -> tuple[SliceChoice, ...]:
        """Return the slices that a VM gets, as the back ends take them."""
        choices = self.assignment.choices_of(name).items()
        gpus = [_as_slice_choice(slot, choice) for slot, choice in choices]
        return (*gpus, *as_slice_choices(name, self.networks))

    def numa_node_of(self, name: VmName) -> int | None:
        """Return the NUMA node of a VM's first GPU, None where nothing tells."""
        choices = self.assignment.choices_of(name).values()
        return next((it.numa_node for it in choices if it.numa_node is not None), None)

    def note_failure(self, choice: SliceChoice | OwnedSlice) -> None:
        """Count a slice that could not be made or used."""
        for name in _names_of(choice):
            self.strikes[name] = self.strikes.get(name, 0) + 1

    def lift_quarantine(self, name: str) -> list[str]:
        """Forget the failures of a slice, or of all on a parent; return what was given up."""
        if self.losses.forget(name):
            return [name]
        lifted = [it for it in sorted(self.quarantined()) if name in (it, it.partition("/")[0])]
        for it in lifted:
            del self.strikes[it]
        return lifted

    def note_success(self, slices: Iterable[OwnedSlice]) -> None:
        """Forget the failures of slices that a VM runs with."""
        for owned in slices:
            for name in _names_of(owned):
                self.strikes.pop(name, None)


def _as_slice_choice(slot: int, choice: Choice) -> SliceChoice:
    return SliceChoice(
        backend=choice.backend,
        slot=slot,
        card=choice.card,
        parent=choice.parent,
        type=choice.type,
        id=choice.id,
        companions=choice.companions,
        vram_mib=choice.vram_mib,
        forced=choice.forced,
        force=choice.force,
    )


def requests_of(vm: ManagedVm) -> VmRequests:
    """Return what a VM asks for; one that runs, what it runs with."""
    version = version_of(vm)
    node = version.numa if isinstance(version.numa, int) else None
    return VmRequests(vm.name, version.uuid, version.gpus, node)


def _held(vm: ManagedVm) -> dict[Place, Held]:
    in_use = vm.phase is not Phase.DOWN
    return {
        (vm.name, it.slot): Held(it.backend, it.card, it.parent, it.type, it.id, in_use=in_use)
        for it in vm.claims
        if it.mac is None
    }


def _find_owed(vms: Iterable[ManagedVm], up: frozenset[VmName]) -> dict[str, VmName]:
    """Return what is being given back, or will be, by VMs that are not to have it again.

    After a power loss, or a bind that failed halfway, nothing of the device itself tells so.
    """
    return {
        address: vm.name
        for vm in vms
        for owned in vm.record.slices
        if vm.name not in up or (owned.left_over and vm.phase is not Phase.DOWN)
        for address in (owned.id, *(it.address for it in owned.rebindings))
    }


def _names_of(choice: SliceChoice | OwnedSlice) -> tuple[str, ...]:
    # An mdev's uuid says nothing about the hardware that failed; its parent and type do.
    if choice.backend is Backend.MDEV:
        return (f"{choice.parent}/{choice.type}",)
    return (choice.id,)
