"""QEMUs that no record tells of: no second one is started beside them; adopted or ended."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.qemu.daemon import TINY, Daemon, running_daemon

QUICK = TINY + "stop: {timeout: 100ms}\n"
DISK = QUICK + "disks: [{path: one.qcow2, size: 1MiB}]\n"
NOBODY_ELSE = 54321
"""A user that owns nothing else."""


@pytest.fixture
def daemon(short_dir: Path) -> Iterator[Daemon]:
    with running_daemon(short_dir) as daemon:
        yield daemon


def lock_of(daemon: Daemon, name: str) -> int:
    return (daemon.state / "vms" / f"{name}.lock").stat().st_ino


def expect_waiting(daemon: Daemon, name: str, pid: int, *, has: str = "VM's lock") -> None:
    daemon.wait_for(name, "waiting")
    # Just asked to start, it is "about to start" until that was found to be in its way.
    told = f"QEMU {pid} has the {has}"
    daemon.until(lambda: told in daemon.status(name)["reason"], f"{name} waits: {told}")
    assert daemon.status(name)["pid"] == pid
    assert daemon.qemus() == [pid]


def expect_end(daemon: Daemon, verb: str) -> None:
    done = daemon.arcsup(verb, "one")
    assert done.returncode == 0, done.stderr
    assert daemon.qemus() == []
    daemon.call("start", "one")
    daemon.wait_for("one", "running")


def lose_record(daemon: Daemon, text: str = QUICK) -> int:
    """Have a daemon begin that has lost the record of VM one; return the pid of its QEMU."""
    daemon.drop("one", text)
    pid = daemon.wait_for("one", "running")["pid"]
    daemon.kill()
    (daemon.state / "vms" / "one.json").unlink()
    return int(pid)


@pytest.mark.parametrize("wiped", [False, True])
def test_a_lost_record_starts_no_second_qemu_however_often_it_is_tried(
    daemon: Daemon, wiped: bool
) -> None:
    pid = lose_record(daemon)
    lock = lock_of(daemon, "one")
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


def test_a_qemu_is_found_whose_lock_files_were_all_removed(daemon: Daemon) -> None:
    pid = lose_record(daemon)
    shutil.rmtree(daemon.run / "one")
    (daemon.state / "vms" / "one.lock").unlink()

    daemon.start()

    expect_waiting(daemon, "one", pid)
    daemon.call("start", "one")
    expect_waiting(daemon, "one", pid)
    expect_end(daemon, "kill")


def test_a_qemu_that_root_has_started_by_hand_keeps_a_second_one_from_being_started(
    daemon: Daemon,
) -> None:
    daemon.drop("one", f"{QUICK}autostart: false\n")
    daemon.wait_for("one", "stopped")
    argv = json.loads(daemon.arcsup("qemu", "one", "-o", "json").stdout)
    for folder in (daemon.run / "one", daemon.run / ".qemu" / "one", daemon.log / "one"):
        folder.mkdir(parents=True, exist_ok=True)
    by_hand = subprocess.Popen(argv, stderr=subprocess.DEVNULL)
    try:
        daemon.until(lambda: (daemon.run / "one/qmp.sock").exists(), "it has its monitor")
        daemon.call("start", "one")

        expect_waiting(daemon, "one", by_hand.pid, has="VM's uuid and folders")
        refused = daemon.arcsup("adopt", "one")
        assert refused.returncode == 6
        assert "nothing tells which devices and files" in refused.stderr
    finally:
        by_hand.kill()
        by_hand.wait()
    daemon.wait_for("one", "running")


def restore_an_older_record(daemon: Daemon) -> int:
    """Kill the daemon over a VM's second QEMU, with the record of its first; return its pid."""
    daemon.drop("one", QUICK)
    first = daemon.wait_for("one", "running")["pid"]
    record = daemon.state / "vms" / "one.json"
    older = record.read_text()
    daemon.arcsup("restart", "one")
    second: int = daemon.wait_for_another_qemu("one", first)["pid"]
    daemon.kill()
    record.write_text(older)
    return second


def test_an_older_record_starts_no_second_qemu(daemon: Daemon) -> None:
    second = restore_an_older_record(daemon)
    lock = lock_of(daemon, "one")

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


def test_a_stop_says_that_the_guest_was_not_asked(daemon: Daemon) -> None:
    lose_record(daemon)
    daemon.start()

    stopped = daemon.arcsup("stop", "one")

    assert (stopped.returncode, stopped.stdout) == (0, "one: stopped\n")
    assert "no record told of its QEMU" in stopped.stderr
    last = daemon.status("one")["lastExit"]
    assert (last["class"], last["forced"]) == ("stopped", True)


def test_why_and_doctor_tell_who_it_is_and_what_to_do(daemon: Daemon) -> None:
    pid = lose_record(daemon)
    daemon.start()
    expect_waiting(daemon, "one", pid)

    answer = json.loads(daemon.arcsup("why", "one", "-o", "json").stdout)

    link = answer["chain"][1]
    assert link["what"] == f"process {pid} (qemu-system-x86) is in the way"
    assert link["since"] is not None
    assert "arcsup adopt one" in link["nextAction"]
    assert "arcsup stop one" in link["nextAction"]
    found = daemon.client.get("/v1/daemon")["findings"]
    assert any(f"one: QEMU {pid} has the VM's lock" in finding for finding in found)


def test_an_adopted_qemu_is_supervised_as_if_nothing_had_been_lost(daemon: Daemon) -> None:
    pid = lose_record(daemon, DISK)
    before = (daemon.run / "one/record.json").read_text()
    daemon.start()
    expect_waiting(daemon, "one", pid)

    done = daemon.arcsup("adopt", "one")

    assert (done.returncode, done.stdout) == (0, "one: running\n"), done.stderr
    assert daemon.status("one")["pid"] == pid
    record = daemon.records()["one"]
    assert record["launch"] == json.loads(before)["launch"]
    assert record["loans"] == json.loads(before)["loans"]
    daemon.kill()
    daemon.start()
    assert daemon.wait_for("one", "running")["pid"] == pid
    os.kill(pid, signal.SIGKILL)
    daemon.wait_for_another_qemu("one", pid)
    assert daemon.arcsup("stop", "one").returncode == 0
    assert daemon.qemus() == []
    assert (daemon.state / "images/one.qcow2").stat().st_uid == os.geteuid()


def test_an_older_record_takes_on_the_qemu_that_is_adopted(daemon: Daemon) -> None:
    second = restore_an_older_record(daemon)
    daemon.start()
    expect_waiting(daemon, "one", second)

    daemon.call("adopt", "one", wait="30")

    assert daemon.wait_for("one", "running")["pid"] == second
    assert daemon.qemus() == [second]


def test_nothing_is_adopted_that_nobody_can_ask_or_whose_devices_nothing_tells(
    daemon: Daemon,
) -> None:
    pid = lose_record(daemon)
    copy = daemon.run / "one/record.json"
    kept = copy.read_text()
    copy.unlink()
    daemon.start()
    expect_waiting(daemon, "one", pid)

    def refusal() -> str:
        done = daemon.arcsup("adopt", "one")
        assert done.returncode == 6
        return done.stderr

    assert "has no copy of its record" in refusal()
    other: dict[str, Any] = json.loads(kept)
    for process in other["launch"]["processes"]:
        process["identity"]["pid"] += 1
    copy.write_text(json.dumps(other))
    assert "is of another one" in refusal()
    copy.write_text(kept)
    with stopped(pid):
        assert "does not answer on its monitor" in refusal()
    (daemon.run / "one/qmp.sock").unlink()
    assert "cannot be asked" in refusal()
    assert daemon.qemus() == [pid]
    expect_end(daemon, "kill")
    assert "no QEMU of one runs that no record tells of" in refusal()


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_qemu_without_a_file_is_listed_and_can_be_ended(daemon: Daemon) -> None:
    pid = lose_record(daemon)
    (daemon.vms / "one.yaml").unlink()
    daemon.start()

    expect_waiting(daemon, "one", pid)
    refused = daemon.arcsup("start", "one")
    assert refused.returncode == 6
    assert "one has no VM file" in refused.stderr
    assert daemon.arcsup("kill", "one").returncode == 0
    daemon.wait_for("one", "gone")
    assert daemon.qemus() == []
    assert daemon.records() == {}


def test_a_file_that_comes_back_makes_a_vm_of_it_again(daemon: Daemon) -> None:
    pid = lose_record(daemon)
    (daemon.vms / "one.yaml").unlink()
    daemon.start()
    expect_waiting(daemon, "one", pid)

    daemon.drop("one", QUICK)
    daemon.wait_for_event("one", "file-changed")

    assert daemon.arcsup("kill", "one").returncode == 0
    assert daemon.state_of("one") == "stopped"
    daemon.call("start", "one")
    daemon.wait_for("one", "running")


def test_an_adopted_qemu_without_a_file_runs_until_it_is_stopped(daemon: Daemon) -> None:
    pid = lose_record(daemon)
    (daemon.vms / "one.yaml").unlink()
    daemon.start()
    expect_waiting(daemon, "one", pid)

    assert daemon.arcsup("adopt", "one").returncode == 0

    daemon.kill()
    daemon.start()
    assert daemon.wait_for("one", "running")["pid"] == pid
    assert daemon.arcsup("stop", "one").returncode == 0
    daemon.wait_for("one", "gone")


def test_another_program_that_was_handed_the_lock_is_named_and_left_alone(daemon: Daemon) -> None:
    daemon.drop("one", f"{QUICK}autostart: false\n")
    daemon.wait_for("one", "stopped")
    lock = daemon.state / "vms" / "one.lock"
    with lock.open("w") as held:
        lock.chmod(0o600)
        fcntl.flock(held, fcntl.LOCK_EX)
        holder = subprocess.Popen(["sleep", "1000"], pass_fds=[held.fileno()])
    try:
        daemon.call("start", "one")

        daemon.until(lambda: "is no QEMU of it" in daemon.status("one")["reason"], "it is told")
        for verb in ("kill", "stop", "adopt"):
            refused = daemon.arcsup(verb, "one")
            assert refused.returncode == 6
            assert "is no QEMU of it" in refused.stderr
        assert holder.poll() is None
    finally:
        holder.kill()
        holder.wait()
    daemon.wait_for("one", "running")


def start_by_hand(daemon: Daemon) -> int:
    daemon.drop("one", f"{DISK}autostart: false\n")
    daemon.wait_for("one", "stopped")
    daemon.call("start", "one")
    return int(daemon.wait_for("one", "running")["pid"])
