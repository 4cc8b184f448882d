"""The faults: each is brought upon a daemon, or its host, and taken back.

Everything random comes from the generator that is passed in, so a seed names a run.
"""

import os
import random
import re
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

CLOCK_FILE = "clock"
"""In the run's folder: by how many seconds the daemon's time of day differs from the host's."""

CLOCK_MEMORY = Path("/dev/shm")

HOUR = 3600

PIDS_HIERARCHIES = (Path("/sys/fs/cgroup/pids"), Path("/sys/fs/cgroup"))
"""Where control groups with a limit of tasks are: the hierarchy of version 1, or version 2's."""


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


def limit_tasks(daemon: Daemon, chance: random.Random) -> Iterator[None]:
    """The daemon and what it starts may have hardly more processes and threads than now.

    The kernel's limit of a user's processes is none for root; that of a control group is. Source:
    Documentation/admin-guide/cgroup-v1/pids.rst, cgroup-v2.rst ("PID").
    """
    parent, pid = find_pids_group(), pid_of(daemon)
    assert parent is not None
    group = parent / f"arcsup-chaos-{pid}"
    group.mkdir()
    try:
        (group / "cgroup.procs").write_text(str(pid))
        tasks = int((group / "pids.current").read_text())
        (group / "pids.max").write_text(str(tasks + chance.choice((0, 1, 4))))
        yield
    finally:
        (group / "pids.max").write_text("max")
        while pids := (group / "cgroup.procs").read_text().split():
            for moved in pids:
                with suppress(ProcessLookupError):
                    (parent / "cgroup.procs").write_text(moved)
        group.rmdir()


def find_pids_group() -> Path | None:
    """Return a control group in which one with a limit of tasks can be made; None: nowhere."""
    for parent in PIDS_HIERARCHIES:
        probe = parent / f"arcsup-chaos-probe-{os.getpid()}"
        with suppress(OSError):
            probe.mkdir()
            try:
                if (probe / "pids.max").exists():
                    return parent
            finally:
                probe.rmdir()
    return None


def jump_clock(daemon: Daemon, chance: random.Random) -> Iterator[None]:
    """The host's time of day jumps, forward or back, and back again; sometimes over a daemon's end.

    Only the daemon sees it: a library stands between it and the C library's clocks.
    """
    offset = daemon.top / CLOCK_FILE
    set_clock(offset, chance.choice((-HOUR, HOUR, 24 * HOUR, -365 * 24 * HOUR)))
    yield
    if chance.random() < 0.5:
        daemon.kill()
        daemon.start()
    set_clock(offset, 0)


def set_clock(file: Path, seconds: int) -> None:
    """Have the daemon's time of day differ from the host's from now on."""
    unfinished = file.with_suffix(".new")
    unfinished.write_text(f"{seconds:+d}\n")
    unfinished.rename(file)


def clock_environment(top: Path) -> dict[str, str]:
    """Return the environment of a daemon whose clock can be set; {} without the library.

    Times of files stay the host's, as does the clock that never goes back. Source: faketime(1),
    libfaketime's README.
    """
    library = find_clock_library()
    if library is None:
        return {}
    set_clock(top / CLOCK_FILE, 0)
    return {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(top / CLOCK_FILE),
        "FAKETIME_CACHE_DURATION": "1",
        "DONT_FAKE_MONOTONIC": "1",
        "NO_FAKE_STAT": "1",
    }


@contextmanager
def clock_leftovers_removed() -> Iterator[None]:
    """Remove what the library left in /dev/shm for programs that were killed."""
    before = set(CLOCK_MEMORY.iterdir())
    try:
        yield
    finally:
        for file in set(CLOCK_MEMORY.iterdir()) - before:
            pid = re.fullmatch(r"(?:sem\.faketime_sem|faketime_shm)_(\d+)", file.name)
            if pid is not None and not Path(f"/proc/{pid[1]}").exists():
                file.unlink(missing_ok=True)


def find_clock_library() -> Path | None:
    """Return Debian's and Ubuntu's libfaketime for programs with threads; None where it is not."""
    return next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)


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
    "tasks": limit_tasks,
    "clock": jump_clock,
    "lost records": lose_records,
    "restored records": restore_records,
    "wiped": wipe_runtime,
}


def find_missing() -> dict[str, str]:
    """Return the faults that this host has no means for, and what it lacks."""
    missing = {}
    if find_pids_group() is None:
        missing["tasks"] = "no control group with a limit of tasks can be made"
    if find_clock_library() is None:
        missing["clock"] = "libfaketime is not installed"
    return missing
