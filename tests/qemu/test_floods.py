"""A QEMU that never stops talking takes a bounded part of the daemon, and nothing of the others."""

import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from attrs import frozen

from arcsup.vm.logfiles import LARGEST_LOG
from tests.qemu import fake_qemu
from tests.qemu.daemon import TINY, Daemon, running_daemon

ROOM = 150
"""MiB by which the daemon may grow; what the longest message makes of it for a moment is in it."""


@frozen
class Flooded:
    """A daemon with a VM as it should be, and one whose QEMU floods as soon as it runs."""

    daemon: Daemon
    good_pid: int
    resident: int

    def grow(self) -> int:
        """Return by how many MiB the daemon has grown since before."""
        return resident_mib(self.daemon) - self.resident

    def check_the_others(self) -> None:
        """Everything is answered, and the other VM does as it is told."""
        daemon = self.daemon
        assert {it["name"] for it in daemon.client.get("/v1/vms")} == {"good", "bad"}
        assert daemon.status("good")["pid"] == self.good_pid
        daemon.call("pause", "good")
        daemon.wait_for("good", "paused")
        daemon.call("resume", "good")
        daemon.wait_for("good", "running")
        daemon.drop("new", TINY + "stop: {timeout: 100ms}\n")
        daemon.wait_for("new", "running")
        (daemon.vms / "new.yaml").unlink()
        daemon.wait_for("new", "gone")
        assert self.grow() < ROOM


def resident_mib(daemon: Daemon) -> int:
    assert daemon.process is not None
    # The highest that it ever was.
    status = Path(f"/proc/{daemon.process.pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) // 1024


@pytest.fixture
def flooded(short_dir: Path, request: pytest.FixtureRequest) -> Iterator[Flooded]:
    program = short_dir / "qemu"
    shutil.copy(fake_qemu.__file__, program)
    program.chmod(0o755)
    (short_dir / "flood").write_text(request.param)
    with running_daemon(short_dir) as daemon:
        daemon.drop("good")
        pid = daemon.wait_for("good", "running")["pid"]
        # What a first start takes is no flood's.
        before = resident_mib(daemon)
        daemon.drop("bad", f"{TINY}qemu: {{binary: {program}}}\n")
        daemon.wait_for("bad", "running")
        yield Flooded(daemon, pid, before)
        daemon.call("kill", "bad", wait="60")
        assert daemon.state_of("bad") == "stopped"
        assert daemon.status("bad")["restarts"] == 0
        assert daemon.status("good")["pid"] == pid
        assert "Traceback" not in daemon.read_log()
        assert len(daemon.read_log()) < 100_000


@pytest.mark.parametrize("flooded", ["resets", "disk errors"], indirect=True)
def test_thousands_of_events_a_second_are_told_seldom_and_push_out_no_others(
    flooded: Flooded,
) -> None:
    daemon = flooded.daemon

    def is_counted() -> bool:
        return any("not told" in event["message"] for event in daemon.status("bad")["events"])

    daemon.until(is_counted, "what was not told is counted")
    flooded.check_the_others()

    kinds = [event["kind"] for event in daemon.status("good")["events"]]
    assert kinds[0] == "starting"
    assert daemon.state_of("bad") in ("running", "paused")


@pytest.mark.parametrize(
    "flooded",
    [
        "long events",
        "halts",
        "replies",
        "nothing",
        "huge lines",
        "a line without an end",
        "garbage",
        "deep nesting",
        "nonsense",
    ],
    indirect=True,
)
def test_what_a_monitor_says_beside_answers_is_bounded_and_the_vm_still_obeys(
    flooded: Flooded, request: pytest.FixtureRequest
) -> None:
    daemon = flooded.daemon
    flood = request.node.callspec.params["flooded"]
    # The others leave room for answers, where the machine is quick.
    if flood in ("a line without an end", "garbage", "deep nesting", "nonsense"):
        silent = daemon.wait_for_event("bad", "monitor-silent")
        assert len(silent["message"]) < 300

    for _ in range(3):
        flooded.check_the_others()


@pytest.mark.parametrize("flooded", ["odd jobs"], indirect=True)
def test_a_qemu_whose_jobs_make_no_sense_still_obeys_the_next_daemon(flooded: Flooded) -> None:
    daemon = flooded.daemon
    daemon.kill()
    daemon.start()

    daemon.wait_for_event("bad", "monitor-silent")
    daemon.call("stop", "bad", wait="60")

    assert daemon.state_of("bad") == "stopped"


@pytest.mark.parametrize("flooded", ["standard error"], indirect=True)
def test_what_a_qemu_writes_without_end_is_thrown_away_and_told(flooded: Flooded) -> None:
    daemon = flooded.daemon
    log = daemon.log / "bad" / "qemu.log"

    event = daemon.wait_for_event("bad", "log-flood")
    assert str(log) in event["message"]
    assert log.with_name("qemu.log.1").stat().st_size <= LARGEST_LOG
    for _ in range(3):
        flooded.check_the_others()
        # What is written until the next look comes on top.
        daemon.until(lambda: log.stat().st_size <= 2 * LARGEST_LOG, "it is short again")


def test_hundreds_of_clients_that_never_read_hold_up_nobody(short_dir: Path) -> None:
    with running_daemon(short_dir) as daemon, ExitStack() as opened:
        daemon.drop("good")
        pid = daemon.wait_for("good", "running")["pid"]
        before = resident_mib(daemon)
        requests = (
            b"GET /v1/events HTTP/1.1\r\nHost: a\r\n\r\n",
            b"GET /v1/openapi.json HTTP/1.1\r\nHost: a\r\n\r\n" * 50,
            b"GET /v1/inventory HTTP/1.1\r\nHost: a\r\n\r\n" * 50,
            b"GET /v1/vms HTT",
        )
        for number in range(400):
            client = opened.enter_context(socket.socket(socket.AF_UNIX))
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(str(daemon.run / "arcsup.sock"))
            client.sendall(requests[number % len(requests)])

        daemon.call("pause", "good")
        daemon.wait_for("good", "paused")
        daemon.call("resume", "good")
        assert daemon.wait_for("good", "running")["pid"] == pid
        daemon.until(lambda: "dropped a client" in daemon.read_log(), "they are dropped")
        assert resident_mib(daemon) - before < ROOM
        daemon.terminate()
