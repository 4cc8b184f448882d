"""QEMUs that no record tells of: no second one is started beside them, and they can be ended."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.qemu.daemon import TINY, Daemon, running_daemon

QUICK = TINY + "stop: {timeout: 100ms}\n"


@pytest.fixture
def daemon(short_dir: Path) -> Iterator[Daemon]:
    with running_daemon(short_dir) as daemon:
        yield daemon


def lock_of(daemon: Daemon, name: str) -> int:
    return (daemon.state / "vms" / f"{name}.lock").stat().st_ino


def expect_waiting(daemon: Daemon, name: str, pid: int) -> None:
    status = daemon.wait_for(name, "waiting")
    assert f"QEMU {pid} has the VM's lock" in status["reason"]
    assert daemon.qemus() == [pid]


def expect_end(daemon: Daemon, verb: str) -> None:
    done = daemon.arcsup(verb, "one")
    assert done.returncode == 0, done.stderr
    assert daemon.qemus() == []
    daemon.call("start", "one")
    daemon.wait_for("one", "running")


@pytest.mark.parametrize("wiped", [False, True])
def test_a_lost_record_starts_no_second_qemu_however_often_it_is_tried(
    daemon: Daemon, wiped: bool
) -> None:
    daemon.drop("one", QUICK)
    pid, lock = daemon.wait_for("one", "running")["pid"], lock_of(daemon, "one")
    daemon.kill()
    (daemon.state / "vms" / "one.json").unlink()
    if wiped:
        shutil.rmtree(daemon.run / "one")

    for _ in range(2):
        daemon.start()
        expect_waiting(daemon, "one", pid)
        daemon.call("start", "one")
        expect_waiting(daemon, "one", pid)
        assert lock_of(daemon, "one") == lock
        daemon.kill()

    daemon.start()
    expect_end(daemon, "kill")


def test_an_older_record_starts_no_second_qemu(daemon: Daemon) -> None:
    daemon.drop("one", QUICK)
    first = daemon.wait_for("one", "running")["pid"]
    record = daemon.state / "vms" / "one.json"
    older = record.read_text()
    daemon.arcsup("restart", "one")
    second = daemon.wait_for_another_qemu("one", first)["pid"]
    lock = lock_of(daemon, "one")
    daemon.kill()
    record.write_text(older)

    daemon.start()

    expect_waiting(daemon, "one", second)
    assert lock_of(daemon, "one") == lock
    expect_end(daemon, "kill")


def test_the_record_of_a_stopped_vm_does_not_hide_its_qemu(daemon: Daemon) -> None:
    daemon.drop("one", QUICK)
    daemon.wait_for("one", "running")
    daemon.arcsup("stop", "one")
    record = daemon.state / "vms" / "one.json"
    older = record.read_text()
    daemon.call("start", "one")
    pid = daemon.wait_for("one", "running")["pid"]
    daemon.kill()
    record.write_text(older)

    daemon.start()

    expect_waiting(daemon, "one", pid)
    expect_end(daemon, "stop")
