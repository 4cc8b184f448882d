"""The main job on a real guest, told as it happens. ``make demo`` runs it.

Everything happens in a temporary directory, with the commands that a user would type. Each step
is checked; the first that is not true ends the demo with exit status 1 and says which.
"""

import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from story import BIN, TOP, NotTrue, Stage, Teller, tell_story

from arcsup.control.client import vm_path
from arcsup.errors import NoSuchObject
from tests.guest import CMDLINE, READY
from tests.leftovers import find_sockets

KVM = Path("/dev/kvm")
PATIENCE = 60.0
"""Seconds until a step that has not come true never will; the longest takes 5 when idle."""

VM_FILE = f"""\
# A Linux without a disk: a distribution's kernel, and busybox. Paths hang off STATE/images.
memory: 256MiB
cpus: {{cores: 1}}
boot:
  kernel: vmlinuz
  initrd: initramfs.cpio.gz
  cmdline: {CMDLINE} arcsup.name=hello arcsup.heartbeat
"""


class Demo(Stage):
    """The steps of the story."""

    def __init__(self, top: Path, teller: Teller) -> None:
        super().__init__(top, teller, patience=PATIENCE)
        self.file = self.vms / "hello.yaml"
        subprocess.run(
            [TOP / "contrib/guest/build-guest", top / "state/images"],
            stdout=subprocess.DEVNULL,
            check=True,
        )

    # --- helpers of the steps ---------------------------------------------------------------

    def status(self) -> dict[str, object]:
        status: dict[str, object] = self.client.get(vm_path("hello"))
        return status

    def pid(self) -> int | None:
        pid = self.status()["pid"]
        return pid if isinstance(pid, int) else None

    def is_running(self) -> bool:
        with suppress(NoSuchObject):
            return self.status()["state"] == "running"
        return False

    def is_gone(self) -> bool:
        try:
            self.status()
        except NoSuchObject:
            return True
        return False

    def console(self) -> str:
        """Return what the guest has said so far; the log needs no daemon."""
        verb = (BIN / "arcsup", "logs", "hello", "--console", "--lines", "1000")
        result = subprocess.run(
            (*verb, "--log-dir", self.log), capture_output=True, text=True, check=False
        )
        return result.stdout

    def heartbeat(self) -> int:
        """Return the guest's last heartbeat, a number that grows by one a second."""
        beats = re.findall(r"^heartbeat (\d+)", self.console(), re.MULTILINE)
        return int(beats[-1]) if beats else 0

    # --- the story --------------------------------------------------------------------------

    def drop_a_file(self) -> None:
        self.tell.step("A YAML file dropped into the folder is a virtual machine.")
        self.tell.typed(f"cat > {self.file}")
        self.tell.output(VM_FILE)
        self.file.write_text(VM_FILE)
        seconds = self.until("the VM runs", self.is_running)
        # accel: auto believes no /dev/kvm before it has seen a guest run, once per boot.
        tried = " (the host's first VM waits for a trial of KVM)" if KVM.exists() else ""
        self.tell.true(f"running {seconds:.2f} s after the file was written{tried}")
        self.arcsup("list")

    def see_the_guest(self) -> None:
        self.tell.step("It is a real Linux; this is its console.")
        seconds = self.until("the guest is ready", lambda: READY in self.console())
        self.tell.true(f"the guest was up {seconds:.1f} s later")
        self.until("the guest's first heartbeat", self.heartbeat)
        self.arcsup("logs", "hello", "--console")
        self.arcsup("status", "hello")

    def kill_qemu(self) -> None:
        self.tell.step("Its QEMU is killed: it comes back.")
        before = self.pid()
        if before is None:
            raise NotTrue("the VM has a process")
        self.tell.typed(f"kill -KILL {before}")
        os.kill(before, signal.SIGKILL)
        seconds = self.until(
            "the VM runs again", lambda: self.is_running() and self.pid() not in {before, None}
        )
        self.tell.true(f"running again after {seconds:.2f} s, as process {self.pid()}")
        self.arcsup("list")
        self.until(
            "the guest is ready again",
            lambda: self.console().count(READY) == 2 and self.heartbeat(),
        )

    def edit_the_file(self) -> None:
        self.tell.step("The file is edited: what needs a restart is pending, and nothing is lost.")
        self.tell.typed(f"sed -i s/256MiB/320MiB/ {self.file}")
        self.file.write_text(self.file.read_text().replace("256MiB", "320MiB"))
        self.until("the change is pending", lambda: self.status()["pending"])
        listed = self.arcsup("list")
        self.check("list shows what has changed", "changed (memory)" in listed)
        told = self.arcsup("status", "hello")
        self.check("status shows it too", "memory" in told)

    def kill_the_daemon(self) -> None:
        self.tell.step("The daemon is killed and started again: the guest never notices.")
        before, beat = self.pid(), self.heartbeat()
        if self.daemon is None:
            raise NotTrue("there is a daemon")
        self.tell.typed(f"kill -KILL {self.daemon.pid}")
        self.daemon.kill()
        self.daemon.wait()
        self.until("the guest goes on without a daemon", lambda: self.heartbeat() > beat)
        self.tell.true(f"heartbeat {self.heartbeat()}: the guest goes on without a daemon")
        self.start_daemon()
        self.until("the VM is adopted", self.is_running)
        self.arcsup("list")
        self.check(f"the same process as before: {before}", self.pid() == before)
        self.check("its daemon knows that it was adopted", self.status()["adopted"])
        self.check("not one more boot on the console", self.console().count(READY) == 2)
        self.until("the guest's heart beats on", lambda: self.heartbeat() > beat + 1)
        self.check(f"heartbeat {self.heartbeat()}, counted on from {beat}", True)

    def remove_the_file(self) -> None:
        self.tell.step(
            "The file is removed: the guest is asked to power down, and nothing is left."
        )
        self.tell.typed(f"rm {self.file}")
        self.file.unlink()
        seconds = self.until("the VM is gone", self.is_gone)
        self.tell.true(f"powered down and gone after {seconds:.1f} s")
        self.arcsup("list")
        # Trouble on the way is no failure, the stop ladder sees to that; here there must be none.
        events = self.arcsup("events", "hello")
        self.check("the guest was asked and powered down by itself", "trouble" not in events)
        self.check("no QEMU is left", not self.qemus())
        sockets = {path.name for path in find_sockets(self.run)}
        self.check("no socket is left but the daemon's own", sockets == {"arcsup.sock"})
        self.check("no runtime folder is left", not (self.run / "hello").exists())


def tell(directory: Path, teller: Teller) -> None:
    teller.step("The daemon is started on an empty folder.")
    demo = Demo(directory, teller)
    demo.start_daemon()
    demo.drop_a_file()
    demo.see_the_guest()
    demo.kill_qemu()
    demo.edit_the_file()
    demo.kill_the_daemon()
    demo.remove_the_file()
    demo.end_the_daemon()


if __name__ == "__main__":
    sys.exit(tell_story(tell))
