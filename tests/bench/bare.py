"""QEMU without arcsup: the same command line, and nothing around it."""

import json
import os
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attrs import define


@define
class BareQemu:
    """One QEMU that was started by hand, and the socket of its monitor."""

    process: subprocess.Popen[bytes]
    monitor: Path

    def wait_until_running(self) -> None:
        """Negotiate QMP and ask until the guest runs: what arcsup calls running."""
        connection = _connect(self.monitor)
        with connection, connection.makefile("rwb") as stream:
            json.loads(stream.readline())
            _execute(stream, "qmp_capabilities")
            while _execute(stream, "query-status")["status"] != "running":
                time.sleep(0.001)

    def end(self) -> None:
        """Kill it and wait for its end."""
        self.process.kill()
        self.process.wait()


def start_bare_qemu(argv: Sequence[str], folder: Path) -> BareQemu:
    """Start what ``arcsup qemu`` prints, with its sockets in a folder of its own."""
    folder.mkdir(parents=True)
    own = [_relocate(argument, folder) for argument in argv]
    process = subprocess.Popen(own, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return BareQemu(process, folder / "qmp.sock")


def _relocate(argument: str, folder: Path) -> str:
    """Point ``path=`` and ``logfile=`` of an option into the folder."""
    parts = argument.split(",")
    for index, part in enumerate(parts):
        key, equals, value = part.partition("=")
        if equals and key in ("path", "logfile"):
            parts[index] = f"{key}={folder / os.path.basename(value)}"
    return ",".join(parts)


def _connect(path: Path) -> socket.socket:
    while True:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            connection.close()
            time.sleep(0.001)
        else:
            return connection


def _execute(stream: Any, command: str) -> Any:
    stream.write(json.dumps({"execute": command}).encode() + b"\n")
    stream.flush()
    while "return" not in (answer := json.loads(stream.readline())):
        assert "error" not in answer, answer
    return answer["return"]
