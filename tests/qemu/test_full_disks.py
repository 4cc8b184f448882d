"""The disk takes nothing any more, at each write of the journal: nothing is doubled or lost, one
line says so, and once there is room everything comes to what was asked for.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from attrs import frozen

from arcsup.control.client import vm_path
from arcsup.errors import Refused
from tests.leftovers import find_sockets
from tests.qemu.daemon import TINY, Daemon, end

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")

VM = f"{TINY}disks: [{{path: one.qcow2, size: 1MiB}}]\nstop: {{timeout: 100ms}}\n"

WORDS = {
    "full": "No space left on device",
    "full for a moment": "No space left on device",
    "read-only": "Read-only file system",
}

DEEDS = ("cannot be written: ", "could not be put back: ")
"""What a line says that the disk did not take: a record, or an image's owner where a VM ended."""


def drop_the_file(daemon: Daemon) -> bool:
    daemon.drop("one", VM)
    return False


def remove_the_file(daemon: Daemon) -> bool:
    (daemon.vms / "one.yaml").unlink()
    return False


def ask_to_stop(daemon: Daemon) -> bool:
    """An end is never refused."""
    assert not is_refused(daemon, "stop", "one", "--no-wait")
    return False


def ask_to_restart(daemon: Daemon) -> bool:
    return is_refused(daemon, "restart", "one", "--no-wait")


def name_other_media(daemon: Daemon) -> bool:
    daemon.drop("one", VM + f"cdroms: [{daemon.top}/b.iso]\n")
    return False


def end_qemu(daemon: Daemon) -> bool:
    """End its QEMU in a way after which a VM stays stopped, as after a guest's power-off."""
    with suppress(Refused):  # The session may end before the answer is read.
        daemon.client.post(vm_path("one", "qmp"), {"execute": "quit", "arguments": {}})
    return False


def is_refused(daemon: Daemon, *arguments: str) -> bool:
    """What cannot be recorded is refused to who asks for it, in one line and what to do."""
    done = daemon.arcsup(*arguments)
    lines = done.stderr.splitlines()
    if done.returncode:
        assert done.returncode == 1
        assert len(lines) <= 2
        assert "cannot be written" in lines[0]
        assert any(words in lines[0] for words in WORDS.values())
    return done.returncode != 0


@frozen
class Scenario:
    """What happens to a VM, and the state that it comes to in the end if it is not refused."""

    begin: Callable[[Daemon], bool]
    """Returns whether it was refused to who asked for it."""
    was_up: bool
    outcome: str


SCENARIOS = {
    "start": Scenario(drop_the_file, was_up=False, outcome="running"),
    "stop": Scenario(ask_to_stop, was_up=True, outcome="stopped"),
    "restart": Scenario(ask_to_restart, was_up=True, outcome="running"),
    "end": Scenario(end_qemu, was_up=True, outcome="stopped"),
    "removal": Scenario(remove_the_file, was_up=True, outcome="gone"),
    "media": Scenario(name_other_media, was_up=True, outcome="running"),
}


@pytest.mark.parametrize("how", WORDS)
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_disk_that_takes_nothing_doubles_nothing_and_loses_nothing(
    name: str, how: str, short_dir: Path
) -> None:
    writes = play(short_dir / "0", SCENARIOS[name], how, at=0)
    assert writes

    for number, write in enumerate(writes, start=1):
        if write.endswith("_unlink") and how != "read-only":
            continue  # That takes no room.
        try:
            play(short_dir / str(number), SCENARIOS[name], how, at=number)
        except AssertionError as error:
            raise AssertionError(f"{how} at {write} of {writes}: {error}") from error


@contextmanager
def small_state(state: Path) -> Iterator[None]:
    """Mount a file system of 8 MiB for the block."""
    state.mkdir(mode=0o711)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m,mode=711", "arcsup", state], check=True)
    try:
        yield
    finally:
        make_room(state)
        subprocess.run(["umount", "--lazy", state], check=True)


def play(top: Path, scenario: Scenario, how: str, at: int) -> list[str]:
    """Play a scenario on a disk that takes nothing from a write on (0: none); return the writes."""
    top.mkdir()
    go, log = top / "go", top / "writes"
    log.touch()
    daemon = Daemon(top, program=(sys.executable, "-m", "tests.qemu.failing"))
    daemon.environment = {
        "FAILING_AT": str(at),
        "FAILING_FROM": str(go),
        "FAILING_HOW": how,
        "FAILING_LOG": str(log),
        "FAILING_STATE": str(daemon.state),
    }
    with small_state(daemon.state):
        try:
            daemon.start()
            if scenario.was_up:
                for image in ("a.iso", "b.iso"):
                    (top / image).write_bytes(bytes(4096))
                daemon.drop("one", VM + f"cdroms: [{top}/a.iso]\n")
                daemon.wait_for("one", "running")
            before = daemon.qemus("one")
            go.touch()
            refused = scenario.begin(daemon)
            if at:
                daemon.until(lambda: refused or WORDS[how] in daemon.read_log(), "it is told")
                if how != "full for a moment":
                    check_while_nothing_can_be_written(daemon, how)
                    make_room(daemon.state)
            outcome = "running" if refused else scenario.outcome
            daemon.until(
                lambda: (at or has_begun(daemon, before)) and settled(daemon, outcome),
                outcome,
            )
            check_nothing_else(daemon)
            assert "Traceback" not in daemon.read_log()
        finally:
            end(daemon)
    return log.read_text().splitlines()


def check_while_nothing_can_be_written(daemon: Daemon, how: str) -> None:
    """Everything is answered, there is one QEMU at most, and each line of the log is clear."""
    for _ in range(20):
        assert daemon.answers()
        assert len(daemon.qemus("one")) <= 1
        daemon.state_of("one")
    lines = [line for line in daemon.read_log().splitlines() if WORDS[how] in line]
    unclear = [line for line in lines if not any(deed in line for deed in DEEDS)]
    assert not unclear, "\n".join(unclear)
    assert len(lines) < 20


def make_room(state: Path) -> None:
    """Take back what ``failing`` has done to a file system."""
    if os.statvfs(state).f_flag & os.ST_RDONLY:
        subprocess.run(["umount", "--lazy", state], check=True)
    (state / "filler").unlink(missing_ok=True)


def has_begun(daemon: Daemon, before: list[int]) -> bool:
    return daemon.qemus("one") != before or "EVENT=media-changed" in daemon.read_log()


def settled(daemon: Daemon, outcome: str) -> bool:
    state, qemus = daemon.state_of("one"), daemon.qemus("one")
    assert len(qemus) <= 1, f"two QEMUs for one VM: {qemus}"
    if state != outcome:
        return False
    if state == "running":
        return qemus == [daemon.status("one")["pid"]]
    return not qemus


def check_nothing_else(daemon: Daemon) -> None:
    """There must be all that belongs to a running VM, or nothing."""
    running = daemon.state_of("one") == "running"
    names = ["agent", "console", "monitor", "qmp"] if running else []
    sockets = {path.name for path in find_sockets(daemon.run)} - {"arcsup.sock"}
    assert sockets == {f"{name}.sock" for name in names}
    assert len(daemon.qemus()) == running
    image = daemon.state / "images" / "one.qcow2"
    assert not image.exists() or image.stat().st_uid == os.geteuid(), "it is handed over, not lent"
    assert not [*(daemon.state / "vms").glob(".*")]
