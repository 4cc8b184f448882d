"""Which of the host's USB devices a VM's ``usb`` means, and whether they may be given. Pure.

``usb`` in arcsup.yaml is the operator's word; its first entry that matches counts.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol

from attrs import frozen

from arcsup.model import UsbByPort, UsbByProduct


class UsbPolicy(Protocol):
    """An entry of ``usb:`` in arcsup.yaml."""

    @property
    def match(self) -> str:
        """VENDOR[:PRODUCT] as lsusb tells them, BUS-PORT, or ``*``."""

    @property
    def exclude(self) -> bool:
        """Never give them to a VM."""

    @property
    def force(self) -> bool:
        """Give them though the host uses them."""


@frozen
class UsbDevice:
    """A USB device of the host. ``name`` is the kernel's, BUS-PORT; the ids have four hex digits.

    ``node`` is the path of its device node, ``title`` what it says that it is ("" for nothing).
    """

    name: str
    vendor: str
    product: str
    bus: int
    port: str
    node: str
    title: str = ""

    def __str__(self) -> str:
        words = [f"{self.vendor}:{self.product}", *([self.title] if self.title else [])]
        return f"{self.name} ({' '.join(words)})"


def is_meant(request: UsbByProduct | UsbByPort, device: UsbDevice) -> bool:
    """Tell whether an entry of a VM's file asks for a device."""
    if isinstance(request, UsbByPort):
        return (device.bus, device.port) == (request.bus, request.port)
    return (device.vendor, device.product) == (f"{request.vendor:04x}", f"{request.product:04x}")


def find_usb_entry(
    name: str, vendor: str, product: str, entries: Iterable[UsbPolicy]
) -> UsbPolicy | None:
    """Return the first entry that matches; what is not known of a device is ""."""
    keys = {key for key in (name, vendor, f"{vendor}:{product}", "*") if key.strip(":")}
    return next((entry for entry in entries if entry.match in keys), None)


def find_usb_bar(
    request: UsbByProduct | UsbByPort, devices: Sequence[UsbDevice], entries: Sequence[UsbPolicy]
) -> str:
    """Return which device that a request means is excluded, "" for none.

    Where it means none of ``devices``, the request itself is looked at: QEMU takes what is plugged
    in later.
    """
    excluded = [
        str(device)
        for device in devices
        if (entry := find_usb_entry(device.name, device.vendor, device.product, entries))
        and entry.exclude
    ]
    if not devices:
        if isinstance(request, UsbByPort):
            name, vendor, product = f"{request.bus}-{request.port}", "", ""
        else:
            name, vendor, product = "", f"{request.vendor:04x}", f"{request.product:04x}"
        entry = find_usb_entry(name, vendor, product, entries)
        if entry is not None and entry.exclude:
            excluded = [name or f"{vendor}:{product}"]
    return f"{excluded[0]} is excluded by `usb` in arcsup.yaml" if excluded else ""


def needs_no_look(device: UsbDevice, entries: Iterable[UsbPolicy]) -> bool:
    """Tell whether a device is given whatever of the host uses it."""
    entry = find_usb_entry(device.name, device.vendor, device.product, entries)
    return entry is not None and entry.force
