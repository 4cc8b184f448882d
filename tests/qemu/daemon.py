"""A real daemon in a directory of its own, driven as people and their scripts drive it."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Protocol

from attrs import define, field

from arcsup.control.client import Client, vm_path
from arcsup.errors import DaemonUnreachable, NoSuchObject
from tests.leftovers import find_processes_naming

TINY = "memory: 64\naccel: tcg\nnetworks: []\n"
"""A VM without anything to boot: its BIOS runs for ever, and it is up in a fraction of a second."""

PATIENCE = 60.0
"""Seconds to wait for what takes one: the machine may be busy with other things."""


class Process(Protocol):
    """What is asked of the daemon's process."""

    pid: int

    def poll(self) -> int | None: ...
    def wait(self, timeout: float) -> int: ...
    def send_signal(self, sig: int) -> None: ...
    def kill(self) -> None: ...


@define
class Daemon:
    """One set of directories, and the daemon process that uses them at the moment."""

    top: Path
    options: tuple[str, ...] = ()
    program: tuple[str, ...] = (sys.executable, "-m", "arcsup")
    environment: dict[str, str] = field(factory=dict)
    process: Process | None = None
    patience: float = PATIENCE

    def __attrs_post_init__(self) -> None:
        self.vms.mkdir(exist_ok=True, mode=0o755)
        if os.geteuid() == 0:
            # QEMU's user must be able to pass.
            self.top.chmod(self.top.stat().st_mode & 0o777 | 0o001)

    @property
    def vms(self) -> Path:
        return self.top / "vms"

    @property
    def run(self) -> Path:
        return self.top / "run"

    @property
    def state(self) -> Path:
        return self.top / "state"

    @property
    def log(self) -> Path:
        return self.top / "log"

    @property
    def client(self) -> Client:
        return Client(self.run / "arcsup.sock")

    def spawn(self) -> Process:
        """Start the daemon and do not wait for it."""
        places = ("--vms", self.vms, "--run", self.run, "--state", self.state)
        arguments = ["daemon", *map(str, places), "--log-dir", str(self.log), *self.options]
        with open(self.top / "daemon.log", "ab") as output:
            self.process = self.open_process(arguments, output)
        return self.process

    def open_process(self, arguments: Sequence[str], output: IO[bytes]) -> Process:
        """Run the program; what it prints goes to a file."""
        return subprocess.Popen(
            [*self.program, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, **self.environment},
        )

    def start(self) -> None:
        """Start the daemon and wait until it answers."""
        self.spawn()
        self.until(self.answers, "the daemon answers")

    def answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"the daemon ended:\n{self.read_log()}"
        try:
            self.client.get("/v1/daemon")
        except DaemonUnreachable:
            return False
        return True

    def terminate(self) -> float:
        """End the daemon as systemd does; return the seconds it took."""
        assert self.process is not None
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(self.patience) == 0, self.read_log()
        return time.monotonic() - began

    def kill(self) -> None:
        """End the daemon as a crash does."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(self.patience)

    def drop(self, name: str, text: str = TINY) -> Path:
        """Put a VM file into the directory the way that careful programs do."""
        file = self.vms / f"{name}.yaml"
        temporary = self.vms / f".{name}.tmp"
        temporary.write_text(text)
        temporary.rename(file)
        return file

    def status(self, name: str) -> dict[str, Any]:
        """Return what ``status NAME -o json`` prints."""
        status: dict[str, Any] = self.client.get(vm_path(name))
        return status

    def state_of(self, name: str) -> str:
        """Return a VM's state, "gone" when there is no such VM."""
        try:
            return str(self.status(name)["state"])
        except NoSuchObject:
            return "gone"

    def pid_of(self, name: str) -> int:
        return int(self.status(name)["pid"])

    def wait_for(self, name: str, *states: str) -> dict[str, Any]:
        """Wait until a VM is in one of the states; return its status."""
        self.until(lambda: self.state_of(name) in states, f"{name} is {' or '.join(states)}")
        return {} if self.state_of(name) == "gone" else self.status(name)

    def wait_for_another_qemu(self, name: str, pid: int) -> dict[str, Any]:
        """Wait until a VM runs by another QEMU than that of ``pid``; return its status.

        The crash is in the record, and counted, a moment before the state tells of it.
        """
        found: dict[str, Any] = {}

        def runs() -> bool:
            found.update(self.status(name))
            return found["state"] == "running" and found["pid"] not in (pid, None)

        self.until(runs, f"{name} is running again")
        return found

    def wait_for_event(self, name: str, kind: str) -> dict[str, Any]:
        """Wait until an event of a kind was told of a VM; return the newest."""
        found: list[dict[str, Any]] = []

        def happened() -> bool:
            found[:] = [e for e in self.status(name)["events"] if e["kind"] == kind]
            return bool(found)

        self.until(happened, f"{name} has an event {kind}")
        return found[-1]

    def until(self, condition: Callable[[], object], what: str, seconds: float = 0) -> None:
        """Wait for something that a real process does; fail with the daemon's log."""
        seconds = seconds or self.patience
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {seconds:g} s: {what}\n{self.read_log()}")
            time.sleep(0.01)

    def call(self, verb: str, name: str, **query: str) -> Any:
        """Ask the daemon to do something and wait for its answer."""
        return self.client.post(vm_path(name, verb), query=query or None, patience=self.patience)

    def arcsup(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a verb of the command line as a process of its own."""
        return subprocess.run(
            [*self.program, "--run", str(self.run), *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=self.patience,
        )

    def read_log(self) -> str:
        return (self.top / "daemon.log").read_text()

    def records(self) -> dict[str, dict[str, Any]]:
        """Return the ownership records as they are on disk."""
        files = sorted((self.state / "vms").glob("*.json"))
        return {file.stem: json.loads(file.read_text()) for file in files}

    def qemus(self, name: str = "") -> list[int]:
        """Return the pids of the QEMUs (or shells about to become one) of this directory."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                command = (entry / "cmdline").read_bytes()
            except (FileNotFoundError, ProcessLookupError):
                continue
            ours = b"-name\0guest=" + name.encode() in command
            if ours and str(self.log).encode() in command:
                found.append(int(entry.name))
        return sorted(found)


@contextmanager
def running_daemon(top: Path, *options: str) -> Iterator[Daemon]:
    """Yield a daemon that answers; in the end stop it and every VM that it left."""
    daemon = Daemon(top, options)
    daemon.start()
    try:
        yield daemon
    finally:
        end(daemon)


def end(daemon: Daemon) -> None:
    """Kill the daemon and all that belongs to its directory: the test is over."""
    if daemon.process is not None:
        daemon.kill()
    processes = find_processes_naming(daemon.top)
    for pid in processes:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    daemon.until(lambda: not find_processes_naming(daemon.top), "everything has ended")
    # No daemon is left to take the guests' shared memory away.
    for command in processes.values():
        for path in re.findall(r"/dev/shm/[^ ,]+", command):
            Path(path).unlink(missing_ok=True)
