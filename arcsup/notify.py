"""Telling systemd how the daemon is. Source: sd_notify(3); silent without NOTIFY_SOCKET."""

import logging
import os
import socket

logger = logging.getLogger(__name__)


def notify(**fields: str | int) -> None:
    """Send fields such as READY=1 or STATUS="12 VMs running" in one message."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    # systemd writes an abstract socket's leading NUL as "@".
    target = "\0" + address[1:] if address.startswith("@") else address
    message = "\n".join(f"{key}={value}" for key, value in fields.items())
    # Whoever started us may have gone, or not read any more, or we have no descriptor left: that is
    # no reason to end or wait.
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.connect(target)
            sender.send(message.encode(), socket.MSG_DONTWAIT)
    except OSError as error:
        logger.debug("NOTIFY_SOCKET %s: %s", address, error.strerror)


def watchdog_interval() -> float | None:
    """Return how often, in seconds, systemd wants to hear from us; None when it does not ask.

    Half of the time-out, as sd_watchdog_enabled(3) advises.
    """
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    return int(microseconds) / 2_000_000 if microseconds.isdecimal() else None
