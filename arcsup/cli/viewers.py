"""Which programs show a VM, with which arguments. Pure: looks for programs through a function.

Sources: Looking Glass B7's documentation, "Client usage"; remote-viewer(1); spicy(1);
xtigervncviewer(1), whose argument may be a unix socket.
"""

from collections.abc import Callable
from typing import NamedTuple

from arcsup.control.shapes import ViewingJson
from arcsup.errors import NoSuchObject, Refused

Find = Callable[[str], str | None]
"""Returns where a program is, None where it is not installed."""


class Viewers(NamedTuple):
    """The programs to start, all at once; ``notes`` are for the person who asked."""

    commands: list[list[str]]
    notes: list[str]


LOOKING_GLASS_HINT = (
    "install looking-glass-client (Debian sid, Ubuntu), or build it: looking-glass.io"
)
SPICE_HINT = "install virt-viewer (Debian, Ubuntu, Fedora), which has remote-viewer"
VNC_HINT = "install tigervnc-viewer (Debian, Ubuntu) or tigervnc (Fedora), which has vncviewer"


def choose_viewers(name: str, viewing: ViewingJson, find: Find) -> Viewers:
    """Return what shows the VM best: Looking Glass where it shares frames, else its display.

    Raises NoSuchObject when no program is installed that can, Refused when there is nothing to
    see or QEMU shows it itself.
    """
    frames = viewing["frames"]
    if frames and (client := find("looking-glass-client")) is not None:
        return _show_frames(name, client, viewing)
    if viewing["display"] in ("spice", "vnc"):
        notes = [f"its frames are not used: {LOOKING_GLASS_HINT}"] if frames else []
        return Viewers([_show_display(name, viewing, find)], notes)
    if frames:
        raise NoSuchObject("no Looking Glass client is installed", LOOKING_GLASS_HINT)
    if viewing["display"] == "gtk":
        raise Refused(f"{name}'s window is QEMU's own", "it is where the daemon's session is")
    raise Refused(
        f"{name} has no display to look at",
        f"say `display: spice` in its file, or use `arcsup console {name}`",
    )


def _show_frames(name: str, client: str, viewing: ViewingJson) -> Viewers:
    notes = []
    keys = ["spice:enable=no"]
    if viewing["display"] == "spice":
        # Port 0 tells the client that the host is a socket's path.
        host, port = viewing["socket"] or viewing["address"], viewing["port"] or 0
        keys = [f"spice:host={host}", f"spice:port={port}"]
    else:
        notes.append("the window takes no keys: that needs `display: spice` in its file")
    commands = []
    for number, path in enumerate(viewing["frames"]):
        title = name if number == 0 else f"{name}: monitor {number + 1}"
        # SPICE serves one client at a time: the first monitor's window has the keyboard.
        input_ = keys if number == 0 else ["spice:enable=no"]
        commands.append([client, f"app:shmFile={path}", f"win:title={title}", *input_])
    return Viewers(commands, notes)


def _show_display(name: str, viewing: ViewingJson, find: Find) -> list[str]:
    socket, port = viewing["socket"], viewing["port"]
    address = viewing["address"]
    host = f"[{address}]" if ":" in address else address
    remote_viewer = find("remote-viewer")
    if viewing["display"] == "spice":
        uri = f"spice+unix://{socket}" if socket else f"spice://{host}:{port}"
        if remote_viewer is not None:
            return [remote_viewer, "--title", name, uri]
        if (spicy := find("spicy")) is not None:
            return [spicy, "--title", name, f"--uri={uri}"]
        raise NoSuchObject("no SPICE client is installed", SPICE_HINT)
    if (vncviewer := find("xtigervncviewer") or find("vncviewer")) is not None:
        # Two colons: a port's number rather than a display's.
        return [vncviewer, socket or f"{host}::{port}"]
    # Only TigerVNC's connects to a unix socket.
    if remote_viewer is not None and not socket:
        return [remote_viewer, "--title", name, f"vnc://{host}:{port}"]
    raise NoSuchObject("no VNC client is installed that can show it", VNC_HINT)
