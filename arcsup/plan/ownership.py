"""Whose the slices of a host are, by what the journal says now. Pure."""

from collections.abc import Mapping

from attrs import evolve

from arcsup.devices import Card, Inventory, NetworkCard, Slice
from arcsup.model import VmName


def with_owners(inventory: Inventory, owners: Mapping[str, VmName]) -> Inventory:
    """Return an inventory in which each slice is whose ``owners`` (slice id -> VM) says.

    A look takes a while, and in that time a slice may have been adopted or let go.
    """
    cards = tuple(_with_owners(card, owners) for card in inventory.cards)
    networks = tuple(_with_vf_owners(card, owners) for card in inventory.network_cards)
    before = (*inventory.cards, *inventory.network_cards)
    same = all(new is old for new, old in zip((*cards, *networks), before, strict=True))
    return inventory if same else evolve(inventory, cards=cards, network_cards=networks)


def _with_owners(card: Card, owners: Mapping[str, VmName]) -> Card:
    if all(piece.vm == owners.get(piece.id) for piece in card.slices):
        return card
    slices = tuple(_with_owner(piece, owners.get(piece.id)) for piece in card.slices)
    return evolve(card, slices=slices)


def _with_vf_owners(card: NetworkCard, owners: Mapping[str, VmName]) -> NetworkCard:
    if all(vf.vm == owners.get(vf.address) for vf in card.vfs):
        return card
    return evolve(card, vfs=tuple(evolve(vf, vm=owners.get(vf.address)) for vf in card.vfs))


def _with_owner(piece: Slice, owner: VmName | None) -> Slice:
    return piece if piece.vm == owner else evolve(piece, vm=owner, ours=owner is not None)
