"""The nodes of the host's USB devices that VMs ask for.

Source: Documentation/ABI/testing/sysfs-bus-usb; the node is /dev/bus/usb/BUS/DEVICE, both with
three digits (drivers/usb/core/usb.c, usb_devnode).
"""

from collections.abc import Iterator
from pathlib import Path

from arcsup.host.sysfs import Sysfs
from arcsup.model import UsbByPort, UsbByProduct

_DEVICES = "bus/usb/devices"


def find_usb_nodes(
    wanted: tuple[UsbByProduct | UsbByPort, ...], sysfs: Sysfs, dev: Path = Path("/dev")
) -> Iterator[tuple[int, Path]]:
    """Yield the nodes of what is plugged in now, each with the index of who asks for it."""
    for name in sysfs.names(_DEVICES) if wanted else ():
        device = f"{_DEVICES}/{name}"
        bus, number = sysfs.count(f"{device}/busnum"), sysfs.count(f"{device}/devnum")
        # Interfaces ("1-2:1.0") have neither.
        if bus is None or number is None:
            continue
        for index, request in enumerate(wanted):
            if _is_meant(request, device, sysfs):
                yield index, dev / f"bus/usb/{bus:03}/{number:03}"


def _is_meant(request: UsbByProduct | UsbByPort, device: str, sysfs: Sysfs) -> bool:
    if isinstance(request, UsbByPort):
        port = sysfs.text(f"{device}/devpath")
        return (sysfs.count(f"{device}/busnum"), port) == (request.bus, request.port)
    ids = [sysfs.hex_digits(f"{device}/{which}", 4) for which in ("idVendor", "idProduct")]
    return ids == [f"{request.vendor:04x}", f"{request.product:04x}"]
