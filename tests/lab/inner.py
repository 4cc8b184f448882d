"""A QEMU inside the lab: what a vGPU is given to."""

import contextlib
import json
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol


class InnerQemu:
    """A QEMU whose guest does not run (-S): enough to open devices. Two layers of TCG are slow."""

    def __init__(
        self, directory: Path, devices: Sequence[str], accel: str, objects: Sequence[str] = ()
    ) -> None:
        path = directory / "qmp"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen()
        listener.set_inheritable(True)
        self.process = subprocess.Popen(
            [
                "qemu-system-x86_64", "-machine", "q35", "-accel", accel, "-m", "64M", "-S",
                "-nodefaults", "-display", "none",
                "-chardev", f"socket,id=qmp,fd={listener.fileno()},server=on,wait=off",
                "-mon", "chardev=qmp,mode=control",
                *(part for each in objects for part in ("-object", each)),
                *(part for device in devices for part in ("-device", device)),
            ],
            pass_fds=[listener.fileno()],
            stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        listener.close()
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(60)
        self.socket.connect(str(path))
        self.file = self.socket.makefile("rw")
        # A QEMU that rejects its command line ends without a greeting.
        with contextlib.suppress(ConnectionResetError):
            if self.file.readline():
                self.execute("qmp_capabilities")

    def execute(self, command: str) -> object:
        """Run a QMP command and return its answer."""
        self.file.write(json.dumps({"execute": command}) + "\n")
        self.file.flush()
        while True:
            answer = json.loads(self.file.readline())
            if "return" in answer:
                return answer["return"]
            assert "error" not in answer, answer

    def classes(self) -> list[int]:
        """The PCI class numbers that the inner guest would find, as query-pci gives them."""
        buses = self.execute("query-pci")
        assert isinstance(buses, list)
        return [device["class_info"]["class"] for bus in buses for device in bus["devices"]]

    def error(self) -> str:
        """What QEMU said when it refused its command line."""
        return self.process.communicate(timeout=60)[1]

    def end(self) -> None:
        """Close everything; wait until the kernel has the devices back."""
        self.file.close()
        self.socket.close()
        self.process.terminate()
        self.process.communicate(timeout=60)


class StartQemu(Protocol):
    """The fixture inner_qemu."""

    def __call__(
        self, devices: Sequence[str], accel: str = "tcg", objects: Sequence[str] = ()
    ) -> InnerQemu:
        """Start one."""
