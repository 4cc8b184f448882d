"""A card is plugged, and the VM that asked for a share of it starts: ``make demo-gpu``.

It runs inside the lab (tests/lab), a machine that really has a slot into which a card can be put.
The card is QEMU's; the driver that cuts it into vGPUs is the lab's, which plays a vendor's.
"""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from story import NotTrue, Stage, Teller, tell_story

from arcsup.control.client import vm_path
from arcsup.errors import NoSuchObject
from tests.lab.kernel import MDEVS, PCI, bind
from tests.lab.outer import Outer

PATIENCE = 300.0
"""Seconds: everything in here is emulated twice."""

CARD = "bochs-display"

VM_FILE = """\
memory: 32
accel: tcg
networks: []
gpus:
  - minVRam: 1GiB
    maxVRam: 2GiB
"""


class GpuDemo(Stage):
    """The steps of the story."""

    def __init__(self, top: Path, teller: Teller) -> None:
        super().__init__(top, teller, patience=PATIENCE)
        self.file = self.vms / "games.yaml"
        self.outer = Outer()

    def state(self) -> str:
        with suppress(NoSuchObject):
            return str(self.client.get(vm_path("games"))["state"])
        return "gone"

    def wait_for(self, state: str) -> float:
        return self.until(f"the VM is {state}", lambda: self.state() == state)

    def drop_a_file(self) -> None:
        self.tell.step("A YAML file that asks for a share of a GPU; there is no such card.")
        self.tell.typed(f"cat > {self.file}")
        self.tell.output(VM_FILE)
        self.file.write_text(VM_FILE)
        self.wait_for("waiting")
        self.arcsup("list")
        self.arcsup("gpu", "list")

    def plug_the_card(self) -> None:
        self.tell.step("A card is pushed into the empty slot, and its driver takes it.")
        before = {path.name for path in PCI.iterdir()}
        self.outer.plug(CARD)
        self.until("the kernel has found it", lambda: self._new(before))
        (address,) = self._new(before)
        card = PCI / address
        self.until(
            "it has its memory", lambda: int((card / "resource").read_text().split()[0], 16) != 0
        )
        self.tell.typed(f"echo nvidia > /sys/bus/pci/devices/{address}/driver_override")
        self.tell.typed(f"echo {address} > /sys/bus/pci/drivers_probe")
        bind(card, "nvidia")
        seconds = self.wait_for("running")
        self.tell.true(f"the VM runs {seconds:.1f} s later; most of that is QEMU's own start")
        self.arcsup("list")
        self.arcsup("gpu", "list", "--tree")
        self.arcsup("gpu", "types", "--for", "games")

    def _new(self, before: set[str]) -> set[str]:
        return {path.name for path in PCI.iterdir()} - before

    def kill_qemu(self) -> None:
        self.tell.step("Its QEMU is killed: it comes back with the same slice.")
        before = self.client.get(vm_path("games"))
        self.tell.typed(f"kill -KILL {before['pid']}")
        os.kill(before["pid"], signal.SIGKILL)
        self.until("it runs again", lambda: self._runs_again(before["pid"]))
        after = self.client.get(vm_path("games"))
        self.check(f"the same slice: {after['gpus'][0]['id']}", after["gpus"] == before["gpus"])
        self.check("and no second one", len(list(MDEVS.iterdir())) == 1)

    def _runs_again(self, former: int) -> bool:
        status = self.client.get(vm_path("games"))
        return bool(status["state"] == "running" and status["pid"] != former)

    def pull_the_card(self) -> None:
        self.tell.step("The card is pulled out while the VM runs.")
        self.outer.unplug(CARD)
        self.wait_for("waiting")
        status = self.client.get(vm_path("games"))
        self.check("the VM ended for it", status["lastExit"]["class"] == "device-lost")
        self.until("nothing is left of its slice", lambda: not list(MDEVS.iterdir()))
        self.tell.true("and waits for the card; nothing is left of its slice")
        self.arcsup("list")

    def remove_the_file(self) -> None:
        self.tell.step("The file is removed: nothing is left.")
        self.tell.typed(f"rm {self.file}")
        self.file.unlink()
        self.wait_for("gone")
        self.check("no QEMU is left", not self.qemus())


def tell(directory: Path, teller: Teller) -> None:
    # Of the lab's devices the story needs none but the card that comes.
    subprocess.run(["/usr/sbin/modprobe", "-r", "mtty", "mdpy", "mbochs"], check=True)
    teller.step("The daemon is started on a machine without a GPU to share.")
    demo = GpuDemo(directory, teller)
    if demo.outer.plugged():
        raise NotTrue("the slot is empty")
    demo.start_daemon()
    demo.drop_a_file()
    demo.plug_the_card()
    demo.kill_qemu()
    demo.pull_the_card()
    demo.remove_the_file()
    demo.end_the_daemon()


if __name__ == "__main__":
    sys.exit(tell_story(tell))
