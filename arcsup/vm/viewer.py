"""Who looks at VMs: the user to whom their frames, their sound and their screens belong.

A daemon in a user's session shows that user's own VMs. The system's daemon runs as root, whose
files a desktop's user cannot open; arcsup.yaml names that user (``viewer``).
"""

import logging
import os
import pwd
import stat
from pathlib import Path

from attrs import frozen

from arcsup.errors import Terminal
from arcsup.host.accounts import Account
from arcsup.vm.displays import DISPLAY_SOCKET

logger = logging.getLogger(__name__)


@frozen
class Viewer:
    """A user of the host: numbers as in passwd(5), ``home`` a directory."""

    name: str
    uid: int
    gid: int
    home: str

    @property
    def runtime_folder(self) -> Path:
        """Where the user's session has its sockets, PipeWire's among them (pam_systemd(8))."""
        return Path(f"/run/user/{self.uid}")


def find_viewer(name: str | None) -> Viewer | None:
    """Return the user that the configuration names; None is the daemon's own user.

    Raises Terminal when there is no such user, or when only root could give files to it.
    """
    if name is None:
        return None
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        raise Terminal(
            f"viewer: there is no user {name}", hint="correct the name in arcsup.yaml"
        ) from None
    if entry.pw_uid == os.geteuid():
        return None
    if os.geteuid() != 0:
        raise Terminal(
            f"viewer: only root can show VMs to {name}",
            hint="leave the key out: a session's daemon shows them to its own user",
        )
    return Viewer(name, entry.pw_uid, entry.pw_gid, entry.pw_dir)


def give_display(
    folder: Path, qemu_folder: Path, viewer: Viewer | None, account: Account | None = None
) -> None:
    """Let the viewer, and nobody else, connect to the socket of a VM's display.

    QEMU, which is ``account`` (None: this process's user), binds that socket itself, so it is there
    once QEMU answers. It could put anything else in its place, another one's socket under a second
    name too: then nothing is given. The viewer may pass through the VM's runtime folders but not
    look into them; the other sockets stay QEMU's.
    """
    if viewer is None:
        return
    try:
        # Whoever QEMU runs as could put a link in its place.
        flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(qemu_folder / DISPLAY_SOCKET, flags)
    except FileNotFoundError:
        return
    try:
        status = os.fstat(descriptor)
        owners = {os.geteuid() if account is None else account.uid, viewer.uid}
        is_socket = stat.S_ISSOCK(status.st_mode)
        if not is_socket or status.st_nlink != 1 or status.st_uid not in owners:
            logger.warning("%s is no socket of QEMU's own: not shown", qemu_folder / DISPLAY_SOCKET)
            return
        for each in {folder, qemu_folder}:
            os.chown(each, -1, viewer.gid)
            each.chmod(0o710)
        socket = Path(f"/proc/self/fd/{descriptor}")
        os.chown(socket, viewer.uid, -1)
        socket.chmod(0o600)
    finally:
        os.close(descriptor)
