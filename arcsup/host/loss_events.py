"""What the kernel's events say of PCI devices that were lost, and of those that are there again.

Sources: Documentation/gpu/drm-uapi.rst ("Device Wedging"; since 6.15), drivers/pci/pci-driver.c
(``pci_uevent_ers``), Documentation/ABI/testing/sysfs-uevent. A device has no file that tells of
its error state (``pci_channel_state_t``): the event is the only word of it.
"""

import re
from collections.abc import Mapping

from attrs import frozen

_ADDRESS = re.compile(r"/([0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7])(?=/|$)")


@frozen
class LossEvent:
    """``path`` is the device's path as in DEVPATH; everything below it shares its fate.

    ``because`` says why it is lost, "" that it is there again.
    """

    path: str
    because: str


def read_loss_event(properties: Mapping[str, str]) -> LossEvent | None:
    """Return what a uevent says of a device's loss or return; None where it says nothing."""
    subsystem, action = properties.get("SUBSYSTEM"), properties.get("ACTION")
    path = _path_of_function(properties.get("DEVPATH", ""))
    # udevadm trigger makes events of which nothing has happened; the kernel marks them so.
    if not path or "SYNTH_UUID" in properties:
        return None
    if subsystem == "drm" and (methods := properties.get("WEDGED", "none")) != "none":
        return LossEvent(path, f"its driver has given it up (WEDGED={methods})")
    if subsystem != "pci":
        return None
    match properties.get("ERROR_EVENT"):
        case "FAILED_RECOVERY":
            return LossEvent(path, "the kernel could not recover it from a PCI error")
        case "SUCCESSFUL_RECOVERY":
            return LossEvent(path, "")
    # A VFIO driver takes a device as it is: its coming says nothing of the device's health.
    revived = action == "bind" and "vfio" not in properties.get("DRIVER", "")
    return LossEvent(path, "") if revived or action == "add" else None


def _path_of_function(path: str) -> str:
    """Return the path up to its last PCI function; "" where there is none in it."""
    ends = [match.end() for match in _ADDRESS.finditer(path)]
    return path[: ends[-1]] if ends else ""
