"""Which entries of arcsup.yaml are of no effect on a host: a word that protects must not be void.

Pure. Each is told as its path in the file (``gpus[2].match``) and a sentence.
"""

from collections.abc import Iterator, Sequence

from arcsup.devices import Card, Inventory, NetworkCard
from arcsup.plan.assignment import CardPolicy
from arcsup.plan.obstacles import PolicyTable, make_policy_table
from arcsup.plan.usb import UsbDevice, UsbPolicy, find_usb_entry
from arcsup.plan.vfs import find_entry

Found = tuple[str, str]


def find_void_gpu_entries(inventory: Inventory, entries: Sequence[CardPolicy]) -> Iterator[Found]:
    """Yield the entries of ``gpus`` that match nothing, or count for nothing that they match."""
    if inventory.stale:
        return  # What is not in it may be there all the same.
    table = make_policy_table(entries)
    first = {entry.match: number for number, entry in reversed(list(enumerate(entries)))}
    for number, entry in enumerate(entries):
        if first[entry.match] != number:
            what = f"{entry.match} is in gpus[{first[entry.match]}] already, and the first counts"
        else:
            what = _why_void(entry, inventory, table, first)
        if what:
            yield f"gpus[{number}].match", what


def _why_void(
    entry: CardPolicy, inventory: Inventory, table: PolicyTable, first: dict[str, int]
) -> str:
    cards: list[Card | NetworkCard] = [*inventory.cards, *inventory.network_cards]
    meant = [card for card in cards if _matches(entry, card)]
    if entry.match in _list_parts(cards):
        more = (entry.vfs is not None, entry.mixed_sizes, entry.vf_quota is not None)
        part = f"{entry.match} is a part of another card"
        return f"{part}: nothing but `exclude` counts for it" if any(more) else ""
    if entry.match == "*":
        return ""
    if not meant:
        return (
            f"{entry.match} matches nothing on this host: no GPU, no function by its address, no "
            "network card by its address or VENDOR:DEVICE (virtual functions are named by address)"
        )
    counting = [find_entry(card, table) for card in meant]
    if any(other is entry for other in counting):
        return ""
    before = next(other for other in counting if other is not None)
    where = f"gpus[{first[before.match]}] ({before.match})"
    return f"{entry.match} has no effect: {where} matches {meant[0].address} before it"


def _matches(entry: CardPolicy, card: Card | NetworkCard) -> bool:
    return find_entry(card, make_policy_table([entry])) is not None


def _list_parts(cards: Sequence[Card | NetworkCard]) -> set[str]:
    """Return the addresses of virtual functions, and of what goes along with cards."""
    parts = {vf.address for card in cards for vf in card.vfs}
    whole = [card for card in cards if isinstance(card, Card)]
    parts |= {it.address for card in whole for it in (*card.companions, *card.staying)}
    return parts - {card.address for card in cards}


def find_void_usb_entries(
    devices: Sequence[UsbDevice], entries: Sequence[UsbPolicy]
) -> Iterator[Found]:
    """Yield the entries of ``usb`` that count for nothing that is plugged in now."""
    counting = [find_usb_entry(it.name, it.vendor, it.product, entries) for it in devices]
    for number, entry in enumerate(entries):
        if entry.match != "*" and all(other is not entry for other in counting):
            why = "counts for no USB device that is plugged in now"
            yield f"usb[{number}].match", f"{entry.match} {why}"
