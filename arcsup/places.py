"""Where things live: for the system (root) and for a user's own session.

Source of the user's directories: XDG Base Directory Specification 0.8.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

SOCKET_PATH_LIMIT = 107
"""Longest path a unix socket can be bound to: sun_path is 108 bytes with its NUL (unix(7))."""


READ_ONLY_SOCKET = "arcsup-ro.sock"


# Not attrs: client verbs need the socket's place, and importing attrs takes them 15 ms more.
@dataclass(frozen=True, slots=True)
class Places:
    """The directories of one daemon. Relative image paths hang off ``images``."""

    config: Path
    vms: Path
    run: Path
    state: Path
    log: Path
    sysfs: Path
    system: bool

    @classmethod
    def default(cls, *, system: bool | None = None) -> Self:
        """Return the places of the system when run by root, else of the user's session."""
        if system is None:
            system = os.geteuid() == 0
        if system:
            return cls(
                config=Path("/etc/arcsup/arcsup.yaml"),
                vms=Path("/etc/arcsup/vms"),
                run=Path("/run/arcsup"),
                state=Path("/var/lib/arcsup"),
                log=Path("/var/log/arcsup"),
                sysfs=Path("/sys"),
                system=True,
            )
        config = _xdg("XDG_CONFIG_HOME", ".config") / "arcsup"
        return cls(
            config=config / "arcsup.yaml",
            vms=config / "vms",
            run=Path(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}") / "arcsup",
            state=_xdg("XDG_DATA_HOME", ".local/share") / "arcsup",
            log=_xdg("XDG_STATE_HOME", ".local/state") / "arcsup" / "log",
            sysfs=Path("/sys"),
            system=False,
        )

    @property
    def socket(self) -> Path:
        """The control socket."""
        return self.run / "arcsup.sock"

    @property
    def read_only_socket(self) -> Path:
        """The socket for monitoring, on which nothing can be changed."""
        return self.run / READ_ONLY_SOCKET

    @property
    def images(self) -> Path:
        """The directory that relative paths in VM files are relative to."""
        return self.state / "images"

    def overlays_of(self, name: str) -> Path:
        """Return the folder of what a VM writes to its ephemeral disks; no image list shows it."""
        return self.images / ".ephemeral" / name

    @property
    def answers(self) -> Path:
        """The directory of what unattended installers are told."""
        return self.state / "answers"

    def run_of(self, name: str) -> Path:
        """Return a VM's runtime folder: its sockets and its lock."""
        return self.run / name

    def qemu_run_of(self, name: str) -> Path:
        """Return the folder in which a VM's QEMU itself makes and finds sockets.

        Where QEMU is not the daemon's user this is another one than that of its monitors. No VM
        has a name with a dot.
        """
        return self.run / ".qemu" / name if self.system else self.run_of(name)

    def log_of(self, name: str) -> Path:
        """Return a VM's folder of logs."""
        return self.log / name


def _xdg(variable: str, fallback: str) -> Path:
    value = os.environ.get(variable, "")
    # The specification says that relative values are to be ignored.
    return Path(value) if value.startswith("/") else Path.home() / fallback
