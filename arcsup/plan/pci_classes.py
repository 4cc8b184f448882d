"""What a PCI function is by its class, in a word. Imports nothing: clients use it, too."""

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
