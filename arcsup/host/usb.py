"""The host's USB devices that VMs can ask for.

Source: Documentation/ABI/testing/sysfs-bus-usb; the node is /dev/bus/usb/BUS/DEVICE, both with
three digits (drivers/usb/core/usb.c, usb_devnode).
"""

from arcsup.host.host_use import USB_DEVICES
from arcsup.host.sysfs import Sysfs
from arcsup.plan.usb import UsbDevice

_HUB = "09"
_IDS = ("idVendor", "idProduct")


def observe_usb(sysfs: Sysfs) -> tuple[UsbDevice, ...]:
    """Return what is plugged in now, without hubs.

    QEMU gives a guest none (hw/usb/host-libusb.c, usb_host_auto_check), and who has a hub's node
    can switch off what hangs on it.
    """
    found = []
    for name in sysfs.names(USB_DEVICES):
        path = f"{USB_DEVICES}/{name}"
        bus, number = sysfs.count(f"{path}/busnum"), sysfs.count(f"{path}/devnum")
        # Interfaces ("1-2:1.0") have neither.
        if bus is None or number is None or sysfs.text(f"{path}/bDeviceClass") == _HUB:
            continue
        vendor, product = (sysfs.hex_digits(f"{path}/{file}", 4) for file in _IDS)
        found.append(
            UsbDevice(
                name=name,
                vendor=vendor,
                product=product,
                bus=bus,
                port=sysfs.text(f"{path}/devpath") or "",
                node=f"/dev/bus/usb/{bus:03}/{number:03}",
                title=sysfs.text(f"{path}/product") or "",
            )
        )
    return tuple(found)
