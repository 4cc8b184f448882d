"""Whether a card shows the host's own picture, as far as the device tree tells.

Sources: Documentation/ABI/testing/sysfs-class-drm (connector status, enabled; boot_display),
sysfs-bus-pci (boot_display), Documentation/fb/framebuffer.rst. What a compositor renders on without
a monitor is not seen here.
"""

import re

from arcsup.host.sysfs import Sysfs

_CONNECTOR = re.compile(r"card\d+-.+")
_CARD = re.compile(r"card\d+")


def find_console(sysfs: Sysfs) -> str | None:
    """Return the resolved path of the device behind fb0, on which the kernel's console is."""
    device = "class/graphics/fb0/device"
    return sysfs.real(device) if sysfs.has(device) else None


def observe_display(sysfs: Sysfs, card: str, real: str, console: str | None) -> str:
    """Return what of the host's picture is on a card, for people; "" where nothing is.

    ``real`` is the card's resolved path. Firmware framebuffers are platform devices below the card.
    """
    for folder in sysfs.names(f"{card}/drm"):
        if not _CARD.fullmatch(folder):
            continue
        for connector in sysfs.names(f"{card}/drm/{folder}"):
            if _CONNECTOR.fullmatch(connector) and _is_lit(sysfs, card, folder, connector):
                return f"a monitor at {connector}"
    if console is not None and f"{console}/".startswith(f"{real}/"):
        return "the console's framebuffer fb0"
    return ""


def is_boot_display(sysfs: Sysfs, card: str) -> bool:
    """Tell whether the firmware showed the host's start on a card.

    ``boot_vga`` is of VGA controllers; ``boot_display`` (kernel 6.17) is also of others. It was
    first the function's, and moved to its DRM device.
    """
    cards = [name for name in sysfs.names(f"{card}/drm") if _CARD.fullmatch(name)]
    folders = [card, *(f"{card}/drm/{name}" for name in cards)]
    files = [f"{card}/boot_vga", *(f"{folder}/boot_display" for folder in folders)]
    return any(sysfs.has(file) and sysfs.text(file) == "1" for file in files)


def _is_lit(sysfs: Sysfs, card: str, folder: str, connector: str) -> bool:
    path = f"{card}/drm/{folder}/{connector}"
    connected = sysfs.text(f"{path}/status") == "connected"
    return connected and sysfs.text(f"{path}/enabled") == "enabled"
