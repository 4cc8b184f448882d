"""Which virtual function of a network card each ``networks: {type: vf}`` gets, and why none. Pure.

What a VM had stays with it; else the function is near its GPU (NUMA node), on the card with most
room, the lowest address first.
"""

from collections.abc import Callable, Iterable, Mapping

from attrs import define, evolve, field, frozen

from arcsup.devices import Inventory, NetworkCard, NetworkVf
from arcsup.model import MacAddress, PciAddress
from arcsup.plan.assignment import Place, Policy
from arcsup.plan.obstacles import EXCLUDED, QUARANTINED, PolicyTable, make_policy_table
from arcsup.plan.room import address_order
from arcsup.plan.vfs import find_entry


@frozen
class NetworkRequest:
    """What one entry of ``networks`` asks for; ``place`` is its VM and its number in the list.

    ``parent`` is a card, or one of its virtual functions. ``numa_node`` is to be near to.
    ``in_use``: its VM runs, with what it had.
    """

    place: Place
    mac: MacAddress
    parent: PciAddress | None = None
    numa_node: int | None = None
    in_use: bool = False


@frozen
class NetworkChoice:
    """The virtual function ``vf`` of ``card`` that an entry gets, with its MAC address.

    ``kept`` tells whether it is the one that it had.
    """

    card: str
    vf: str
    mac: MacAddress
    numa_node: int | None
    kept: bool = False


@define(eq=False)
class _Room:
    """A card while functions of it are chosen; ``why`` says why those that are not free are not.

    Of the free ones, those that are ``reserved`` go only to who names them. ``kept_by`` are the
    functions that a VM may have again, by address.
    """

    card: NetworkCard
    free: list[NetworkVf] = field(factory=list)
    why: str = ""
    kept_by: dict[str, str] = field(factory=dict)


def assign_network_vfs(
    requests: Iterable[NetworkRequest],
    inventory: Inventory,
    policy: Policy,
    held: Mapping[Place, str],
) -> Mapping[Place, NetworkChoice | str]:
    """Return what each entry gets, or in a sentence why nothing. ``held`` is what they had.

    All entries of a VM or none: one that cannot start keeps nothing from others that it has not
    had before.
    """
    asked = sorted(requests, key=lambda request: request.place)
    table = make_policy_table(policy.cards)
    rooms = [_make_room(card, policy, table) for card in inventory.network_cards]
    found: dict[Place, NetworkChoice | str] = {}
    for request in asked:
        if (choice := _keep(request, rooms, held.get(request.place))) is not None:
            found[request.place] = choice
    for name in dict.fromkeys(request.place[0] for request in asked):
        open_requests = [
            request for request in asked if request.place[0] == name and request.place not in found
        ]
        found |= _choose_all(open_requests, rooms)
    return dict(sorted(found.items()))


def _make_room(card: NetworkCard, policy: Policy, table: PolicyTable) -> _Room:
    entry = find_entry(card, table)
    if entry is not None and entry.exclude:
        return _Room(card, why=EXCLUDED)
    if card.address in policy.busy:
        return _Room(card, why=policy.busy[card.address])
    if because := policy.lost.get(card.address):
        return _Room(card, why=f"it is lost: {because}")
    if not card.vfs:
        return _Room(
            card, why="its virtual functions are not enabled (`vfs` in arcsup.yaml enables them)"
        )
    # Of one IOMMU group only one can be given away, for a group has one owner.
    groups = {vf.group for vf in card.vfs if vf.vm is not None}
    room, reasons = _Room(card), []
    for vf in sorted(card.vfs, key=lambda vf: (bool(vf.reserved), address_order(vf.address))):
        why = bar = _find_bar(vf, policy, table)
        if vf.vm is not None and not bar:
            room.kept_by[vf.address] = vf.vm
        if not bar:
            is_taken = vf.vm is not None or (not vf.obstacle and vf.group in groups)
            why = "all are taken" if is_taken else vf.obstacle
        if why:
            reasons.append(why)
        else:
            groups.add(vf.group)
            room.free.append(vf)
            if vf.reserved:
                reasons.append(vf.reserved)
    room.why = "; ".join(dict.fromkeys(reasons)) or "all are taken"
    return room


def _find_bar(vf: NetworkVf, policy: Policy, table: PolicyTable) -> str:
    """Return why a function goes to nobody, nor back to a VM that had it and does not run."""
    if table.excludes(vf.address):
        return f"{vf.address} is {EXCLUDED}"
    if because := policy.lost.get(vf.address):
        return f"it is lost: {because}"
    return QUARANTINED if vf.address in policy.quarantined else ""


def _keep(request: NetworkRequest, rooms: list[_Room], had: str | None) -> NetworkChoice | None:
    """Return the function that an entry had, if it is there still and suits."""
    name = request.place[0]
    for room in rooms:
        for vf in room.card.vfs:
            if vf.address != had or vf.vm != name or not _is_named(request, room, vf):
                continue
            if request.in_use or room.kept_by.get(vf.address) == name:
                return evolve(_choose(request, room, vf), kept=True)
    return None


def _choose_all(
    requests: list[NetworkRequest], rooms: list[_Room]
) -> dict[Place, NetworkChoice | str]:
    before = [list(room.free) for room in rooms]
    found: dict[Place, NetworkChoice | str] = {}
    for request in requests:
        ways = [(room, vf) for room in rooms for vf in room.free if _is_named(request, room, vf)]
        best = min(ways, key=_preference(request), default=None)
        if best is None:
            found[request.place] = _why_none(request, rooms)
        else:
            room, vf = best
            room.free.remove(vf)
            found[request.place] = _choose(request, room, vf)
    lacks = any(isinstance(outcome, str) for outcome in found.values())
    if not lacks:
        return found
    for room, free in zip(rooms, before, strict=True):
        room.free = free
    spared = "not taken, because the VM lacks another"
    return {
        place: spared if isinstance(outcome, NetworkChoice) else outcome
        for place, outcome in found.items()
    }


def _is_named(request: NetworkRequest, room: _Room, vf: NetworkVf) -> bool:
    if vf.reserved and vf.vm is None:
        return request.parent == vf.address
    return request.parent in (None, room.card.address, vf.address)


def _choose(request: NetworkRequest, room: _Room, vf: NetworkVf) -> NetworkChoice:
    return NetworkChoice(room.card.address, vf.address, request.mac, room.card.numa_node)


_Key = tuple[bool, int, tuple[int, int, int, int, str]]


def _preference(request: NetworkRequest) -> Callable[[tuple[_Room, NetworkVf]], _Key]:
    def key(way: tuple[_Room, NetworkVf]) -> _Key:
        room, vf = way
        away = request.numa_node is not None and room.card.numa_node != request.numa_node
        free = sum(not other.reserved for other in room.free)
        return away, -free, address_order(vf.address)

    return key


def _why_none(request: NetworkRequest, rooms: list[_Room]) -> str:
    if not rooms:
        return "the host has no network card with SR-IOV"
    named = [
        room
        for room in rooms
        if request.parent in (None, room.card.address)
        or any(vf.address == request.parent for vf in room.card.vfs)
    ]
    if not named:
        return f"there is no network card {request.parent} with SR-IOV"
    shown = "; ".join(f"{room.card.address}: {room.why}" for room in named)
    return f"no virtual function is free ({shown})"
