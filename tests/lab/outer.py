"""The person at the lab's machine: plugs cards, pulls them out, presses the power button.

It speaks QMP to the QEMU that runs this guest, through a virtio-serial port (machine.py).
"""

import contextlib
import json
import select
import time
from pathlib import Path

PORT = Path("/dev/virtio-ports/outer-qmp")

CARDS = ("bochs-display", "secondary-vga", "qxl", "pci-testdev", "edu")
"""Device models that QEMU lets plug while the guest runs; the first three are display devices."""


class OuterError(Exception):
    """The outer QEMU refused, in its own words."""


class Outer:
    """The outer QEMU's monitor, and what a person would do with it."""

    def __init__(self, port: Path = PORT) -> None:
        # Not opened a second time by anything: a virtio-serial port has one user.
        self.file = port.open("r+b", buffering=0)
        self.buffer = b""
        # Refused when an earlier user of the port did that: the monitor's session outlives them.
        with contextlib.suppress(OuterError):
            self.execute("qmp_capabilities")

    def close(self) -> None:
        """Let the port go."""
        self.file.close()

    def execute(self, command: str, **arguments: object) -> object:
        """Run a QMP command and return its answer; OuterError is QEMU's refusal."""
        identity = time.monotonic_ns()
        message = {"execute": command, "arguments": arguments, "id": identity}
        self.file.write(json.dumps(message).encode() + b"\n")
        end = time.monotonic() + 30
        while True:
            answer = self._next_line(end)
            if answer.get("id") != identity:
                continue  # the greeting, an event, an answer to an earlier user
            if "error" in answer:
                raise OuterError(answer["error"])
            return answer["return"]

    def _next_line(self, end: float) -> dict[str, object]:
        while b"\n" not in self.buffer:
            if not select.select([self.file], [], [], max(0.0, end - time.monotonic()))[0]:
                raise TimeoutError("the outer QEMU does not answer")
            self.buffer += self.file.read(4096) or b""
        line, self.buffer = self.buffer.split(b"\n", 1)
        answer = json.loads(line)
        assert isinstance(answer, dict)
        return answer

    def plug(self, card: str = "bochs-display") -> None:
        """Push a card (one of CARDS) into the empty slot; the kernel sees it soon after."""
        self.execute("device_add", driver=card, id=card, bus="empty-port")

    def unplug(self, card: str = "bochs-display") -> None:
        """Ask for the card: the kernel lets it go within some seconds, after its driver has.

        QEMU refuses while the slot's light still blinks, some seconds after a card came. One that
        has gone by itself meanwhile is no error.
        """
        end = time.monotonic() + 30
        while True:
            try:
                self.execute("device_del", id=card)
            except OuterError as error:
                if "DeviceNotFound" in str(error):
                    return  # It went between the caller's look and this order.
                if "guest is busy" not in str(error) or time.monotonic() > end:
                    raise
                time.sleep(0.5)
            else:
                return

    def plugged(self) -> list[str]:
        """The cards that were plugged and are still in the slot."""
        devices = self.execute("qom-list", path="/machine/peripheral")
        assert isinstance(devices, list)
        return [device["name"] for device in devices if device["name"] in CARDS]

    def power_button(self) -> None:
        """Press the machine's power button (shortly)."""
        self.execute("system_powerdown")
