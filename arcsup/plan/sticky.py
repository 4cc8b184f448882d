"""Which slices that exist stay with the slots that had them. Nothing that runs is moved."""

from collections.abc import Mapping
from uuid import UUID, uuid5

from attrs import define, field

from arcsup.devices import Backend, Slice
from arcsup.model import GpuKind, GpuRequest, VmName
from arcsup.plan.assignment import Choice, Held, Policy, Slots
from arcsup.plan.candidates import Candidates
from arcsup.plan.offers import BACKENDS, Offer, function_offer, mismatch, offer_of
from arcsup.plan.room import CardRoom

KEPT = "the slice it had before"


@define(eq=False)
class Present:
    """The slices that exist. ``by_id`` has each with its card; ``of_vm`` those of ours, by VM."""

    by_id: dict[str, tuple[CardRoom, Slice]] = field(factory=dict)
    of_vm: dict[VmName, list[str]] = field(factory=dict)


def find_present(candidates: Candidates) -> Present:
    """Return all slices of all cards."""
    present = Present()
    for room in candidates.rooms:
        for piece in sorted(room.card.slices, key=lambda piece: piece.id):
            present.by_id[piece.id] = (room, piece)
            if piece.ours and piece.vm is not None:
                present.of_vm.setdefault(piece.vm, []).append(piece.id)
    return present


def keep_slices(
    vm: VmName,
    slots: Slots,
    had: Mapping[int, Held],
    present: Present,
    policy: Policy,
) -> dict[int, Choice]:
    """Return slot -> the slice that it keeps. ``had`` is what the VM's slots had before.

    First each slot what it had itself; then what other slots of the VM had: a request that goes
    from the middle of a file must not make the others change their slices.
    """
    in_use = {before.id for before in had.values() if before.in_use}
    kept: dict[int, Choice] = {}
    used: set[str] = set()

    def keep(slot: int, request: GpuRequest, slice_id: str) -> None:
        if slot in kept or slice_id in used or slice_id not in present.by_id:
            return
        choice = _keep(vm, request, slice_id, present, None if slice_id in in_use else policy)
        if choice is not None:
            kept[slot] = choice
            used.add(slice_id)

    for slot, request in slots:
        if slot in had:
            keep(slot, request, had[slot].id)
    for slot, request in slots:
        for slice_id in present.of_vm.get(vm, ()):
            keep(slot, request, slice_id)
    return kept


def _keep(
    vm: VmName, request: GpuRequest, slice_id: str, present: Present, policy: Policy | None
) -> Choice | None:
    """Return a slice as a choice if it suits; ``policy`` None is for one that a QEMU has."""
    room, piece = present.by_id[slice_id]
    card = room.card
    if not piece.ours or piece.vm not in (None, vm):
        return None
    if policy is not None and (room.bar is not None or _is_barred(piece, room, policy)):
        return None
    offer = _find_offer(room, piece)
    if not _is_met(request, room, piece, offer):
        return None
    is_whole = piece.backend is Backend.PASSTHROUGH
    return Choice(
        backend=piece.backend,
        card=card.address,
        parent=piece.parent,
        type=piece.type,
        type_name=offer.name if offer else piece.type or "",
        vram_mib=piece.vram_mib if offer is None else offer.vram_mib,
        id=piece.id,
        exists=True,
        numa_node=card.numa_node,
        because=KEPT,
        companions=room.companions if is_whole else (),
        forced=is_whole and (card.boot_vga or bool(card.in_use_by_host)),
        force=request.force,
    )


def _is_met(request: GpuRequest, room: CardRoom, piece: Slice, offer: Offer | None) -> bool:
    card = room.card
    if piece.backend not in BACKENDS[request.kind]:
        return False
    if request.vendor not in ("", card.vendor) or request.device not in ("", card.device):
        return False
    named = {name for name in (request.address, request.parent) if name}
    if named - {card.address, piece.parent, piece.id}:
        return False
    if offer is not None:
        return not mismatch(request, offer)
    # A full card may list its types no more (NVIDIA's vendor VFIO). What cannot be checked
    # suited when the slice was made.
    vram = piece.vram_mib
    low, high = request.min_vram_mib or 0, request.max_vram_mib
    return vram is None or (low <= vram and (high is None or vram <= high))


def _find_offer(room: CardRoom, piece: Slice) -> Offer | None:
    if piece.backend in BACKENDS[GpuKind.VGPU]:
        types = (kind for kind in room.card.types if kind.id == piece.type)
        kind = next(types, None)
        return offer_of(room.card, kind) if kind else None
    return function_offer(room.card, piece.backend)


def _is_barred(piece: Slice, room: CardRoom, policy: Policy) -> bool:
    names = {piece.id, piece.parent, f"{piece.parent}/{piece.type}"}
    along = room.companions if piece.backend is Backend.PASSTHROUGH else ()
    taken = {piece.parent, *along}
    return bool(names & policy.quarantined or taken & room.excluded)


@define(eq=False)
class MdevIds:
    """Uuids for mediated devices: derived, so that the same slot gets the same again."""

    taken: set[str]

    def derive(self, vm: UUID, slot: int) -> str:
        """Return a uuid that no device has; they are unique on the whole host."""
        number = 0
        while True:
            name = f"gpu{slot}" if not number else f"gpu{slot}.{number}"
            derived = str(uuid5(vm, name))
            if derived not in self.taken:
                self.taken.add(derived)
                return derived
            number += 1
