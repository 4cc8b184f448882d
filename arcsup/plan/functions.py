"""What goes along with a card, in words. Pure."""

from arcsup.devices import Function
from arcsup.plan.pci_classes import describe_class


def describe_function(function: Function) -> str:
    """Return a function's address and what it is."""
    kind = describe_class(function.pci_class)
    return f"{function.address} ({kind})" if kind else function.address
