"""How long a VM takes under arcsup, beside the same QEMU without it."""

import os
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from arcsup.errors import DaemonUnreachable
from tests.bench.bare import start_bare_qemu
from tests.bench.measurement import Measurement
from tests.qemu.daemon import TINY, Daemon, end

ROUNDS = 15
MANY = 100
DELAY = 0.1
IDLE_SECONDS = 20.0

SMALL = TINY.replace("64", "32") + "stop: {timeout: 100ms}\n"


def measure_single(top: Path) -> list[Measurement]:
    """File written -> running, and QEMU killed -> running again; each beside bare QEMU."""
    written, killed, bare = [], [], []
    with daemon_in(top) as daemon:
        daemon.drop("warm")
        daemon.wait_for("warm", "running")
        argv = preview(daemon, "warm")
        for number in range(ROUNDS):
            bare.append(time_bare(argv, top / f"bare{number}"))
            name = f"vm{number}"
            began = time.time()
            file = daemon.drop(name)
            daemon.wait_for(name, "running")
            written.append(time_since(began, daemon, name, "running"))
            pid = daemon.pid_of(name)
            began = time.time()
            os.kill(pid, signal.SIGKILL)
            wait_for_restart(daemon, name)
            killed.append(time_since(began, daemon, name, "running"))
            daemon.call("kill", name, wait="10")
            file.unlink()
            daemon.wait_for(name, "gone")
    base = statistics.median(bare) * 1000
    return [
        Measurement("bare QEMU: started -> running", base, "ms"),
        Measurement(
            "file written -> running",
            statistics.median(written) * 1000,
            "ms",
            aim=base + 120,
            baseline=base,
        ),
        Measurement(
            "QEMU killed -> running again",
            statistics.median(killed) * 1000,
            "ms",
            aim=base + DELAY * 1000 + 50,
            baseline=base,
        ),
    ]


def measure_many(top: Path) -> list[Measurement]:
    """A hundred VMs at once, adopted, listed, left alone, and without their daemon."""
    figures = []
    with daemon_in(top) as daemon:
        daemon.drop("vm000", SMALL)
        daemon.wait_for("vm000", "running")
        argv = preview(daemon, "vm000")
        daemon.call("kill", "vm000", wait="10")
        (daemon.vms / "vm000.yaml").unlink()
        daemon.wait_for("vm000", "gone")
        loop = time_loop(argv, top / "loop")
        dropped = time_drop(daemon)
        figures.append(
            Measurement(
                f"{MANY} VMs dropped at once -> all running",
                dropped,
                "s",
                aim=1.3 * loop,
                baseline=loop,
            )
        )
        figures.append(Measurement("restarted daemon: all adopted", time_adoption(daemon), "s", 2))
        figures.append(Measurement(f"arcsup list of {MANY} VMs", time_list(daemon), "ms", 150))
        figures += measure_idle(daemon)
        ends = daemon.terminate()
        figures.append(Measurement(f"daemon with {MANY} VMs: ends", ends, "s", 2))
    return figures


def wait_for_restart(daemon: Daemon, name: str) -> None:
    daemon.until(lambda: daemon.status(name)["restarts"] == 1, "it is restarted")

    def told_twice() -> bool:
        return [it["kind"] for it in daemon.status(name)["events"]].count("running") == 2

    # The count is recorded before the state changes: the first run's event is not the second's.
    daemon.until(told_twice, "it runs again")


def time_bare(argv: list[str], folder: Path) -> float:
    began = time.time()
    qemu = start_bare_qemu(argv, folder)
    qemu.wait_until_running()
    took = time.time() - began
    qemu.end()
    return took


def time_loop(argv: list[str], folder: Path) -> float:
    """Start all in a loop, then wait until each runs."""
    began = time.time()
    qemus = [start_bare_qemu(argv, folder / str(number)) for number in range(MANY)]
    for qemu in qemus:
        qemu.wait_until_running()
    took = time.time() - began
    for qemu in qemus:
        qemu.end()
    return took


def time_drop(daemon: Daemon) -> float:
    began = time.time()
    for number in range(MANY):
        daemon.drop(f"vm{number:03}", SMALL)
    # Looking costs as well, on both sides of the socket: ten times a second is enough here.
    while running(daemon) < MANY:
        time.sleep(0.1)
    return time.time() - began


def time_adoption(daemon: Daemon) -> float:
    daemon.kill()
    began = time.time()
    daemon.spawn()
    daemon.until(lambda: adopted(daemon) == MANY, "all are adopted", seconds=60)
    took = time.time() - began
    for number in range(MANY):
        daemon.client.post(f"/v1/vms/vm{number:03}/qmp", {"execute": "query-status"})
    return took


def time_list(daemon: Daemon) -> float:
    times = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        subprocess.run(
            [Path(sys.executable).with_name("arcsup"), "--run", daemon.run, "list"],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1000


def measure_idle(daemon: Daemon) -> list[Measurement]:
    assert daemon.process is not None
    proc = Path(f"/proc/{daemon.process.pid}")
    before = cpu_seconds(proc)
    time.sleep(IDLE_SECONDS)
    share = (cpu_seconds(proc) - before) / IDLE_SECONDS * 100
    pages = int((proc / "statm").read_text().split()[1])
    megabytes = pages * resource.getpagesize() / 1e6
    return [
        Measurement(f"idle daemon with {MANY} VMs: CPU", share, "% of a core", 0.5),
        Measurement(f"idle daemon with {MANY} VMs: memory", megabytes, "MB", 150),
    ]


def cpu_seconds(proc: Path) -> float:
    """User and system time of a process: fields 14 and 15 of proc_pid_stat(5)."""
    fields = (proc / "stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def running(daemon: Daemon) -> int:
    return sum(vm["state"] == "running" for vm in daemon.client.get("/v1/vms"))


def adopted(daemon: Daemon) -> int:
    """Count the VMs that were taken over."""
    try:
        events = list(daemon.client.stream("/v1/events", {"follow": "0"}))
    except DaemonUnreachable:
        return 0
    return sum(event["kind"] == "adopted" for _, event in events)


CLOCK_GRAIN = 0.001
"""Seconds to which the times of events are rounded."""


def time_since(began: float, daemon: Daemon, name: str, kind: str) -> float:
    """Return the seconds from ``began`` (time of day) to the newest event of a kind.

    Raises ValueError for an event of before: it tells of something else than was measured.
    """
    told = datetime.fromisoformat(daemon.wait_for_event(name, kind)["time"]).timestamp()
    if told < began - CLOCK_GRAIN:
        raise ValueError(f"{name}: the event {kind} is {began - told:.3f} s too old")
    return max(0.0, told - began)


def preview(daemon: Daemon, name: str) -> list[str]:
    """Return the command line that the VM runs with, as a person would paste it."""
    file = str(daemon.vms / f"{name}.yaml")
    places = ("--vms", str(daemon.vms), "--state", str(daemon.state), "--log-dir", str(daemon.log))
    done = daemon.arcsup("qemu", file, "-o", "argv", *places)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@contextmanager
def daemon_in(top: Path) -> Iterator[Daemon]:
    daemon = Daemon(top)
    daemon.start()
    try:
        yield daemon
    finally:
        end(daemon)


def run() -> list[Measurement]:
    """Measure everything about VMs."""
    figures: list[Measurement] = []
    parts: tuple[Callable[[Path], list[Measurement]], ...] = (measure_single, measure_many)
    for part in parts:
        top = Path(tempfile.mkdtemp(prefix="arcb", dir="/tmp"))
        top.chmod(0o711)
        try:
            figures += part(top)
        finally:
            shutil.rmtree(top)
    return figures
