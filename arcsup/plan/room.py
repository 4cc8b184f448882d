"""One card while slices are planned on it: what it offers, what is left, how it is cut."""

import re
from collections import Counter
from collections.abc import Iterator

from attrs import define, field

from arcsup.devices import Backend, CapacityRule, Card, Function, SliceType
from arcsup.model import GpuKind
from arcsup.plan.assignment import Policy, WaitFor
from arcsup.plan.capacity import (
    VGPU,
    Parents,
    Share,
    available_on,
    make_parents,
    make_shares,
    shared_pool,
)
from arcsup.plan.obstacles import (
    Obstacle,
    PolicyTable,
    find_bar,
    find_companions,
    find_mates_obstacle,
    find_obstacle,
    find_use,
    vf_obstacle,
)
from arcsup.plan.offers import (
    VF,
    WHOLE,
    Offer,
    function_offer,
    offer_of,
    size_of,
    vram_of_vfs,
)

_PCI = re.compile(r"([0-9a-f]{4,8}):([0-9a-f]{2}):([0-9a-f]{2})\.([0-7])")
_HOST_KINDS = (GpuKind.VGPU, GpuKind.VF, GpuKind.PASSTHROUGH)


def address_order(address: str) -> tuple[int, int, int, int, str]:
    """Return a key that sorts PCI addresses by number; what is no PCI comes after them."""
    match = _PCI.fullmatch(address)
    if match is None:
        return (1 << 32, 0, 0, 0, address)
    domain, bus, slot, function = (int(part, 16) for part in match.groups())
    return (domain, bus, slot, function, "")


@define(eq=False)
class CardRoom:
    """``order`` is the card's place among all; ``offers`` are by the type's id, VF and WHOLE.

    ``parents`` is None where all slices are made on the card itself. ``cut`` counts the slices
    that are there and those planned, by size. ``whole_of`` is who has it as a whole.
    ``obstacles`` say why it gives nothing of a kind to a request that does not name it; ``bar``
    why it gives nothing at all; ``firm`` why not even a request that names it gets the whole.
    ``use`` is what of the host uses it; ``excluded`` its functions that the operator excludes.
    ``vf_obstacles`` say why a virtual function goes not even to a request that names it, and
    ``prepared`` has those that go to no other, for somebody else bound them to VFIO, with 1, or 0
    where one is planned. ``companions`` go along with the whole. ``closed`` says why the whole is
    not for requests that do not name it, ``apart`` why it is for nobody who does not get others of
    its IOMMU group, too.
    """

    card: Card
    order: int
    offers: dict[str, Offer]
    shares: dict[str, Share]
    parents: Parents | None
    obstacles: dict[GpuKind, Obstacle]
    bar: Obstacle | None
    firm: Obstacle | None
    cut: Counter[str]
    whole_of: str = ""
    quarantined: frozenset[str] = field(factory=frozenset)
    use: Obstacle | None = None
    excluded: frozenset[str] = field(factory=frozenset)
    vf_obstacles: dict[str, Obstacle] = field(factory=dict)
    prepared: dict[str, int] = field(factory=dict)
    companions: tuple[str, ...] = ()
    closed: Obstacle | None = None
    apart: Obstacle | None = None

    @property
    def mates(self) -> tuple[str, ...]:
        """The cards, by address, that whoever gets the whole must have, too."""
        return self.card.group.mates if self.card.group else ()

    def obstacle(self, kind: GpuKind, parent: str, *, force: bool) -> Obstacle | None:
        """Return why it gives nothing of a kind to a request that names it, or ``parent`` on it."""
        if kind is GpuKind.VF and parent:
            if parent in self.prepared:
                taken = Obstacle(f"{parent} is taken", WaitFor.CAPACITY)
                return None if self.prepared[parent] else taken
            return self.bar or self.vf_obstacles.get(parent) or self.obstacles.get(kind)
        if kind is not GpuKind.PASSTHROUGH:
            return self.obstacles.get(kind)
        return self.firm or (None if force else self.use) or self.apart

    def count(self, offer: Offer, wanted: str = "") -> int:
        """Return how many more of an offer fit, also on ``wanted``, which goes only by name."""
        if self.whole_of:
            return 0
        if offer.id == WHOLE:
            return 0 if self.cut else 1
        if offer.id == VF and wanted in self.prepared:
            return self.prepared[wanted]
        number = self.shares[offer.share].count(offer)
        if number and self.parents is not None:
            return min(number, self.parents.total[offer.id])
        return number

    def find_parent(self, offer: Offer, wanted: str = "") -> str | None:
        """Return where one more of an offer can be made, nowhere but on ``wanted`` if given."""
        if not self.count(offer, wanted):
            return None
        if offer.id == VF and wanted in self.prepared:
            return wanted
        if self.parents is None or offer.id == WHOLE:
            return self.card.address if wanted in ("", self.card.address) else None
        if wanted:
            return wanted if self.parents.count(wanted, offer.id) else None
        return self.parents.find(offer.id)

    def take(self, offer: Offer, parent: str, vm: str) -> None:
        """Plan one more slice; ``find_parent`` said where."""
        if offer.id == WHOLE:
            self.whole_of = vm
            return
        self.cut[offer.size] += 1
        if offer.id == VF and parent in self.prepared:
            self.prepared[parent] -= 1
            return
        self.shares[offer.share].take(offer)
        if self.parents is not None:
            self.parents.take(parent, offer.id)

    def give_back(self, offer: Offer, parent: str) -> None:
        """Undo ``take``."""
        if offer.id == WHOLE:
            self.whole_of = ""
            return
        self.cut[offer.size] -= 1
        if not self.cut[offer.size]:
            del self.cut[offer.size]
        if offer.id == VF and parent in self.prepared:
            self.prepared[parent] += 1
            return
        self.shares[offer.share].take(offer, -1)
        if self.parents is not None:
            self.parents.take(parent, offer.id, -1)


def make_room(
    card: Card, order: int, policy: Policy, table: PolicyTable, known: dict[Offer, Offer]
) -> CardRoom:
    """Return a card's room as the kernel tells it; ``known`` keeps one object for equal offers."""
    obstacles: dict[GpuKind, Obstacle] = {}
    for kind in _HOST_KINDS:
        if obstacle := find_obstacle(card, kind, policy, table, named=False):
            obstacles[kind] = obstacle
    closed, apart = obstacles.get(GpuKind.PASSTHROUGH), find_mates_obstacle(card)
    if closed is None and apart is not None:
        obstacles[GpuKind.PASSTHROUGH] = apart
    offers: dict[str, Offer] = {}
    offered: dict[str, dict[str, int]] = {}
    if GpuKind.VGPU not in obstacles:
        busy = {name for piece in card.slices for name in (piece.id, piece.parent)}
        busy.discard(card.address)
        for kind_ in card.types:
            if kind_.id not in offers:
                offer = offer_of(card, kind_)
                offers[kind_.id] = known.setdefault(offer, offer)
            number = 0 if _is_barred(kind_, busy, policy, table) else available_on(kind_, card)
            offered.setdefault(kind_.parent, {})[kind_.id] = number
    total = _sum_types(offered)
    shares = make_shares(card, offers.values(), total, _rule_of(card, policy, table))
    bar = find_bar(card, policy, table)
    prepared: dict[str, int] = {}
    if bar is None and Backend.SRIOV in card.backends and card.usable:
        prepared = dict.fromkeys(_find_prepared(card, policy, table), 1)
    if GpuKind.VF not in obstacles or prepared:
        offer = function_offer(card, Backend.SRIOV)
        offers[VF] = known.setdefault(offer, offer)
        free = [vf.address for vf in _free_vfs(card, policy, table) if vf.address not in offered]
        offered |= {address: {VF: 1} for address in free}
        shares[VF] = Share(CapacityRule.ANY, shared_pool({VF: len(free)}))
    firm = find_obstacle(card, GpuKind.PASSTHROUGH, policy, table, named=True)
    if firm is None:
        offer = function_offer(card, Backend.PASSTHROUGH)
        offers[WHOLE] = known.setdefault(offer, offer)
    alone = not offered.keys() - {card.address} and VF not in offers
    return CardRoom(
        card=card,
        order=order,
        offers=offers,
        shares=shares,
        parents=None if alone else make_parents(offered),
        obstacles=obstacles,
        bar=bar,
        firm=firm,
        cut=_count_cut(card),
        whole_of=_owner_of_whole(card),
        quarantined=policy.quarantined,
        use=find_use(card, policy, table),
        companions=tuple(it.address for it in find_companions(card, table)),
        excluded=_find_excluded(card, table),
        vf_obstacles={
            vf.address: why
            for vf in card.vfs
            if (why := vf_obstacle(vf, card, policy, table, named=True))
        },
        prepared=prepared,
        closed=closed,
        apart=apart,
    )


def _is_barred(kind: SliceType, busy: set[str], policy: Policy, table: PolicyTable) -> bool:
    if table.excludes(kind.parent):
        return True
    if kind.parent in policy.quarantined or f"{kind.parent}/{kind.id}" in policy.quarantined:
        return True
    # A VF has one slice, even where its list of types still says otherwise.
    return kind.parent in busy or kind.parent in policy.owed


def _find_excluded(card: Card, table: PolicyTable) -> frozenset[str]:
    names = {kind.parent for kind in card.types} | {piece.parent for piece in card.slices}
    names |= {function.address for function in (*card.vfs, *card.companions)}
    return frozenset(filter(table.excludes, names))


def _sum_types(offered: dict[str, dict[str, int]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for types in offered.values():
        total.update(types)
    return total


def _rule_of(card: Card, policy: Policy, table: PolicyTable) -> CapacityRule:
    """Return a card's rule; where the operator allows it, an uncut card can be put in mixed mode.

    Mixed mode can only be set before the first vGPU (NVIDIA vGPU user guide).
    """
    entry = table.entry_of(card)
    if card.address in policy.uniform:
        return card.rule
    uncut = not any(piece.backend in VGPU for piece in card.slices)
    if entry is not None and entry.mixed_sizes and uncut and card.rule is CapacityRule.SAME_SIZE:
        return CapacityRule.MIXED
    return card.rule


def _free_vfs(card: Card, policy: Policy, table: PolicyTable) -> Iterator[Function]:
    """Yield the VFs that can be given away; of one IOMMU group only one, for it has one owner."""
    groups = {piece.group for piece in card.slices if piece.backend not in VGPU}
    for vf in sorted(card.vfs, key=lambda vf: address_order(vf.address)):
        if vf.group not in groups and vf_obstacle(vf, card, policy, table) is None:
            groups.add(vf.group)
            yield vf


def _find_prepared(card: Card, policy: Policy, table: PolicyTable) -> Iterator[str]:
    """Yield the VFs that others bound to VFIO and nobody has, of each IOMMU group one."""
    groups = {vf.group for vf in _free_vfs(card, policy, table)}
    groups |= {piece.group for piece in card.slices if piece.ours or piece.holders}
    for vf in sorted(card.vfs, key=lambda vf: address_order(vf.address)):
        may_be_had = vf_obstacle(vf, card, policy, table, named=True) is None
        if may_be_had and vf.group not in groups:
            groups.add(vf.group)
            yield vf.address


def _count_cut(card: Card) -> Counter[str]:
    vram = {kind.id: kind.vram_mib for kind in card.types}
    sizes: Counter[str] = Counter()
    for piece in card.slices:
        if piece.backend is Backend.SRIOV:
            sizes[size_of(VF, vram_of_vfs(card))] += 1
        elif piece.backend in VGPU:
            known = piece.vram_mib if piece.vram_mib is not None else vram.get(piece.type or "")
            sizes[size_of(piece.type, known)] += 1
    return sizes


def _owner_of_whole(card: Card) -> str:
    """Return who has a card as a whole; bound by others and held by nobody, it is nobody's."""
    pieces = [piece for piece in card.slices if piece.backend is Backend.PASSTHROUGH]
    taken = (piece for piece in pieces if piece.ours or piece.holders)
    return next((piece.vm or "somebody else" for piece in taken), "")
