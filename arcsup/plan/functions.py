"""What goes along with a card, in words. Pure."""

from collections.abc import Mapping

from attrs import evolve

from arcsup.devices import Card, Function, Inventory
from arcsup.plan.pci_classes import describe_class


def describe_function(function: Function) -> str:
    """Return a function's address and what it is."""
    kind = describe_class(function.pci_class)
    return f"{function.address} ({kind})" if kind else function.address


def with_host_use(inventory: Inventory, used: Mapping[str, str]) -> Inventory:
    """Return an inventory whose cards tell what of the host uses them; ``used`` is by function."""

    def tell(card: Card) -> Card:
        names = {card.address: card.address}
        names |= {it.address: describe_function(it) for it in card.companions}
        use = tuple(f"{name} {used[it]}" for it, name in names.items() if it in used)
        return evolve(card, host_use=use) if use else card

    return evolve(inventory, cards=tuple(map(tell, inventory.cards)))
