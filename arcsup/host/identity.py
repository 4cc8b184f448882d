"""Who this host is, for ever (machine id) and until its next boot (boot id)."""

import os
import uuid
from pathlib import Path
from uuid import UUID

from arcsup.errors import Terminal

MACHINE_ID_FILES = (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id"))
"""machine-id(5), and where D-Bus kept it before."""

BOOT_ID_FILE = Path("/proc/sys/kernel/random/boot_id")
"""random(4): a random UUID made once per boot."""


def machine_id(state: Path, files: tuple[Path, ...] = MACHINE_ID_FILES) -> UUID:
    """Return the host's id; where the system has none, one that is made once in ``state``.

    Raises:
        Terminal: the system has none and none can be kept.
    """
    for file in files:
        found = _read_id(file)
        if found is not None:
            return found
    return _kept_id(state / "machine-id")


def boot_id(file: Path = BOOT_ID_FILE) -> str:
    """Return the id of this boot. Raises Terminal where /proc is not mounted."""
    found = _read_id(file)
    if found is None:
        raise Terminal(f"{file}: cannot read the boot id", hint="mount /proc")
    return str(found)


def _read_id(file: Path) -> UUID | None:
    """Return the id in a file, or None: systemd writes "uninitialized" before the first boot."""
    try:
        return UUID(file.read_text(encoding="ascii").strip())
    except (OSError, ValueError):
        return None


def _kept_id(file: Path) -> UUID:
    kept = _read_id(file)
    if kept is not None:
        return kept
    made = uuid.uuid4()
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with temporary.open("w", encoding="ascii") as stream:
            stream.write(f"{made.hex}\n")
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(file)
    except OSError as error:
        raise Terminal(
            f"{file}: cannot keep a machine id: {error.strerror}",
            hint="run systemd-machine-id-setup, or make the state directory writable",
        ) from error
    return made
