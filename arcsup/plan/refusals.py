"""Why a request got nothing: one sentence for all cards and types that share it.

Sets of cards are numbers with a bit per card, so that what a thousand cards have in common costs
no more to say for ten thousand requests.
"""

from collections.abc import Iterator
from difflib import get_close_matches

from attrs import define, field

from arcsup.devices import CapacityRule
from arcsup.model import GpuKind, GpuRequest
from arcsup.plan.assignment import Reason, Refusal, WaitFor
from arcsup.plan.candidates import (
    Candidates,
    OfferCards,
    is_mere_screen,
    is_wanted,
    parent_named,
)
from arcsup.plan.capacity import VGPU
from arcsup.plan.obstacles import QUARANTINED, Obstacle
from arcsup.plan.offers import WHOLE, Offer, mismatch
from arcsup.plan.room import CardRoom
from arcsup.plan.screens import describe_screen

SHOWN = 3
"""Names given of each reason; the others are counted."""


@define(eq=False)
class _Shared:
    """One reason while it is gathered."""

    types: list[str] = field(factory=list)
    cards: int = 0


@define(eq=False)
class _Gathered:
    """The reasons of one refusal by their sentence, in the order in which they were found."""

    shared: dict[str, _Shared] = field(factory=dict)
    waiting_for: set[WaitFor] = field(factory=set)

    def add(self, why: Obstacle, cards: int = 0, type_name: str = "") -> None:
        """Take up that ``why`` holds for cards, as a whole or for one type."""
        shared = self.shared.setdefault(why.because, _Shared())
        shared.cards |= cards
        if type_name and type_name not in shared.types:
            shared.types.append(type_name)
        if why.waiting_for is not None:
            self.waiting_for.add(why.waiting_for)


@define(eq=False)
class Explainer:
    """Explains what was refused, once everything is planned."""

    candidates: Candidates
    _known: dict[GpuRequest, Refusal] = field(factory=dict)
    _obstacles: dict[GpuKind, list[tuple[Obstacle, int]]] = field(factory=dict)
    _shortages: dict[Offer, list[tuple[Obstacle, int]]] = field(factory=dict)
    _others: dict[tuple[str, str], int] = field(factory=dict)
    _close: dict[str, str] = field(factory=dict)

    def explain(self, request: GpuRequest) -> Refusal:
        """Return the refusal of a request that nothing met."""
        if request not in self._known:
            found = _Gathered()
            self._gather(request, found)
            reasons = tuple(self._show(because, shared) for because, shared in found.shared.items())
            waiting = tuple(each for each in WaitFor if each in found.waiting_for)
            self._known[request] = Refusal(reasons, waiting, request.optional)
        return self._known[request]

    def spare(self, request: GpuRequest, lacking: list[int]) -> Refusal:
        """Return the refusal of a request that was met in vain: its VM lacks other slots."""
        slots = ", ".join(map(str, lacking))
        reason = Reason(f"not taken, because the VM cannot start: it lacks a GPU for slot {slots}")
        return Refusal((reason,), (WaitFor.CAPACITY,), request.optional)

    def _gather(self, request: GpuRequest, found: _Gathered) -> None:
        low, high = request.min_vram_mib, request.max_vram_mib
        if low is not None and high is not None and low > high and not request.mdev_type:
            found.add(Obstacle(f"minVRam {low} MiB is more than maxVRam {high} MiB"))
            return
        every = (1 << len(self.candidates.rooms)) - 1
        named = request.address or request.parent
        if not named:
            found.waiting_for.add(WaitFor.CARD)
        if not every:
            found.add(Obstacle("the host has no GPU", WaitFor.CARD))
            return
        cards = every
        if named:
            room = self.candidates.named_room(request)
            if room is None:
                found.add(Obstacle(f"there is no GPU {named}", WaitFor.CARD))
                return
            cards = 1 << room.order
            if every != cards:
                found.add(Obstacle(f"not {named}, which the request names"), every & ~cards)
        if request.mdev_type:
            self._gather_misspelt(request, found)
        cards = self._gather_others(request, cards, found)
        cards = self._gather_screens(request, cards, found)
        cards = self._gather_obstacles(request, cards, found)
        for offered in self.candidates.by_kind[request.kind]:
            here = offered.mask & cards
            if here and is_wanted(request, offered.offer):
                self._gather_type(request, offered, here, found)

    def _show(self, because: str, shared: _Shared) -> Reason:
        rooms: list[str] = []
        left = shared.cards
        while left and len(rooms) < SHOWN:
            lowest = left & -left
            rooms.append(self.candidates.rooms[lowest.bit_length() - 1].card.address)
            left ^= lowest
        return Reason(
            because,
            tuple(shared.types[:SHOWN]),
            len(shared.types),
            tuple(rooms),
            shared.cards.bit_count(),
        )

    def _gather_misspelt(self, request: GpuRequest, found: _Gathered) -> None:
        asked = request.mdev_type
        if asked not in self._close:
            offers = [each.offer for each in self.candidates.by_kind[GpuKind.VGPU]]
            names = sorted({name for offer in offers for name in (offer.id, offer.name)})
            self._close[asked] = "" if asked in names else _find_close(asked, names)
        if self._close[asked]:
            found.add(Obstacle(self._close[asked]))

    def _gather_others(self, request: GpuRequest, cards: int, found: _Gathered) -> int:
        """Take up cards of another vendor or device; return the rest."""
        asked = (request.vendor, request.device)
        if asked not in self._others:
            self._others[asked] = sum(
                1 << room.order
                for room in self.candidates.rooms
                if request.vendor not in ("", room.card.vendor)
                or request.device not in ("", room.card.device)
            )
        others = self._others[asked] & cards
        if others:
            ids = f"{request.vendor or '*'}:{request.device or '*'}"
            found.add(Obstacle(f"not of the vendor and device asked for ({ids})"), others)
        return cards & ~others

    def _gather_screens(self, request: GpuRequest, cards: int, found: _Gathered) -> int:
        """Take up the cards that are no GPUs; return the rest."""
        for offered in self.candidates.by_kind[request.kind]:
            offer, here = offered.offer, offered.mask & cards
            if here and is_mere_screen(request, offer):
                screen = describe_screen(offer.vendor, offer.device)
                way = "`address` in the request takes it all the same"
                found.add(Obstacle(f"it is {screen}; {way}"), here)
                cards &= ~here
        return cards

    def _gather_obstacles(self, request: GpuRequest, cards: int, found: _Gathered) -> int:
        """Take up cards that give nothing of the kind; return the rest."""
        kind = request.kind
        if request.address or request.parent:
            rooms = [room for room in self.candidates.rooms if 1 << room.order & cards]
            obstacles = [
                (why, 1 << room.order)
                for room in rooms
                if (why := room.obstacle(kind, parent_named(request, room), force=request.force))
            ]
        else:
            if kind not in self._obstacles:
                self._obstacles[kind] = list(self._find_obstacles(kind))
            obstacles = self._obstacles[kind]
        for why, mask in obstacles:
            if mask & cards:
                found.add(why, mask & cards)
                cards &= ~mask
        return cards

    def _find_obstacles(self, kind: GpuKind) -> Iterator[tuple[Obstacle, int]]:
        masks: dict[Obstacle, int] = {}
        for room in self.candidates.rooms:
            if why := room.obstacles.get(kind):
                masks[why] = masks.get(why, 0) | 1 << room.order
        yield from masks.items()

    def _gather_type(
        self, request: GpuRequest, offered: OfferCards, cards: int, found: _Gathered
    ) -> None:
        offer = offered.offer
        if because := mismatch(request, offer):
            found.add(Obstacle(because), cards, offer.name)
            return
        if offer not in self._shortages:
            self._shortages[offer] = list(self._find_shortages(offered))
        for why, mask in self._shortages[offer]:
            if mask & cards:
                found.add(why, mask & cards, offer.name)
                cards &= ~mask
        if cards:
            found.add(self._why_in_vain(request, cards), cards, offer.name)

    def _find_shortages(self, offered: OfferCards) -> Iterator[tuple[Obstacle, int]]:
        masks: dict[Obstacle, int] = {}
        left = offered.mask
        while left:
            lowest = left & -left
            left ^= lowest
            room = self.candidates.rooms[lowest.bit_length() - 1]
            if why := find_shortage(room, offered.offer):
                masks[why] = masks.get(why, 0) | lowest
        yield from masks.items()

    def _why_in_vain(self, request: GpuRequest, cards: int) -> Obstacle:
        """Return why what is free was not given: it is elsewhere, or was free only in the end."""
        if request.kind is GpuKind.PASSTHROUGH:
            return Obstacle("its IOMMU group is with another VM", WaitFor.CAPACITY)
        room = self.candidates.rooms[cards.bit_length() - 1]
        if parent := parent_named(request, room):
            return Obstacle(f"{parent} has no room for one more", WaitFor.CAPACITY)
        return Obstacle("its room was for the VM's other requests", WaitFor.CAPACITY)


def find_shortage(room: CardRoom, offer: Offer, parent: str = "") -> Obstacle | None:
    """Return why a card, or ``parent`` on it, has no room for one more of an offer; else None."""
    if room.count(offer, parent):
        return None
    if room.whole_of:
        return Obstacle(f"handed out as a whole to {room.whole_of}", WaitFor.CAPACITY)
    if offer.id == WHOLE:
        return Obstacle("slices of it exist or are planned", WaitFor.CAPACITY)
    share = room.shares[offer.share]
    if share.planned and share.equal(offer) not in share.planned:
        return _one_at_a_time(share.rule, "is to be cut otherwise")
    if offer.id in share.pool.cost:
        return Obstacle("full: all that fit are taken", WaitFor.CAPACITY)
    parents = {kind.parent for kind in room.card.types if kind.id == offer.id}
    if (parents | {f"{parent}/{offer.id}" for parent in parents}) & room.quarantined:
        return Obstacle(QUARANTINED)
    is_cut = any(piece.backend in VGPU for piece in room.card.slices)
    is_other = {
        CapacityRule.SAME_TYPE: True,
        CapacityRule.SAME_SIZE: offer.size not in room.cut,
    }
    if is_cut and is_other.get(share.rule, False):
        return _one_at_a_time(share.rule, "is cut otherwise")
    if any(other.pool.cost for name, other in room.shares.items() if name != offer.share):
        instances = "has no free GPU instance of this kind" if offer.share else "is in MIG mode"
        return Obstacle(f"none available: the card {instances}", WaitFor.CAPACITY)
    return Obstacle("none available: the driver makes no more of it now", WaitFor.CAPACITY)


def _one_at_a_time(rule: CapacityRule, how: str) -> Obstacle:
    unit = "type" if rule is CapacityRule.SAME_TYPE else "size"
    return Obstacle(f"the card {how}, and takes one {unit} at a time", WaitFor.CAPACITY)


def _find_close(asked: str, names: list[str]) -> str:
    same = [name for name in names if name.lower() == asked.lower()]
    close = same or get_close_matches(asked, names, 1, 0.7)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"no card here has a type {asked}{hint}"
