"""The kernel's device events: something changed, look.

Sources: libudev's monitor (udev(7)); what it hides was measured: after an overflow of the socket
``poll()`` raises OSError for ever until SO_ERROR is read from the socket; without udevd the
"udev" source is silent with no error.
"""

import errno
import logging
import os
import socket
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import pyudev
import trio

from arcsup.keep_going import keep_going

logger = logging.getLogger(__name__)

SUBSYSTEMS = ("pci", "mdev", "vfio", "drm", "iommu")
"""Where GPUs, their virtual functions, mediated devices and group nodes come and go."""

REOPEN_SECONDS = 2.0
"""How long to wait before a monitor that could not be had, or broke, is opened anew."""


async def watch_uevents(
    changed: Callable[[], None], heard: Callable[[Mapping[str, str]], None]
) -> None:
    """Call ``heard`` with the properties of each device event of ``SUBSYSTEMS``, for ever.

    Whenever some have come, or may have been missed, ``changed`` is called after them. Where there
    is no way to listen, or none any more, it is sought again and again.
    """
    told = ""
    while True:
        try:
            await _listen(changed, heard)
        except OSError as error:
            if told != (told := str(error)):
                logger.warning("the kernel's device events cannot be heard: %s", error)
        await trio.sleep(REOPEN_SECONDS)


async def _listen(changed: Callable[[], None], heard: Callable[[Mapping[str, str]], None]) -> None:
    """Listen for ever. Raises OSError where that is not possible, MemoryError."""
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
                await keep_going("hearing a device event", partial(_tell, heard, device.properties))
        except OSError as error:
            # pyudev finds it by poll(2), which has no number for it, or by recvmsg(2), which has.
            if error.errno not in (None, errno.ENOBUFS):
                raise
            _clear_overflow(monitor.fileno())
            logger.warning("the kernel's event queue overflowed; looking at every device again")
        changed()


async def _tell(heard: Callable[[Mapping[str, str]], None], properties: Mapping[str, str]) -> None:
    """Tell of an event; what the host lacks for that is waited for, as it comes only once."""
    heard(properties)


def _clear_overflow(fd: int) -> None:
    """Read SO_ERROR, which resets it; the duplicate keeps the monitor's descriptor open."""
    with socket.socket(fileno=os.dup(fd)) as duplicate:
        duplicate.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
