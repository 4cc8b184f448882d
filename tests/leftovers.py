"""What a test, or the daemon that it tests, has left behind."""

import os
from pathlib import Path


def find_processes_naming(text: str | Path) -> dict[int, str]:
    """Return the command lines that contain a text, by pid, without this process's own.

    Every QEMU and daemon of a test names the test's own directory somewhere.
    """
    wanted = os.fsencode(text)
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if wanted in command and int(entry.name) != os.getpid():
            found[int(entry.name)] = command.replace(b"\0", b" ").decode(errors="replace").strip()
    return found


def find_sockets(directory: Path) -> list[Path]:
    """Return the unix sockets anywhere below a directory."""
    return sorted(path for path in directory.rglob("*") if path.is_socket())
