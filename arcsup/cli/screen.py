"""How a person sees a running VM's screen, from its command line."""

from collections.abc import Sequence
from itertools import pairwise

FIRST_PORT = 5900


def find_screen(argv: Sequence[str]) -> str:
    """Return where the screen is and what shows it, "" for a VM without one.

    A VNC client takes HOST::PORT, and TigerVNC's a socket's path, too (its manual, "SYNOPSIS").
    """
    options = dict(pairwise(argv))
    if "-vnc" in options:
        place = options["-vnc"].replace(",,", ",")
        if place.startswith("unix:"):
            return f"VNC: vncviewer {place.removeprefix('unix:')}"
        host, _, display = place.rpartition(":")
        return f"VNC: vncviewer {host}::{FIRST_PORT + int(display)}"
    if options.get("-display", "").startswith("gtk"):
        return "a window on the screen of the daemon's session"
    return ""
