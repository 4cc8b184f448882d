"""How many virtual functions each card is to have, what each of them may use, and what keeps it
from having that. Pure.

``vfs`` in arcsup.yaml says the number. What somebody else enabled is left as it is, and so is what
a VM uses: between two numbers the kernel wants 0, which takes all of them away.
"""

from collections.abc import Iterator, Mapping

from attrs import frozen

from arcsup.devices import Backend, CapacityRule, Card, Inventory, NetworkCard, VfQuota
from arcsup.plan.assignment import CardPolicy
from arcsup.plan.capacity import VGPU
from arcsup.plan.obstacles import PolicyTable

NVIDIA = "nvidia"
QUOTA_DRIVERS = ("xe", "i915")


@frozen
class SetVfs:
    """Let a card that has ``have`` virtual functions have ``count``."""

    address: str
    have: int
    count: int
    total: int

    def __str__(self) -> str:
        return f"its virtual functions are being changed from {self.have} to {self.count}"


@frozen
class SetMixed:
    """Let a card have vGPUs of several sizes, before it has the first."""

    address: str

    def __str__(self) -> str:
        return "its mixed-size mode is being set"


@frozen
class LeaveVfs:
    """A card does not get what was configured, and why."""

    address: str
    because: str


@frozen
class SetQuota:
    """Let the virtual functions of a card use so much each; None: what they had before arcsup.

    Those in ``excluded``, by address, are left as they are.
    """

    address: str
    quota: VfQuota | None
    excluded: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return "what its virtual functions may use is being set"


VfStep = SetVfs | SetMixed | SetQuota | LeaveVfs


def plan_vfs(
    inventory: Inventory,
    table: PolicyTable,
    ours: Mapping[str, tuple[int, ...]],
    users: Mapping[str, str],
    mixed: frozenset[str],
    quotas: Mapping[str, VfQuota | None],
) -> tuple[VfStep, ...]:
    """Return what is to be done, at most one step for each card.

    ``ours`` has, by card, the numbers of virtual functions that arcsup enabled or was about to;
    ``users`` who uses a card (``VM web``); ``mixed`` are the cards whose mode is known to be set;
    ``quotas`` are those that arcsup has set, None where it had only begun.
    """
    return tuple(_plan(inventory, table, ours, users, mixed, quotas))


def _plan(
    inventory: Inventory,
    table: PolicyTable,
    ours: Mapping[str, tuple[int, ...]],
    users: Mapping[str, str],
    mixed: frozenset[str],
    quotas: Mapping[str, VfQuota | None],
) -> Iterator[VfStep]:
    cards: list[Card | NetworkCard] = [*inventory.cards, *inventory.network_cards]
    for card in cards:
        entry = find_entry(card, table)
        if entry is not None and entry.exclude:
            continue
        excluded = [vf.address for vf in card.vfs if table.excludes(vf.address)]
        quota = _plan_quota(card, entry, users, quotas, frozenset(excluded))
        if excluded and entry is not None and entry.vfs not in (None, len(card.vfs)):
            # All of them go when their number changes.
            because = f"{excluded[0]} is excluded: it keeps its {len(card.vfs)} virtual functions"
            yield LeaveVfs(card.address, because)
        elif entry is None:
            if quota is not None:
                yield quota
        elif entry.vfs is not None and not _has_enough(card, entry.vfs):
            if card.vfs_total or entry.match != "*":
                yield _change(card, entry.vfs, ours, users)
        elif quota is not None:
            yield quota
        elif entry.mixed_sizes and card.address not in mixed and _can_be_mixed(card):
            yield SetMixed(card.address)


def find_entry(card: Card | NetworkCard, table: PolicyTable) -> CardPolicy | None:
    """Return the entry of ``gpus`` in arcsup.yaml that counts for a card.

    A network card is meant only by its address or by VENDOR:DEVICE: what is said of all of
    Intel's GPUs is not said of the host's network.
    """
    if isinstance(card, Card):
        return table.entry_of(card)
    keys = (card.address, f"{card.vendor}:{card.device}")
    found = [table.entries[key] for key in keys if key in table.entries]
    return min(found, key=lambda entry: entry[0])[1] if found else None


def _has_enough(card: Card | NetworkCard, wanted: int) -> bool:
    have = len(card.vfs)
    # NVIDIA's tool makes as many as the card can have.
    return have == wanted or (card.driver == NVIDIA and have >= wanted > 0)


def _change(
    card: Card | NetworkCard,
    wanted: int,
    ours: Mapping[str, tuple[int, ...]],
    users: Mapping[str, str],
) -> SetVfs | LeaveVfs:
    have, address = len(card.vfs), card.address
    if card.driver is None or "vfio" in card.driver:
        return LeaveVfs(address, f"no driver that makes virtual functions has it: {card.driver}")
    if have and have not in ours.get(address, ()):
        because = f"it has {have} virtual functions, not {wanted}, and not by arcsup"
        return LeaveVfs(address, because)
    if have and address in users:
        because = f"{users[address]} uses it: it keeps its {have} virtual functions until then"
        return LeaveVfs(address, because)
    return SetVfs(address, have, wanted, card.vfs_total)


def _plan_quota(
    card: Card | NetworkCard,
    entry: CardPolicy | None,
    users: Mapping[str, str],
    quotas: Mapping[str, VfQuota | None],
    excluded: frozenset[str],
) -> SetQuota | LeaveVfs | None:
    """Return what is to be done about what virtual functions may use; None where nothing is."""
    address, wanted = card.address, entry.vf_quota if entry is not None else None
    if not isinstance(card, Card) or len(card.vfs) == len(excluded):
        return None
    if wanted is None and address not in quotas:
        return None
    if wanted is not None and quotas.get(address) == wanted:
        return None
    if entry is not None and entry.match == "*" and card.driver not in QUOTA_DRIVERS:
        return None
    if address in users:
        # xe does not change the memory of a function that runs.
        because = f"{users[address]} uses it: its quotas stay as they are until then"
        return LeaveVfs(address, because)
    return SetQuota(address, wanted, excluded)


def _can_be_mixed(card: Card | NetworkCard) -> bool:
    """Tell whether a card's mode can be set now: it has vGPUs to make, and has made none."""
    if not isinstance(card, Card):
        return False
    offers = bool(card.types) and not {Backend.MDEV, Backend.VENDOR_VFIO}.isdisjoint(card.backends)
    uncut = not any(piece.backend in VGPU for piece in card.slices)
    same_size = card.rule is CapacityRule.SAME_SIZE
    return offers and uncut and same_size and card.driver == NVIDIA
