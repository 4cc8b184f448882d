"""What of a look at the cards the device tree itself does not tell: who is lost, what is stuck.

A write that waits in the kernel takes the device's folder away first, so the device seems to be
gone while its room on the card is not free. The card then says so.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath

from attrs import evolve

from arcsup.devices import Card, Inventory

_WORDS = re.compile(r"[/ ]")


def mark_cards(
    inventory: Inventory,
    *,
    lost: Mapping[str, str],
    stuck: Iterable[str],
    homes: Mapping[str, str],
) -> Inventory:
    """Return the inventory with what else is known of its cards, in their ``why``.

    ``lost`` has sentences by address; ``stuck`` is what the kernel has not answered: attributes by
    path, and tools with their arguments; ``homes`` has the card of each slice of ours by its id.
    """
    paths = sorted(stuck)
    if not lost and not paths:
        return inventory
    return evolve(
        inventory, cards=tuple(_mark(card, lost, paths, homes) for card in inventory.cards)
    )


def _mark(
    card: Card, lost: Mapping[str, str], stuck: Iterable[str], homes: Mapping[str, str]
) -> Card:
    ours = (name for name, home in homes.items() if home == card.address)
    names = {card.address, *(vf.address for vf in card.vfs), *ours}
    reasons = [describe_stuck(path) for path in stuck if names & {*_WORDS.split(path)}]
    if because := lost.get(card.address):
        reasons.insert(0, f"it is lost: {because}")
        card = evolve(card, usable=False)
    return evolve(card, why="; ".join([*reasons, *filter(None, [card.why])]))


def describe_stuck(work: str) -> str:
    """Return in words what the kernel has not answered: a write to an attribute, or a tool."""
    if not work.startswith("/"):
        return f"stuck: {work} has not come back"
    path = PurePosixPath(work)
    return f"stuck: the kernel does not answer at {path.name} of {path.parent.name}"
