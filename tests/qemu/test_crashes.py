"""The daemon is killed at every journalled step, and the next one must keep each promise:
never a second QEMU, nothing left behind, and what was half done either finished or undone.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from attrs import frozen

from tests.leftovers import find_processes_naming, find_sockets
from tests.qemu.daemon import TINY, Daemon, end
from tests.qemu.guest_disks import holds, write_as_guest

UUID_OF_ONE = uuid4()
"""Not derived: shared memory is named by it, and other runs on this machine have theirs."""

VM = f"""{TINY}uuid: {UUID_OF_ONE}
tpm: true
lookingGlass: true
disks:
  - {{path: one.qcow2, size: 10MiB}}
  - {{path: two.qcow2, size: 10MiB, ephemeral: true}}
stop: {{timeout: 100ms}}
"""
"""A VM with everything that a start makes: disks, a program beside QEMU, shared memory."""

Begin = Callable[[Daemon], None]


def drop_the_file(daemon: Daemon) -> None:
    daemon.drop("one", VM)


def remove_the_file(daemon: Daemon) -> None:
    (daemon.vms / "one.yaml").unlink()


def ask_to_stop(daemon: Daemon) -> None:
    # The daemon may die before it answers: the exit code says nothing here.
    daemon.arcsup("stop", "one", "--no-wait")


def ask_to_save(daemon: Daemon) -> None:
    daemon.arcsup("stop", "one", "--save", "--no-wait")


def ask_to_restart(daemon: Daemon) -> None:
    daemon.arcsup("restart", "one", "--no-wait")


def kill_qemu(daemon: Daemon) -> None:
    for pid in daemon.qemus("one"):
        os.kill(pid, signal.SIGKILL)


@frozen
class Scenario:
    """What happens to a VM, and the state that it must come to in the end."""

    begin: Begin
    was_up: bool
    outcome: str


SCENARIOS = {
    "start": Scenario(drop_the_file, was_up=False, outcome="running"),
    "stop": Scenario(ask_to_stop, was_up=True, outcome="stopped"),
    "save": Scenario(ask_to_save, was_up=True, outcome="stopped"),
    "restart": Scenario(ask_to_restart, was_up=True, outcome="running"),
    "removal": Scenario(remove_the_file, was_up=True, outcome="gone"),
    "crash": Scenario(kill_qemu, was_up=True, outcome="running"),
}


@pytest.fixture(autouse=True)
def no_shared_memory_is_left() -> Iterator[None]:
    yield
    # A QEMU that a test killed could not be tidied up after.
    Path(f"/dev/shm/kvmfr-{UUID_OF_ONE}").unlink(missing_ok=True)


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_next_daemon_keeps_every_promise_wherever_the_last_one_died(
    name: str, short_dir: Path
) -> None:
    points = play(short_dir / "0", SCENARIOS[name], point=0)
    assert points

    for number, point in enumerate(points, start=1):
        top = short_dir / str(number)
        try:
            play(top, SCENARIOS[name], point=number)
            check_promises(top, SCENARIOS[name])
        except AssertionError as error:
            raise AssertionError(f"killed at point {point} of {points}: {error}") from error


def play(top: Path, scenario: Scenario, point: int) -> list[str]:
    """Play a scenario with a daemon that dies at a point (0: none); return those it passed."""
    top.mkdir()
    go, log = top / "go", top / "points"
    log.touch()
    daemon = Daemon(top, program=(sys.executable, "-m", "tests.qemu.crashing"))
    daemon.environment = {
        "ARCSUP_CRASH_AT": str(point),
        "ARCSUP_CRASH_FROM": str(go),
        "ARCSUP_CRASH_LOG": str(log),
    }
    daemon.start()
    if scenario.was_up:
        drop_the_file(daemon)
        daemon.wait_for("one", "running")
        write_as_guest(daemon, "one", "disk1", 7)
    before = daemon.qemus("one")
    go.touch()
    scenario.begin(daemon)
    if point:
        process = daemon.process
        assert process is not None
        daemon.until(lambda: process.poll() is not None, "the daemon dies")
    else:
        # Another QEMU, or none: what was before the deed must not pass for its outcome.
        daemon.until(
            lambda: daemon.qemus("one") != before and settled(daemon, scenario.outcome),
            scenario.outcome,
        )
        end(daemon)
    return log.read_text().splitlines()


def check_promises(top: Path, scenario: Scenario) -> None:
    """Let the next daemon find what the last one left, and look at everything on the way."""
    daemon = Daemon(top)
    # A shell at a gate that nobody opened any more is about to end.
    daemon.until(lambda: gates_are_passed(daemon), "whatever was at a gate has gone on or ended")
    left = daemon.qemus("one")
    assert len(left) <= 1
    outcome = scenario.outcome
    if outcome == "stopped" and daemon.records()["one"]["intent"] != "stop":
        # A stop that was not recorded was not asked for: whoever asked saw no answer.
        outcome = "running"
    try:
        daemon.spawn()
        daemon.until(lambda: at_most_one_qemu(daemon) and settled(daemon, outcome), outcome)
        check_nothing_else(daemon, running=outcome == "running")
        if scenario.begin is ask_to_save and outcome == "stopped":
            assert holds(daemon.state / "images" / "two.qcow2", 7), "what it wrote was not saved"
        if left and scenario.begin is drop_the_file:
            assert daemon.qemus("one") == left, "the QEMU that had begun was not kept"
    finally:
        end(daemon)


def gates_are_passed(daemon: Daemon) -> bool:
    try:
        programs = [os.readlink(f"/proc/{pid}/exe") for pid in daemon.qemus("one")]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return all("qemu" in Path(program).name for program in programs)


def at_most_one_qemu(daemon: Daemon) -> bool:
    qemus = daemon.qemus("one")
    assert len(qemus) <= 1, f"two QEMUs for one VM: {qemus}"
    return True


def settled(daemon: Daemon, outcome: str) -> bool:
    if not daemon.answers() or daemon.state_of("one") != outcome:
        return False
    return outcome != "running" or daemon.qemus("one") == [daemon.status("one")["pid"]]


def check_nothing_else(daemon: Daemon, *, running: bool) -> None:
    """There must be all that belongs to a running VM, or nothing."""
    names = ["agent", "console", "monitor", "qmp", "tpm"] if running else []
    sockets = {path.name for path in find_sockets(daemon.run)} - {"arcsup.sock"}
    assert sockets == {f"{name}.sock" for name in names}
    assert len(find_processes_naming(daemon.state / "tpm")) == running
    assert len(daemon.qemus()) == running
    assert Path(f"/dev/shm/kvmfr-{UUID_OF_ONE}").exists() == running
    images = daemon.state / "images"
    assert (images / "one.qcow2").stat().st_uid == os.geteuid(), "it is handed over, not lent"
    assert {path.name for path in images.glob("[!.]*")} == {"one.qcow2", "two.qcow2"}
    overlays = [str(path.relative_to(images)) for path in images.glob(".ephemeral/*/*")]
    assert overlays == [".ephemeral/one/disk1.qcow2"] * running
    assert not [*images.glob(".*.part")]
