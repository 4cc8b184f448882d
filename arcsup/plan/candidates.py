"""All cards by what they offer, the best one first, while slices are planned on them.

Each offer keeps its cards in heaps, one of all cards and one per NUMA node. A card's place gets
worse as it fills up; that is noticed when it comes up. What makes a place better (the card is cut
in this size now, a slice is given back) pushes the card anew. So each request looks at a few tops.
"""

from collections.abc import Iterable, Iterator
from heapq import heappop, heappush, heapreplace

from attrs import define, field, frozen

from arcsup.devices import Inventory
from arcsup.model import GpuKind, GpuRequest
from arcsup.plan.assignment import Policy
from arcsup.plan.obstacles import make_policy_table
from arcsup.plan.offers import BACKENDS, WHOLE, Offer, mismatch
from arcsup.plan.room import CardRoom, address_order, make_room
from arcsup.plan.screens import describe_screen, means_screen

Rank = tuple[int, int, int]
"""How well a card suits an offer: its level (see ``level_of``), minus what is free, its order."""

Preference = tuple[int, int, int, int, int, int]
"""What decides between candidates, the least first: level, not on the wanted NUMA node, minus
video memory, series, minus what is free, the card's order."""


@frozen
class Candidate:
    """A card and an offer that meet a request, and how much speaks for them."""

    room: CardRoom
    offer: Offer
    preference: Preference


@define(eq=False)
class OfferCards:
    """An offer with the cards that have it; ``mask`` has a bit for each one's order."""

    offer: Offer
    mask: int = 0
    heaps: dict[int | None, list[Rank]] = field(factory=dict)


@define(eq=False)
class Candidates:
    """``rooms`` in address order; ``by_address`` finds them by card, parent and VF.

    ``groups`` is who has an IOMMU group; ``vm`` is for whom is looked now, and ``together`` which
    cards it is about to get at one go.
    """

    rooms: list[CardRoom]
    spread: bool
    by_address: dict[str, CardRoom] = field(factory=dict)
    by_kind: dict[GpuKind, list[OfferCards]] = field(factory=dict)
    groups: dict[int, str] = field(factory=dict)
    vm: str = ""
    together: frozenset[str] = frozenset()
    offers: dict[Offer, OfferCards] = field(factory=dict)
    _suiting: dict[GpuRequest, list[OfferCards]] = field(factory=dict)
    _group_mates: dict[int, list[CardRoom]] = field(factory=dict)

    def enter(self, room: CardRoom) -> None:
        """Take up a card."""
        card = room.card
        functions = [vf.address for vf in card.vfs] + [kind.parent for kind in card.types]
        for address in (card.address, *functions):
            self.by_address.setdefault(address, room)
        if card.group is not None:
            self._group_mates.setdefault(card.group.number, []).append(room)
            if room.whole_of:
                self.groups[card.group.number] = room.whole_of
        for offer in room.offers.values():
            cards = self.offers.setdefault(offer, OfferCards(offer))
            cards.mask |= 1 << room.order
        self._push(room, room.offers.values())

    def level_of(self, room: CardRoom, offer: Offer) -> int:
        """Return 0 for the cards to be taken first.

        Packed: those cut in this size, then those cut at all, so that whole cards stay whole.
        Spread: those on which there is nothing.
        """
        if self.spread:
            return 1 if room.cut else 0
        if offer.size in room.cut:
            return 0
        return 1 if room.cut else 2

    def rank(self, room: CardRoom, offer: Offer, parent: str = "") -> Rank | None:
        """Return a card's place among those that have an offer; None where nothing is left.

        ``parent`` is what a request names on the card.
        """
        free = room.count(offer, parent)
        if not free or (offer.id == WHOLE and not self._may_have_group(room)):
            return None
        return (self.level_of(room, offer), -free, room.order)

    def _may_have_group(self, room: CardRoom) -> bool:
        group = room.card.group
        if group is not None and self.groups.get(group.number, self.vm) != self.vm:
            return False
        return all(mate in self.together or self._has(mate) for mate in room.mates)

    def _has(self, mate: str) -> bool:
        room = self.by_address.get(mate)
        return room is not None and bool(self.vm) and room.whole_of == self.vm

    def find_together(self) -> list[tuple[CardRoom, ...]]:
        """Return the sets of cards that only one VM can get, and only all at once."""
        found: dict[frozenset[str], tuple[CardRoom, ...]] = {}
        for room in self.rooms:
            names = {room.card.address}
            left = list(room.mates)
            while left:
                if (mate := left.pop()) not in names:
                    names.add(mate)
                    known = self.by_address.get(mate)
                    left += known.mates if known else ()
            rooms = [self.by_address[name] for name in names if name in self.by_address]
            if len(names) > 1 and len(rooms) == len(names):
                found[frozenset(names)] = tuple(sorted(rooms, key=lambda it: it.order))
        return list(found.values())

    def fits_whole(self, request: GpuRequest, room: CardRoom) -> bool:
        """Tell whether a card would meet a request for a whole one, with all of ``together``."""
        offer = room.offers.get(WHOLE)
        if offer is None or not is_wanted(request, offer) or is_mere_screen(request, offer):
            return False
        if is_kept_by_host(room, offer, request) or self.rank(room, offer) is None:
            return False
        if request.address or request.parent:
            return self.named_room(request) is room and not parent_named(request, room)
        return room.closed is None

    def suiting(self, request: GpuRequest) -> list[OfferCards]:
        """Return the offers that a request is content with, those with most memory first."""
        found = self._suiting.get(request)
        if found is None:
            found = [
                cards
                for cards in self.by_kind.get(request.kind, [])
                if is_wanted(request, cards.offer)
                and not mismatch(request, cards.offer)
                and not is_mere_screen(request, cards.offer)
            ]
            self._suiting[request] = found
        return found

    def best(self, request: GpuRequest, nodes: frozenset[int]) -> Candidate | None:
        """Return the best card and offer for a request; ``nodes`` are the NUMA nodes wanted."""
        if request.address or request.parent:
            return min(
                self._named(request, nodes), key=lambda found: found.preference, default=None
            )
        best: tuple[Preference, Offer] | None = None
        for cards in self.suiting(request):
            # What comes now has less memory, so it cannot beat one that is perfect so far.
            if best is not None and best[0] < (0, 0, -(cards.offer.vram_mib or 0)):
                break
            for node in (*nodes, None):
                rank = self._top(cards, node)
                if rank is not None:
                    preference = self.weigh(cards.offer, rank, nodes)
                    if best is None or preference < best[0]:
                        best = (preference, cards.offer)
        return None if best is None else self._candidate(*best)

    def _named(self, request: GpuRequest, nodes: frozenset[int]) -> Iterator[Candidate]:
        room = self.named_room(request)
        if room is None:
            return
        for offer in sorted(room.offers.values(), key=_offer_order):
            parent = parent_named(request, room)
            rank = self.rank(room, offer, parent) if is_wanted(request, offer) else None
            if rank is None or mismatch(request, offer):
                continue
            if is_kept_by_host(room, offer, request):
                continue
            if room.find_parent(offer, parent) is not None:
                yield self._candidate(self.weigh(offer, rank, nodes), offer)

    def named_room(self, request: GpuRequest) -> CardRoom | None:
        """Return the card that a request names; None where there is no such card."""
        names = {name for name in (request.address, request.parent) if name}
        rooms = [self.by_address.get(name) for name in names]
        return rooms[0] if all(room is rooms[0] for room in rooms) else None

    def weigh(self, offer: Offer, rank: Rank, nodes: frozenset[int]) -> Preference:
        """Return how much speaks for a card of a rank."""
        level, free, order = rank
        away = 1 if nodes and self.rooms[order].card.numa_node not in nodes else 0
        return (level, away, -(offer.vram_mib or 0), offer.series, free, order)

    def _candidate(self, preference: Preference, offer: Offer) -> Candidate:
        return Candidate(self.rooms[preference[-1]], offer, preference)

    def _top(self, cards: OfferCards, node: int | None) -> Rank | None:
        heap = cards.heaps.get(node)
        while heap:
            top = heap[0]
            now = self.rank(self.rooms[top[2]], cards.offer)
            if now == top:
                return now
            if now is None:
                heappop(heap)
            else:
                heapreplace(heap, now)
        return None

    def take(self, room: CardRoom, offer: Offer, parent: str, vm: str) -> None:
        """Plan a slice; where that makes the card better for others, they get to know."""
        was_cut, had_size = bool(room.cut), offer.size in room.cut
        room.take(offer, parent, vm)
        if offer.id == WHOLE:
            if room.card.group is not None:
                self.groups[room.card.group.number] = vm
        elif not self.spread and not had_size:
            better = [o for o in room.offers.values() if not was_cut or o.size == offer.size]
            self._push(room, better)

    def give_back(self, room: CardRoom, offer: Offer, parent: str) -> None:
        """Undo ``take``."""
        room.give_back(offer, parent)
        self._push(room, room.offers.values())
        group = room.card.group
        if offer.id == WHOLE and group is not None:
            mates = self._group_mates.get(group.number, [])
            if not any(mate.whole_of for mate in mates):
                del self.groups[group.number]
            for mate in mates:
                self._push(mate, mate.offers.values())

    def _push(self, room: CardRoom, offers: Iterable[Offer]) -> None:
        for offer in offers:
            rank = self.rank(room, offer)
            heaps = self.offers[offer].heaps
            if rank is not None and is_open(room, offer):
                heappush(heaps.setdefault(None, []), rank)
                if room.card.numa_node is not None:
                    heappush(heaps.setdefault(room.card.numa_node, []), rank)


def make_candidates(inventory: Inventory, policy: Policy) -> Candidates:
    """Return all cards of a host as the kernel tells them, nothing planned yet."""
    table = make_policy_table(policy.cards)
    known: dict[Offer, Offer] = {}
    cards = sorted(inventory.cards, key=lambda card: address_order(card.address))
    rooms = [make_room(card, order, policy, table, known) for order, card in enumerate(cards)]
    found = Candidates(rooms, policy.spread)
    for room in rooms:
        found.enter(room)
    for kind, backends in BACKENDS.items():
        offers = [each for each in found.offers.values() if each.offer.backend in backends]
        found.by_kind[kind] = sorted(offers, key=lambda each: _offer_order(each.offer))
    return found


def is_open(room: CardRoom, offer: Offer) -> bool:
    """Tell whether a card gives an offer to requests that do not name the card."""
    return offer.id != WHOLE or room.closed is None


def is_kept_by_host(room: CardRoom, offer: Offer, request: GpuRequest) -> bool:
    """Tell whether a card would be given whole that the host uses, without being forced to."""
    return offer.id == WHOLE and room.use is not None and not request.force


def is_mere_screen(request: GpuRequest, offer: Offer) -> bool:
    """Tell whether an offer is a screen that is no GPU, and the request does not name such."""
    if offer.id != WHOLE or request.address or request.parent:
        return False
    is_meant = means_screen(request.vendor, request.device)
    return not is_meant and bool(describe_screen(offer.vendor, offer.device))


def is_wanted(request: GpuRequest, offer: Offer) -> bool:
    """Tell whether an offer is of the kind, vendor and device that a request asks for."""
    return (
        offer.backend in BACKENDS[request.kind]
        and request.vendor in ("", offer.vendor)
        and request.device in ("", offer.device)
    )


def parent_named(request: GpuRequest, room: CardRoom) -> str:
    """Return the parent on a card that a request names; "" where it names the card itself."""
    names = (name for name in (request.address, request.parent) if name)
    return next((name for name in names if name != room.card.address), "")


def _offer_order(offer: Offer) -> tuple[int, int, str, str, str]:
    return (-(offer.vram_mib or 0), offer.series, offer.name, offer.id, offer.device)
