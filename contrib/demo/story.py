"""A story that is checked as it is told: directories, the daemon in them, commands as typed."""

import os
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

from arcsup.control.client import Client
from arcsup.errors import ArcsupError

TOP = Path(__file__).parents[2]
sys.path.insert(0, str(TOP))

from tests.leftovers import find_processes_naming  # noqa: E402

BIN = Path(sys.executable).parent


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


class Stage:
    """One set of directories, and the daemon in it. ``patience``: seconds until a step that has
    not come true never will."""

    def __init__(self, top: Path, teller: Teller, *, patience: float) -> None:
        self.top = top
        self.tell = teller
        self.patience = patience
        self.vms, self.run, self.log = top / "vms", top / "run", top / "log"
        self.client = Client(self.run / "arcsup.sock")
        self.daemon: subprocess.Popen[bytes] | None = None
        self.vms.mkdir()

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
            if time.monotonic() - began > self.patience:
                raise NotTrue(f"{what}: not within {self.patience:.0f} s")
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

    def end_the_daemon(self) -> None:
        self.tell.step("The daemon is ended.")
        if self.daemon is None:
            raise NotTrue("there is a daemon")
        self.tell.typed(f"kill {self.daemon.pid}")
        self.daemon.terminate()
        began = time.monotonic()
        self.check("it ends with exit status 0", self.daemon.wait(self.patience) == 0)
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


def tell_story(tell: Callable[[Path, Teller], None]) -> int:
    """Tell a story in a directory of its own; return the exit status."""
    with demo_directory() as directory:
        teller = Teller()
        try:
            tell(directory, teller)
        except (NotTrue, ArcsupError) as error:
            teller.not_true(f"not true: {error}")
            log = directory / "daemon.log"
            if log.exists():
                print(f"--- the daemon said:\n{log.read_text()[-4000:]}", file=sys.stderr)
            return 1
    teller.step("That was all of it, and every line was checked.")
    return 0
