"""``gpu types --for NAME``: every type of every card, chosen for a VM's slot or why not."""

from collections.abc import Iterable, Iterator, Mapping

from attrs import define, field, frozen

from arcsup.devices import Inventory
from arcsup.model import GpuRequest, MiB
from arcsup.plan.assignment import Choice, Held, Place, Policy, VmRequests, slots_of
from arcsup.plan.candidates import Candidates, is_mere_screen, is_wanted, parent_named
from arcsup.plan.choose import Decision, make_planner
from arcsup.plan.offers import BACKENDS, VF, WHOLE, Offer, mismatch
from arcsup.plan.refusals import find_shortage
from arcsup.plan.room import CardRoom
from arcsup.plan.screens import describe_screen


@frozen
class TypeVerdict:
    """One type of one card. ``type`` is "" for a card that gives nothing of the kind at all.

    ``why`` is a sentence: what spoke for the chosen one, what spoke against each other.
    """

    card: str
    type: str
    name: str
    vram_mib: MiB | None
    chosen: bool
    why: str


_LOST = (
    "fits, but other cards come first: whole cards stay whole (`placement: pack`)",
    "fits, but a card near the VM (its NUMA node) comes first",
    "fits, but a type with more video memory comes first",
    "fits, but another series of this size comes first",
    "fits, but a card with more room comes first",
    "fits, but a card with a lower address comes first",
    "fits, but another type of this size comes first",
)
"""By the place of what decided in a preference."""

_LOST_SPREAD = "fits, but a card on which nothing is comes first (`placement: spread`)"


@define(eq=False)
class _Survey:
    """Looks at all types at the moment at which one slot's choice was made."""

    candidates: Candidates
    place: Place
    request: GpuRequest
    verdicts: tuple[TypeVerdict, ...] = field(default=())

    def watch(self, decision: Decision) -> None:
        if decision.place == self.place:
            found = [v for room in self.candidates.rooms for v in self._judge_card(room, decision)]
            choice = decision.choice
            if choice is not None and not any(verdict.chosen for verdict in found):
                # It is kept on a card that gives (or lists) no more of it.
                type_id = choice.type or ""
                memory, why = choice.vram_mib, choice.because
                kept = TypeVerdict(choice.card, type_id, choice.type_name, memory, True, why)
                found.insert(0, kept)
            self.verdicts = tuple(found)

    def _judge_card(self, room: CardRoom, decision: Decision) -> Iterator[TypeVerdict]:
        whole = room.offers.get(WHOLE)
        is_chosen = whole is not None and _is_choice(room, whole, decision.choice)
        if not is_chosen and (why := self._why_not_card(room)):
            yield TypeVerdict(room.card.address, "", "", None, False, why)
            return
        backends = BACKENDS[self.request.kind]
        for offer in room.offers.values():
            if offer.backend in backends:
                chosen = _is_choice(room, offer, decision.choice)
                why = decision.choice.because if chosen and decision.choice else ""
                why = why or self._why_not_type(room, offer, decision)
                identity = (room.card.address, offer.id, offer.name, offer.vram_mib)
                yield TypeVerdict(*identity, chosen, why)

    def _why_not_card(self, room: CardRoom) -> str:
        request = self.request
        named = request.address or request.parent
        if named and self.candidates.named_room(request) is not room:
            return f"not {named}, which the request names"
        if request.vendor not in ("", room.card.vendor):
            return f"not of the vendor asked for ({request.vendor})"
        if request.device not in ("", room.card.device):
            return f"not the device asked for ({request.device})"
        kind = request.kind
        obstacle = room.obstacles.get(kind)
        if named:
            obstacle = room.obstacle(kind, parent_named(request, room), force=request.force)
        return obstacle.because if obstacle else ""

    def _why_not_type(self, room: CardRoom, offer: Offer, decision: Decision) -> str:
        if because := mismatch(self.request, offer):
            return because
        if is_mere_screen(self.request, offer):
            return f"it is {describe_screen(offer.vendor, offer.device)}"
        parent = parent_named(self.request, room)
        if shortage := find_shortage(room, offer, parent):
            return shortage.because
        rank = self.candidates.rank(room, offer, parent)
        if rank is None or not is_wanted(self.request, offer):
            return "its IOMMU group is with another VM"
        if room.find_parent(offer, parent) is None:
            return "the parent that the request names has no room for one more"
        if decision.choice is None or decision.preference is None:
            kept = decision.choice.because if decision.choice else "nothing was chosen"
            return f"fits, but {kept} comes first"
        won = decision.preference
        mine = self.candidates.weigh(offer, rank, decision.nodes)
        pairs = enumerate(zip(mine, won, strict=True))
        decided = next((at for at, (own, other) in pairs if own != other), len(won))
        return _LOST_SPREAD if decided == 0 and self.candidates.spread else _LOST[decided]


def explain_types(
    place: Place,
    requests: Iterable[VmRequests],
    inventory: Inventory,
    policy: Policy,
    held: Mapping[Place, Held],
) -> tuple[TypeVerdict, ...]:
    """Return the verdict on every type of every card for one slot of one VM.

    All VMs are planned, as ``assign`` does it; the verdicts are of the moment at which it was the
    slot's turn. Nothing for a slot that there is not or that needs no GPU of the host.
    """
    vms = tuple(requests)
    slots = [dict(slots_of(vm)).get(place[1]) for vm in vms if vm.name == place[0]]
    request = next((slot for slot in slots if slot is not None), None)
    if request is None:
        return ()
    planner = make_planner(vms, inventory, policy, held)
    survey = _Survey(planner.candidates, place, request)
    planner.watch = survey.watch
    planner.plan_all()
    return survey.verdicts


def _is_choice(room: CardRoom, offer: Offer, choice: Choice | None) -> bool:
    if choice is None or choice.card != room.card.address or choice.backend is not offer.backend:
        return False
    return offer.id == choice.type or (choice.type is None and offer.id in (VF, WHOLE))
