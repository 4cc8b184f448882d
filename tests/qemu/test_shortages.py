"""A daemon that has run short of descriptors, processes or threads loses no VM and goes on."""

import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.chaos.faults import limited, pid_of
from tests.qemu.daemon import TINY, Daemon, running_daemon

VM = TINY + "stop: {timeout: 100ms}\nrestart: {burst: 1000, period: 1s, delay: 50ms}\n"


@pytest.fixture
def daemon(short_dir: Path) -> Iterator[Daemon]:
    with running_daemon(short_dir) as daemon:
        yield daemon


@contextmanager
def without_new_tasks(pid: int) -> Iterator[None]:
    """Let a process start no further process and no thread (pids controller, both versions)."""
    first_version = Path("/sys/fs/cgroup/pids")
    top = first_version if first_version.is_dir() else Path("/sys/fs/cgroup")
    group = top / f"arcsup-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made: {error}")
    try:
        if not (group / "pids.max").exists():
            pytest.skip("there is no pids controller")
        (group / "pids.max").write_text("1\n")
        (group / "cgroup.procs").write_text(str(pid))
        yield
        (group / "pids.max").write_text("max\n")
    finally:
        for task in (group / "cgroup.procs").read_text().split():
            (top / "cgroup.procs").write_text(task)
        group.rmdir()


def runs_by_the_same_daemon(daemon: Daemon, name: str, before: int) -> None:
    daemon.wait_for_another_qemu(name, before)
    assert daemon.process is not None
    assert daemon.process.poll() is None
    assert "fault in arcsup" not in daemon.read_log()
    assert "Traceback" not in daemon.read_log()


def test_who_has_no_descriptor_left_takes_no_vm_for_ended_and_restarts_one_that_is(
    daemon: Daemon,
) -> None:
    for name in ("one", "two"):
        daemon.drop(name, VM)
    one, two = (daemon.wait_for(name, "running")["pid"] for name in ("one", "two"))

    with limited(daemon, resource.RLIMIT_NOFILE, 0):
        os.kill(one, signal.SIGKILL)
        daemon.until(lambda: "Too many open files" in daemon.read_log(), "it notices")
        daemon.until(lambda: "one: finding out" in daemon.read_log(), "it notices the end")

    runs_by_the_same_daemon(daemon, "one", one)
    assert daemon.pid_of("two") == two
    assert len(daemon.qemus("two")) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make control groups")
def test_who_may_start_neither_process_nor_thread_waits_with_the_reason_and_goes_on(
    daemon: Daemon,
) -> None:
    daemon.drop("one", VM)
    pid = daemon.wait_for("one", "running")["pid"]

    with without_new_tasks(pid_of(daemon)):
        os.kill(pid, signal.SIGKILL)
        daemon.until(lambda: "Resource temporarily unavailable" in daemon.read_log(), "it notices")

    runs_by_the_same_daemon(daemon, "one", pid)
