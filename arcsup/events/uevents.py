"""The kernel's device events: something changed, look.

Sources: libudev's monitor (udev(7)); what it hides was measured: after an overflow of the socket
``poll()`` raises OSError for ever until SO_ERROR is read from the socket; without udevd the
"udev" source is silent with no error.
"""

import logging
import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path

import pyudev
import trio

logger = logging.getLogger(__name__)

SUBSYSTEMS = ("pci", "mdev", "vfio", "drm", "iommu")
"""Where GPUs, their virtual functions, mediated devices and group nodes come and go."""


async def watch_uevents(
    changed: Callable[[], None], heard: Callable[[Mapping[str, str]], None]
) -> None:
    """Call ``heard`` with the properties of each device event of ``SUBSYSTEMS``, for ever.

    Whenever some have come, or may have been missed, ``changed`` is called after them.
    """
    # udevd's own events come after its rules have set owners and modes; the kernel's come before.
    source = "udev" if Path("/run/udev/control").exists() else "kernel"
    monitor = pyudev.Monitor.from_netlink(pyudev.Context(), source=source)
    for subsystem in SUBSYSTEMS:
        monitor.filter_by(subsystem)
    monitor.start()
    changed()
    while True:
        await trio.lowlevel.wait_readable(monitor.fileno())
        try:
            # Device is falsy when it has no properties, so None must be asked for by name.
            while (device := monitor.poll(timeout=0)) is not None:
                heard(device.properties)
        except OSError:
            _clear_overflow(monitor.fileno())
            logger.warning("the kernel's event queue overflowed; looking at every device again")
        changed()


def _clear_overflow(fd: int) -> None:
    """Read SO_ERROR, which resets it; the duplicate keeps the monitor's descriptor open."""
    with socket.socket(fileno=os.dup(fd)) as duplicate:
        duplicate.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
