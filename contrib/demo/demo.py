"""The main job on a real guest, told as it happens. ``make demo`` runs it.

Everything happens in a temporary directory, with the commands that a user would type. Each step
is checked; the first that is not true ends the demo with exit status 1 and says which.
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from arcsup.control.client import Client, vm_path
from arcsup.errors import ArcsupError, NoSuchObject

TOP = Path(__file__).parents[2]
sys.path.insert(0, str(TOP))

from tests.guest import CMDLINE, READY  # noqa: E402
from tests.leftovers import find_processes_naming, find_sockets  # noqa: E402

BIN = Path(sys.executable).parent
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


class NotTrue(Exception):
    """A step of the story did not happen."""


class Teller:
    """Writes the story: headings with the time, commands as typed, their output, findings."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")

    def _paint(self, code: str, text: str) -> str:
        return f"\033[{code}m{text}\033[0m" if self._colour else text

    def step(self, heading: str) -> None:
        elapsed = f"{time.monotonic() - self._began:5.1f} s"
        print(f"\n{self._paint('2', elapsed)}  {self._paint('1', heading)}", flush=True)

    def typed(self, command: str) -> None:
        print(f"{self._paint('36', '$')} {self._paint('36', command)}", flush=True)

    def output(self, text: str) -> None:
        print(textwrap.indent(text.rstrip("\n"), "  "), flush=True)

    def true(self, finding: str) -> None:
        print(f"{self._paint('32', '✓')} {finding}", flush=True)

    def not_true(self, finding: str) -> None:
        print(f"{self._paint('31', '✗')} {finding}", file=sys.stderr, flush=True)


class Demo:
    """One set of directories, the daemon in it, and the steps of the story."""

    def __init__(self, top: Path, teller: Teller) -> None:
        self.top = top
        self.tell = teller
        self.vms, self.run, self.log = top / "vms", top / "run", top / "log"
        self.file = self.vms / "hello.yaml"
        self.client = Client(self.run / "arcsup.sock")
        self.daemon: subprocess.Popen[bytes] | None = None
        self.vms.mkdir()
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

    def answers(self) -> bool:
        try:
            self.client.get("/v1/vms")
        except ArcsupError:
            return False
        return True

    def until(self, what: str, condition: Callable[[], object]) -> float:
        """Wait until something is true and return the seconds that it took."""
        began = time.monotonic()
        while not condition():
            if time.monotonic() - began > PATIENCE:
                raise NotTrue(f"{what}: not within {PATIENCE:.0f} s")
            time.sleep(0.005)
        return time.monotonic() - began

    def check(self, finding: str, is_true: object) -> None:
        if not is_true:
            raise NotTrue(finding)
        self.tell.true(finding)

    def arcsup(self, *arguments: str) -> str:
        """Run a verb as a user would, show it and its output, and return that."""
        self.tell.typed(shlex.join(["arcsup", *arguments]))
        result = subprocess.run(
            [BIN / "arcsup", *arguments],
            env={**os.environ, "ARCSUP_RUN": str(self.run)},
            capture_output=True,
            text=True,
            check=False,
        )
        self.tell.output(result.stdout + result.stderr)
        if result.returncode != 0:
            raise NotTrue(f"arcsup {arguments[0]} ended with exit status {result.returncode}")
        return result.stdout

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

    def start_daemon(self) -> None:
        command = [
            "arcsup", "daemon",
            "--vms", str(self.vms), "--run", str(self.run),
            "--state", str(self.top / "state"), "--log-dir", str(self.log),
        ]  # fmt: skip
        self.tell.typed(shlex.join(command) + " &")
        with open(self.top / "daemon.log", "ab") as log:
            self.daemon = subprocess.Popen(
                [BIN / command[0], *command[1:]],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        seconds = self.until("the daemon answers", self.answers)
        self.tell.true(f"the daemon answers after {seconds:.2f} s")

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

    def end_the_daemon(self) -> None:
        self.tell.step("The daemon is ended.")
        if self.daemon is None:
            raise NotTrue("there is a daemon")
        self.tell.typed(f"kill {self.daemon.pid}")
        self.daemon.terminate()
        began = time.monotonic()
        self.check("it ends with exit status 0", self.daemon.wait(PATIENCE) == 0)
        self.tell.true(f"after {time.monotonic() - began:.2f} s")
        left = find_processes_naming(self.top)
        self.check("no process is left", not left)

    def qemus(self) -> dict[int, str]:
        own = self.daemon.pid if self.daemon else None
        found = find_processes_naming(self.top)
        return {pid: command for pid, command in found.items() if pid != own}


@contextmanager
def demo_directory() -> Iterator[Path]:
    """Yield a directory for one demo; in the end remove it and all that runs in it."""
    # Not below TMPDIR, which may be deep: a unix socket's path has at most 107 bytes.
    directory = Path(tempfile.mkdtemp(prefix="arcsup-", dir="/tmp"))
    # Root's QEMUs run as another user, who must be able to pass.
    directory.chmod(0o711)
    try:
        yield directory
    finally:
        # QEMU may be starting just now: look until there is nothing more to end.
        while left := find_processes_naming(directory):
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        shutil.rmtree(directory)


def main() -> int:
    with demo_directory() as directory:
        teller = Teller()
        demo = Demo(directory, teller)
        try:
            teller.step("The daemon is started on an empty folder.")
            demo.start_daemon()
            demo.drop_a_file()
            demo.see_the_guest()
            demo.kill_qemu()
            demo.edit_the_file()
            demo.kill_the_daemon()
            demo.remove_the_file()
            demo.end_the_daemon()
        except (NotTrue, ArcsupError) as error:
            teller.not_true(f"not true: {error}")
            log = demo.top / "daemon.log"
            if log.exists():
                print(f"--- the daemon said:\n{log.read_text()[-4000:]}", file=sys.stderr)
            return 1
    teller.step("That was all of it, and every line was checked.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
