"""The picture of a vGPU that shows itself: `display: on`, seen in a screenshot."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.lab.vms import TINY
from tests.pictures import read_png
from tests.qemu.daemon import Daemon

WIDTH, HEIGHT = 640, 480
"""Of the kernel's sample mdpy-vga; 32 bits a pixel: blue, green, red, nothing."""

GREEN = (0x20, 0xC0, 0x40)


class Debugger:
    """A client of QEMU's gdbserver: the guest's memory, written without a guest's program.

    Source: GDB's manual, "Remote Protocol"; qemu-doc, "GDB usage".
    """

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(60)
        self.socket.connect(str(path))
        self.file = self.socket.makefile("rb")

    def ask(self, command: str) -> str:
        """Send a packet and return the answer's."""
        self.socket.sendall(f"${command}#{sum(command.encode()) % 256:02x}".encode())
        # QEMU halts the guest for whom connects; before 10 it says so without being asked.
        while (answer := self._read_packet()).startswith("T"):
            pass
        return answer

    def _read_packet(self) -> str:
        while self.file.read(1) != b"$":
            pass  # An acknowledgement.
        answer = b""
        while (byte := self.file.read(1)) != b"#":
            answer += byte
        self.file.read(2)
        self.socket.sendall(b"+")
        return answer.decode()

    def write(self, address: int, content: bytes) -> None:
        """Write to the guest's memory; there are no page tables, so addresses are physical."""
        for start in range(0, len(content), 1024):
            part = content[start : start + 1024]
            assert self.ask(f"M{address + start:x},{len(part):x}:{part.hex()}") == "OK"


@contextmanager
def debugging(daemon: Daemon, name: str) -> Iterator[Debugger]:
    """Halt a VM for as long as the block, with a debugger of it."""
    # QEMU is not root: this folder is its own.
    path = daemon.run / ".qemu" / name / "gdb"
    line = f"gdbserver unix:{path},server=on,wait=off"
    daemon.arcsup("qmp", name, "human-monitor-command", f'{{"command-line": "{line}"}}')
    daemon.until(path.is_socket, "QEMU has a gdbserver")
    debugger = Debugger(path)
    try:
        yield debugger
        assert debugger.ask("D") == "OK"
    finally:
        debugger.file.close()
        debugger.socket.close()


def find_frame(daemon: Daemon) -> int:
    """Return where the firmware put the vGPU's memory, 0 as long as it has not."""
    buses = daemon.client.post("/v1/vms/one/qmp", {"execute": "query-pci"})["return"]
    devices = [device for bus in buses for device in bus["devices"]]
    addresses = [0]
    for device in devices:
        # What is behind bridges joins the list that is walked.
        devices += device.get("pci_bridge", {}).get("devices", [])
        if device["qdev_id"] == "gpu0":
            addresses += [it["address"] for it in device["regions"] if it["bar"] == 0]
    return max(addresses)


def test_a_screenshot_shows_what_is_in_the_memory_of_a_vgpu(daemon: Daemon) -> None:
    daemon.drop("one", f"{TINY}gpus: [{{mdevType: mdpy-vga, display: on}}]\n")
    daemon.wait_for("one", "running")
    daemon.until(lambda: find_frame(daemon), "the firmware placed the vGPU")
    with debugging(daemon, "one") as debugger:
        debugger.write(find_frame(daemon), bytes([*GREEN[::-1], 0]) * WIDTH * (HEIGHT // 2))

    file = daemon.top / "one.png"
    done = daemon.arcsup("screenshot", "one", str(file))
    assert done.returncode == 0, done.stderr
    picture = read_png(file.read_bytes())
    assert (picture.width, picture.height) == (WIDTH, HEIGHT)
    assert picture.share_of(*GREEN) == 0.5
