"""How much of a card is left while slices are planned on it, under its vendor's rule.

The kernel tells how many more of each type can be made *now*. It does not tell what making one
type leaves of the others, so that is reckoned, on the safe side: one slice of a type of which N
fit takes an Nth of everything. After each slice that is really made, the kernel is asked again.
"""

from bisect import insort
from collections import Counter
from collections.abc import Iterable, Mapping
from math import lcm

from attrs import define, field

from arcsup.devices import Backend, CapacityRule, Card, SliceType
from arcsup.model import MiB
from arcsup.plan.offers import Offer, size_of

VGPU = (Backend.MDEV, Backend.VENDOR_VFIO)


@define(eq=False)
class Pool:
    """What several types draw from: ``free`` units, what one of each type costs, and at most
    ``left`` of each."""

    free: int
    cost: Mapping[str, int]
    left: dict[str, int]

    def count(self, type_id: str) -> int:
        """Return how many more of a type fit."""
        left = self.left.get(type_id, 0)
        return min(left, self.free // self.cost[type_id]) if left else 0

    def take(self, type_id: str, number: int = 1) -> None:
        """Take room for one more; ``number`` -1 gives it back."""
        self.free -= number * self.cost[type_id]
        self.left[type_id] -= number


def shared_pool(available: Mapping[str, int]) -> Pool:
    """Return a pool of which one slice takes the part that the kernel's numbers tell."""
    left = {type_id: number for type_id, number in available.items() if number > 0}
    units = lcm(*left.values())
    return Pool(units, {type_id: units // number for type_id, number in left.items()}, left)


def single_pool(available: Mapping[str, int]) -> Pool:
    """Return a pool of one slice, of whatever type."""
    left = {type_id: 1 for type_id, number in available.items() if number > 0}
    return Pool(1, left, dict(left))


def framebuffer_pool(available: Mapping[str, int], vram: Mapping[str, MiB | None]) -> Pool:
    """Return a pool in MiB: at least what the largest number of one type would need is free."""
    left = {type_id: number for type_id, number in available.items() if number > 0}
    known = {type_id: size for type_id in left if (size := vram[type_id])}
    if len(known) < len(left):
        return shared_pool(available)
    return Pool(max((left[each] * size for each, size in known.items()), default=0), known, left)


@define(eq=False)
class Share:
    """What one pool and one rule govern: a card, or the MIG instances of one width.

    ``planned`` counts by what must be equal under the rule: the type, or the size.
    """

    rule: CapacityRule
    pool: Pool
    planned: dict[str, int] = field(factory=dict)

    def equal(self, offer: Offer) -> str:
        """Return what all slices have in common under the rule."""
        match self.rule:
            case CapacityRule.SAME_TYPE:
                return offer.id
            case CapacityRule.SAME_SIZE:
                return offer.size
            case CapacityRule.ANY | CapacityRule.MIXED:
                return ""

    def count(self, offer: Offer) -> int:
        """Return how many more fit."""
        if self.planned and self.equal(offer) not in self.planned:
            return 0
        return self.pool.count(offer.id)

    def take(self, offer: Offer, number: int = 1) -> None:
        """Take room for one more; ``number`` -1 gives it back."""
        self.pool.take(offer.id, number)
        equal = self.equal(offer)
        planned = self.planned.get(equal, 0) + number
        if planned:
            self.planned[equal] = planned
        else:
            del self.planned[equal]


@define(eq=False)
class Parents:
    """Several parents of one card: a VF has one vGPU, whatever the card could still have."""

    offered: Mapping[str, dict[str, int]]
    total: dict[str, int]
    _open: list[str]
    _pools: dict[str, Pool] = field(factory=dict)

    def find(self, type_id: str) -> str | None:
        """Return the first parent that has room."""
        return next((name for name in self._open if self.count(name, type_id)), None)

    def count(self, parent: str, type_id: str) -> int:
        """Return how many more fit on one parent."""
        pool = self._pools.get(parent)
        return pool.count(type_id) if pool else self.offered.get(parent, {}).get(type_id, 0)

    def take(self, parent: str, type_id: str, number: int = 1) -> None:
        """Take room for one more; ``number`` -1 gives it back."""
        offered = self.offered[parent]
        pool = self._pools.setdefault(parent, shared_pool(offered))
        before = {each: pool.count(each) for each in offered}
        pool.take(type_id, number)
        for each, number_before in before.items():
            self.total[each] += pool.count(each) - number_before
        has_room = any(pool.count(each) for each in offered)
        if not has_room:
            self._open.remove(parent)
        elif not any(before.values()):
            insort(self._open, parent)


def make_parents(offered: Mapping[str, dict[str, int]]) -> Parents:
    """Return the parents of a card; ``offered`` is parent -> type -> available."""
    total: dict[str, int] = {}
    for types in offered.values():
        for type_id, number in types.items():
            total[type_id] = total.get(type_id, 0) + number
    open_parents = sorted(name for name, types in offered.items() if any(types.values()))
    return Parents(offered, total, open_parents)


def available_on(kind: SliceType, card: Card) -> int:
    """Return how many more the kernel would make of a type on a parent, guessed if it is mute."""
    if kind.available is not None:
        return kind.available
    if card.rule in _EQUAL_SIZES:
        size = size_of(kind.id, kind.vram_mib)
        cut = [piece for piece in card.slices if piece.backend in VGPU]
        if any(size_of(piece.type, piece.vram_mib) != size for piece in cut):
            return 0
    return kind.maximum or 1 if kind.parent == card.address else 1


def make_shares(
    card: Card, offers: Iterable[Offer], total: Mapping[str, int], rule: CapacityRule
) -> dict[str, Share]:
    """Return share -> what is left of it, under a rule (the card's own, or mixed mode's to be).

    ``total`` is what all parents together have of each type. On VFs that says little: each has one
    vGPU, and there are more VFs than the card can have vGPUs; so the card's maximum counts too,
    all vGPUs of one size against the largest maximum of that size. Where units are counted freely
    and a VF has some, nothing tells what is left: then one is planned, and the kernel asked again.
    """
    members: dict[str, list[Offer]] = {}
    for offer in offers:
        members.setdefault(offer.share, []).append(offer)
    limits = _limits(card)
    shares = {}
    for name, group in members.items():
        used = _count_used(card, group)
        free = _free_framebuffer(card, limits) if rule is CapacityRule.MIXED else None
        available: dict[str, int] = {}
        for offer in group:
            room, limit = total[offer.id], limits.get(offer.id)
            if limit is not None:
                room = min(room, limit - used[offer.id])
                if rule in _EQUAL_SIZES:
                    alike = [limits.get(each.id, 0) for each in group if each.size == offer.size]
                    room = min(room, max(alike) - used[""])
            if free is not None and offer.vram_mib:
                room = min(room, free // offer.vram_mib)
            available[offer.id] = max(0, room)
        if rule is CapacityRule.MIXED:
            pool = framebuffer_pool(available, {offer.id: offer.vram_mib for offer in group})
        elif rule is CapacityRule.ANY and _is_untold(card, group, limits):
            pool = single_pool(available)
        else:
            pool = shared_pool(available)
        shares[name] = Share(rule, pool)
    return shares


_EQUAL_SIZES = (CapacityRule.SAME_TYPE, CapacityRule.SAME_SIZE)


def _limits(card: Card) -> dict[str, int]:
    """Return type -> the most of the card, for types on VFs, where it is told or can be told.

    What a card itself has available says all. A vendor vGPU's list tells no maximum; while nothing
    is cut, its largest type is the whole card.
    """
    on_vfs = [kind for kind in card.types if kind.parent != card.address]
    limits = {kind.id: kind.maximum for kind in on_vfs if kind.maximum is not None}
    if any(piece.backend in VGPU for piece in card.slices):
        return limits
    vendor = {kind.id: kind.vram_mib for kind in on_vfs if kind.backend is Backend.VENDOR_VFIO}
    largest = max((size for size in vendor.values() if size), default=0)
    guessed = {each: largest // size for each, size in vendor.items() if size}
    return guessed | limits


def _is_untold(card: Card, group: Iterable[Offer], limits: Mapping[str, int]) -> bool:
    """Tell whether nothing says how many of a group's types, on VFs, still fit."""
    ids = {offer.id for offer in group}
    on_vfs = {kind.id for kind in card.types if kind.parent != card.address} & ids
    return bool(on_vfs) and (bool(on_vfs - limits.keys()) or bool(_count_used(card, group)))


def _count_used(card: Card, group: Iterable[Offer]) -> Counter[str]:
    """Return how many slices count against a type's maximum, by type; under "" all of the group."""
    ids = {offer.id for offer in group}
    known = {kind.id for kind in card.types}
    used: Counter[str] = Counter()
    for piece in card.slices:
        if piece.backend in VGPU:
            used[piece.type or ""] += 1
            # Of a type that is listed no more nobody knows the share; it counts in each.
            if piece.type and (piece.type in ids or piece.type not in known):
                used[""] += 1
    return used


def _free_framebuffer(card: Card, limits: Mapping[str, int]) -> MiB | None:
    """Return the video memory that no slice has; None where it cannot be told."""
    sizes = {kind.id: kind.vram_mib for kind in card.types if kind.vram_mib is not None}
    whole = [limits[each] * size for each, size in sizes.items() if each in limits]
    cut = [
        piece.vram_mib if piece.vram_mib is not None else sizes.get(piece.type or "")
        for piece in card.slices
        if piece.backend in VGPU
    ]
    known = [size for size in cut if size is not None]
    return MiB(max(whole) - sum(known)) if whole and len(known) == len(cut) else None
