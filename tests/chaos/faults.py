"""The faults: each is brought upon a daemon, or its host, and taken back.

Everything random comes from the generator that is passed in, so a seed names a run.
"""

import os
import random
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.qemu.daemon import Daemon

FILLED_SIZE = "48m"
"""Size of the file systems of a chaos run's state, runtime and log folders."""


@contextmanager
def file_systems(top: Path) -> Iterator[None]:
    """Mount a small file system on each folder that the daemon writes to."""
    mounted = []
    try:
        for name in ("state", "run", "log"):
            (top / name).mkdir(exist_ok=True)
            options = f"size={FILLED_SIZE},mode=0755"
            subprocess.run(
                ["mount", "-t", "tmpfs", "-o", options, "chaos", str(top / name)], check=True
            )
            mounted.append(top / name)
        yield
    finally:
        for folder in mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=False)


def crash(daemon: Daemon, chance: random.Random) -> Iterator[None]:
    """The daemon is killed, at any instruction, and another one is started."""
    yield
    time.sleep(chance.uniform(0, 0.4))
    daemon.kill()
    daemon.start()


def crash_thrice(daemon: Daemon, chance: random.Random) -> Iterator[None]:
    """The daemon is killed again while it takes up what the last one left."""
    for _ in range(2):
        time.sleep(chance.uniform(0, 0.2))
        daemon.kill()
        daemon.spawn()
        time.sleep(chance.uniform(0, 0.8))
    daemon.kill()
    daemon.start()
    yield


def stop_qemus(daemon: Daemon, chance: random.Random) -> Iterator[None]:
    """QEMUs stand still for a while, as under a debugger or a host without memory."""
    chosen = [pid for pid in daemon.qemus() if chance.random() < 0.6]
    for pid in chosen:
        send(pid, signal.SIGSTOP)
    yield
    time.sleep(chance.uniform(0.2, 1.5))
    for pid in chosen:
        send(pid, signal.SIGCONT)


def kill_qemus(daemon: Daemon, chance: random.Random) -> Iterator[None]:
    """QEMUs crash."""
    for pid in daemon.qemus():
        if chance.random() < 0.6:
            send(pid, signal.SIGKILL)
    yield


def fill(name: str) -> Callable[[Daemon, random.Random], Iterator[None]]:
    """Return the fault that a folder's file system is full."""

    def fault(daemon: Daemon, chance: random.Random) -> Iterator[None]:
        ballast = daemon.top / name / "ballast"
        with open(ballast, "wb", buffering=0) as stream, suppress(OSError):
            while stream.write(b"\0" * 65536):
                pass
        yield
        ballast.unlink()

    return fault


def make_read_only(name: str) -> Callable[[Daemon, random.Random], Iterator[None]]:
    """Return the fault that a folder's file system refuses all writes.

    A file system that somebody writes to cannot be made so from above; a read-only bind mount over
    it can.
    """

    def fault(daemon: Daemon, chance: random.Random) -> Iterator[None]:
        folder = str(daemon.top / name)
        subprocess.run(["mount", "--bind", folder, folder], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
        yield
        subprocess.run(["umount", "--lazy", folder], check=True)

    return fault


def limit_descriptors(daemon: Daemon, chance: random.Random) -> Iterator[None]:
    """The daemon may open no file beyond those that it has, give or take some."""
    opened = len(os.listdir(f"/proc/{pid_of(daemon)}/fd"))
    with limited(daemon, resource.RLIMIT_NOFILE, opened + chance.choice((0, 2, 6))):
        yield


def limit_memory(daemon: Daemon, chance: random.Random) -> Iterator[None]:
    """The daemon may map hardly more memory than it has."""
    pages = int(Path(f"/proc/{pid_of(daemon)}/statm").read_text().split()[0])
    size = pages * os.sysconf("SC_PAGE_SIZE") + chance.choice((0, 1, 8)) * 2**20
    with limited(daemon, resource.RLIMIT_AS, size):
        yield


@contextmanager
def limited(daemon: Daemon, which: int, size: int) -> Iterator[None]:
    """Lower one of the daemon's soft limits for a while; those of its QEMUs stay."""
    pid = pid_of(daemon)
    before = resource.prlimit(pid, which)
    resource.prlimit(pid, which, (size, before[1]))
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            resource.prlimit(pid, which, before)


def lose_records(daemon: Daemon, chance: random.Random) -> Iterator[None]:
    """The daemon is killed, and some of its records are gone when the next one comes."""
    yield
    daemon.kill()
    for record in sorted((daemon.state / "vms").glob("*.json")):
        if chance.random() < 0.5:
            record.unlink()
    daemon.start()


def restore_records(daemon: Daemon, chance: random.Random) -> Iterator[None]:
    """The daemon is killed, and its records are put back from an older copy."""
    kept = daemon.top / "kept-records"
    shutil.rmtree(kept, ignore_errors=True)
    shutil.copytree(daemon.state / "vms", kept)
    yield
    daemon.kill()
    for record in sorted(kept.glob("*.json")):
        if chance.random() < 0.5:
            shutil.copy(record, daemon.state / "vms" / record.name)
    daemon.start()


def wipe_runtime(daemon: Daemon, chance: random.Random) -> Iterator[None]:
    """Somebody empties the runtime folder under the daemon; sometimes it is killed after it."""
    yield
    for entry in sorted(daemon.run.iterdir()):
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)
    if chance.random() < 0.5:
        daemon.kill()
        daemon.start()


def pid_of(daemon: Daemon) -> int:
    assert daemon.process is not None
    return daemon.process.pid


def send(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


FAULTS: dict[str, Callable[[Daemon, random.Random], Iterator[None]]] = {
    "kill": crash,
    "kills": crash_thrice,
    "stop": stop_qemus,
    "qkill": kill_qemus,
    "state full": fill("state"),
    "run full": fill("run"),
    "log full": fill("log"),
    "state read-only": make_read_only("state"),
    "log read-only": make_read_only("log"),
    "descriptors": limit_descriptors,
    "memory": limit_memory,
    "lost records": lose_records,
    "restored records": restore_records,
    "wiped": wipe_runtime,
}
