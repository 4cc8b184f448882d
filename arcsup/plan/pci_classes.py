"""What a PCI function is and lacks, in words. Imports nothing heavy: clients use it, too."""

from collections.abc import Sequence

_KINDS = {
    "0106": "SATA controller",
    "0107": "SAS controller",
    "0108": "NVMe",
    "01": "storage",
    "02": "network",
    "03": "display",
    "0403": "audio",
    "04": "multimedia",
    "06": "bridge",
    "0c03": "USB controller",
    "0c80": "USB-C controller",
    "10": "encryption",
    "12": "accelerator",
}
"""By the first digits of the class (PCI Code and ID Assignment; 0c80 is what GPUs have for their
USB-C port)."""


def describe_class(pci_class: str) -> str:
    """Return what a function of a class is; the class itself where we have no word for it."""
    known = _KINDS.get(pci_class[:4]) or _KINDS.get(pci_class[:2])
    return known or (f"class {pci_class}" if pci_class else "")


def describe_missing_reset(addresses: Sequence[str]) -> str:
    """Return what it means for the next guest that functions cannot be reset; "" for none.

    VFIO then resets the whole bus where a VM has all that is on it (vfio_pci_dev_set_try_reset in
    drivers/vfio/pci/vfio_pci_core.c), which not every card survives.
    """
    if not addresses:
        return ""
    shown = ", ".join(addresses[:3]) + (f" and {len(addresses) - 3} more" if addresses[3:] else "")
    return (
        f"no reset_method for {shown}: unless a reset of the bus does it, the next guest finds "
        "what the last one left there, or a card that works no more until the host is started anew"
    )
