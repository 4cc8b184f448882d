"""Which slice each GPU request of each VM gets, and why the others get none. Pure.

All VMs are planned together. What exists stays where it is; then each VM gets the rest of what it
needs, all of it or nothing: a VM that cannot start must not keep from others what they could use.
Optional requests come last, so that they take nothing from what somebody needs.
"""

from collections.abc import Callable, Iterable, Mapping

from attrs import define, field, frozen

from arcsup.devices import Backend, Inventory
from arcsup.model import GpuKind, GpuRequest, VmName
from arcsup.plan.assignment import (
    Assignment,
    Choice,
    Held,
    Place,
    Policy,
    Refusal,
    Slots,
    VmRequests,
    slots_of,
)
from arcsup.plan.candidates import (
    Candidate,
    Candidates,
    Preference,
    is_kept_by_host,
    is_mere_screen,
    is_open,
    is_wanted,
    make_candidates,
    parent_named,
)
from arcsup.plan.offers import VF, WHOLE, Offer, mismatch
from arcsup.plan.refusals import Explainer
from arcsup.plan.room import CardRoom
from arcsup.plan.sticky import MdevIds, Present, find_present, keep_slices

FORMER = "where it was before"

TOGETHER = "with the rest of its IOMMU group, which goes as a whole"


def assign(
    requests: Iterable[VmRequests],
    inventory: Inventory,
    policy: Policy,
    held: Mapping[Place, Held],
) -> Assignment:
    """Return what each slot of each VM gets on a host.

    The result depends on what is passed in alone, not on any order in it: VMs that hold slices
    come first (those that run before the others), then by name.
    """
    planner = make_planner(requests, inventory, policy, held)
    planner.plan_all()
    return planner.finish()


@frozen
class Decision:
    """What one slot gets (None: nothing), and what decided; no preference where none was needed."""

    place: Place
    nodes: frozenset[int]
    choice: Choice | None
    preference: Preference | None


@frozen
class _Take:
    """A planned slice, to be undone when its VM cannot start."""

    slot: int
    request: GpuRequest
    room: CardRoom
    offer: Offer
    parent: str


@frozen
class _Turn:
    """One VM with its slots. ``runs``: it has slices in use, so it needs no others to start."""

    vm: VmRequests
    slots: Slots
    runs: bool


@define(eq=False)
class Planner:
    """The state of one planning. ``turns`` are the VMs in their order.

    ``together`` are sets of cards that only one VM can get, and only all at once.
    """

    candidates: Candidates
    held: Mapping[Place, Held]
    turns: list[_Turn]
    kept: dict[Place, Choice]
    present: Present
    ids: MdevIds
    together: list[tuple[CardRoom, ...]]
    watch: Callable[[Decision], None] | None = None
    """Called before each choice takes effect, for who explains."""
    chosen: dict[Place, Choice] = field(factory=dict)
    refused: dict[Place, GpuRequest] = field(factory=dict)
    spared: dict[Place, GpuRequest] = field(factory=dict)
    """What a VM could have had, if it had got the rest too."""
    _hopeless: set[GpuRequest] = field(factory=set)
    """Requests that nothing can meet any more: what is left only gets less."""

    def plan_all(self) -> None:
        """Choose for all requests, first those that VMs need."""
        for place, choice in self.kept.items():
            self._settle(Decision(place, frozenset(), choice, None))
        for turn in self.turns:
            self._keep_promised(turn)
        for turn in self.turns:
            self._plan_required(turn)
        for turn in self.turns:
            self._plan_optional(turn)

    def finish(self) -> Assignment:
        """Return the result, in the order of VM and slot."""
        explainer = Explainer(self.candidates)
        outcomes: dict[Place, Choice | Refusal] = dict(self.chosen)
        lacking: dict[VmName, list[int]] = {}
        for (name, slot), request in self.refused.items():
            outcomes[name, slot] = explainer.explain(request)
            if not request.optional:
                lacking.setdefault(name, []).append(slot)
        for (name, slot), request in self.spared.items():
            outcomes[name, slot] = explainer.spare(request, lacking[name])
        return Assignment(dict(sorted(outcomes.items())))

    def _keep_promised(self, turn: _Turn) -> None:
        """Give a QEMU that is being started what it is about to take, before anybody chooses."""
        self.candidates.vm = turn.vm.name
        held = {slot: self.held.get((turn.vm.name, slot)) for slot, _ in turn.slots}
        promised = {slot: it for slot, it in held.items() if it is not None and it.in_use}
        self.candidates.together = frozenset(it.card for it in promised.values())
        for slot, request in turn.slots:
            place = (turn.vm.name, slot)
            take = self._find_former(place, request) if slot in promised else None
            if place not in self.kept and take is not None:
                self._carry_out(turn, take, FORMER)
        self.candidates.together = frozenset()

    def _plan_required(self, turn: _Turn) -> None:
        """Choose for what a VM needs; cards that go only together are taken where it needs them."""
        if self._take_required(turn, []):
            return
        together: list[_Take] = []
        for rooms in self.together:
            more = self._match_together(turn, rooms, {take.slot for take in together})
            # What one that runs can have it keeps, and of the others nothing is taken yet.
            together = more if turn.runs else together + more
            if more and self._take_required(turn, together):
                return

    def _match_together(
        self, turn: _Turn, rooms: tuple[CardRoom, ...], used: set[int]
    ) -> list[_Take]:
        """Return for each of some cards the slot that takes it, if the VM can have them all.

        Optional requests count, too, as long as one that is needed is among them.
        """
        self.candidates.vm = turn.vm.name
        self.candidates.together = frozenset(room.card.address for room in rooms)
        requests = {
            slot: request
            for slot, request in turn.slots
            if slot not in used and (turn.vm.name, slot) not in self.chosen
        }
        suiting = [
            [slot for slot, asked in requests.items() if self.candidates.fits_whole(asked, room)]
            for room in rooms
        ]
        self.candidates.together = frozenset()
        slots = _match(suiting)
        if all(requests[slot].optional for slot in slots):
            return []
        return [
            _Take(slot, requests[slot], room, room.offers[WHOLE], room.card.address)
            for slot, room in zip(slots, rooms, strict=True)
        ]

    def _take_required(self, turn: _Turn, together: list[_Take]) -> bool:
        """Choose for what a VM needs, ``together`` first; tell whether it lacks nothing."""
        name, takes, lacks = turn.vm.name, list(together), False
        for slot, _ in turn.slots:
            self.refused.pop((name, slot), None)
            self.spared.pop((name, slot), None)
        for take in together:
            self._carry_out(turn, take, TOGETHER)
        for slot, request in self._open_slots(turn, optional=False):
            # A refusal beside slices that may be given back again proves nothing for others.
            found = self._choose(turn, slot, request, is_final=turn.runs or not takes)
            if found is None:
                self.refused[name, slot] = request
                lacks = True
            else:
                takes.append(found)
        if lacks and not turn.runs:
            for take in reversed(takes):
                self.candidates.give_back(take.room, take.offer, take.parent)
                del self.chosen[name, take.slot]
                self.spared[name, take.slot] = take.request
        return not lacks

    def _plan_optional(self, turn: _Turn) -> None:
        starts = turn.runs or not any(
            (turn.vm.name, slot) in self.refused for slot, _ in turn.slots
        )
        for slot, request in self._open_slots(turn, optional=True):
            if not starts:
                self.spared[turn.vm.name, slot] = request
            elif self._choose(turn, slot, request, is_final=True) is None:
                self.refused[turn.vm.name, slot] = request

    def _open_slots(self, turn: _Turn, *, optional: bool) -> list[tuple[int, GpuRequest]]:
        return [
            (slot, request)
            for slot, request in turn.slots
            if request.optional is optional and (turn.vm.name, slot) not in self.chosen
        ]

    def _choose(
        self, turn: _Turn, slot: int, request: GpuRequest, *, is_final: bool
    ) -> _Take | None:
        place = (turn.vm.name, slot)
        self.candidates.vm = turn.vm.name
        nodes = self._nodes(turn)
        take = self._find_former(place, request)
        preference, because = None, FORMER
        if take is None:
            found = None
            if request not in self._hopeless:
                found = self.candidates.best(request, nodes)
            if found is not None:
                preference, because = found.preference, _speak_for(found, request, nodes)
                wanted = parent_named(request, found.room)
                parent = found.room.find_parent(found.offer, wanted)
                assert parent is not None  # it was a candidate because it has room
                take = _Take(slot, request, found.room, found.offer, parent)
        if take is None:
            # Who may have a whole card depends on who has the rest of its IOMMU group.
            if is_final and request.kind is not GpuKind.PASSTHROUGH:
                self._hopeless.add(request)
            self._settle(Decision(place, nodes, None, None))
            return None
        self._carry_out(turn, take, because, nodes, preference)
        return take

    def _carry_out(
        self,
        turn: _Turn,
        take: _Take,
        because: str,
        nodes: frozenset[int] = frozenset(),
        preference: Preference | None = None,
    ) -> None:
        choice = self._make_choice(turn.vm, take, because)
        self._settle(Decision((turn.vm.name, take.slot), nodes, choice, preference))
        self.candidates.take(take.room, take.offer, take.parent, turn.vm.name)

    def _settle(self, decision: Decision) -> None:
        if self.watch is not None:
            self.watch(decision)
        if decision.choice is not None:
            self.chosen[decision.place] = decision.choice

    def _nodes(self, turn: _Turn) -> frozenset[int]:
        """Return the NUMA nodes to be near: where the VM is bound, else where its GPUs are."""
        if turn.vm.numa_node is not None:
            return frozenset({turn.vm.numa_node})
        places = ((turn.vm.name, slot) for slot, _ in turn.slots)
        found = (self.chosen[place].numa_node for place in places if place in self.chosen)
        return frozenset(node for node in found if node is not None)

    def _find_former(self, place: Place, request: GpuRequest) -> _Take | None:
        """Return where a slice that is there no more was, if that is still free."""
        before = self.held.get(place)
        if before is None or before.id in self.present.by_id:
            return None
        room = self.candidates.by_address.get(before.card)
        ids = {Backend.SRIOV: VF, Backend.PASSTHROUGH: WHOLE}
        offer = room.offers.get(ids.get(before.backend, before.type or "")) if room else None
        if room is None or offer is None or not is_wanted(request, offer):
            return None
        names = bool(request.address or request.parent)
        suits = self.candidates.named_room(request) is room if names else is_open(room, offer)
        suits = suits and not is_kept_by_host(room, offer, request)
        suits = suits and not is_mere_screen(request, offer)
        named = parent_named(request, room)
        rank = self.candidates.rank(room, offer, named)
        if not suits or mismatch(request, offer) or rank is None:
            return None
        former = before.id if before.backend is Backend.SRIOV else before.parent
        parent = room.find_parent(offer, named or former) or room.find_parent(offer, named)
        return None if parent is None else _Take(place[1], request, room, offer, parent)

    def _make_choice(self, vm: VmRequests, take: _Take, because: str) -> Choice:
        offer, card = take.offer, take.room.card
        is_type = offer.id not in (VF, WHOLE)
        is_whole = offer.id == WHOLE
        is_mdev = offer.backend is Backend.MDEV
        return Choice(
            backend=offer.backend,
            card=card.address,
            parent=take.parent,
            type=offer.id if is_type else None,
            type_name=offer.name,
            vram_mib=offer.vram_mib,
            id=self.ids.derive(vm.uuid, take.slot) if is_mdev else take.parent,
            exists=False,
            numa_node=card.numa_node,
            because=because,
            companions=take.room.companions if is_whole else (),
            forced=is_whole and (card.boot_vga or bool(card.in_use_by_host)),
            force=take.request.force,
        )


def make_planner(
    requests: Iterable[VmRequests],
    inventory: Inventory,
    policy: Policy,
    held: Mapping[Place, Held],
) -> Planner:
    """Return a planning that has not begun: what exists is kept, the turns are in order."""
    candidates = make_candidates(inventory, policy)
    present = find_present(candidates)
    former: dict[VmName, dict[int, Held]] = {}
    for (name, slot), before in sorted(held.items(), key=lambda item: item[0]):
        former.setdefault(name, {})[slot] = before
    kept: dict[Place, Choice] = {}
    turns: list[tuple[int, VmName, _Turn]] = []
    for vm in requests:
        had = former.get(vm.name, {})
        slots = slots_of(vm)
        keeps = keep_slices(vm.name, slots, had, present, policy)
        kept |= {(vm.name, slot): choice for slot, choice in keeps.items()}
        runs = any(before.in_use for before in had.values())
        rank = 0 if runs else 1 if keeps else 2 if had else 3
        turns.append((rank, vm.name, _Turn(vm, slots, runs)))
    turns.sort(key=lambda turn: turn[:2])
    return Planner(
        candidates=candidates,
        held=held,
        turns=[turn for _, _, turn in turns],
        kept=dict(sorted(kept.items())),
        present=present,
        ids=MdevIds(set(present.by_id) | policy.quarantined),
        together=candidates.find_together(),
    )


def _match(suiting: list[list[int]]) -> list[int]:
    """Return another slot for each, of those that suit it; nothing where one gets none."""
    chosen: list[int] = []

    def fill() -> bool:
        if len(chosen) == len(suiting):
            return True
        for slot in suiting[len(chosen)]:
            if slot not in chosen:
                chosen.append(slot)
                if fill():
                    return True
                chosen.pop()
        return False

    return chosen if fill() else []


def _speak_for(found: Candidate, request: GpuRequest, nodes: frozenset[int]) -> str:
    """Return in words what spoke for a candidate."""
    if request.address or request.parent:
        return "on the card that the request names"
    level, away, *_ = found.preference
    if found.offer.id == WHOLE:
        said = "a card on which nothing is"
    elif level == 0:
        said = (
            "on a card on which nothing is"
            if not found.room.cut
            else f"on a card that is cut in {found.offer.size} already"
        )
    else:
        said = (
            "no card with room is cut in this size" if not found.room.cut else "a cut card has room"
        )
    is_near = nodes and not away
    return f"{said}, near the VM (NUMA node {found.room.card.numa_node})" if is_near else said
