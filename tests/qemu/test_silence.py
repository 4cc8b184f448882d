"""A QEMU that does not answer, or has lost a helper, is no healthy one, and is not shown as one."""

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.qemu.daemon import TINY, Daemon, running_daemon


@pytest.fixture
def daemon(short_dir: Path) -> Iterator[Daemon]:
    with running_daemon(short_dir) as daemon:
        yield daemon


@pytest.fixture
def hogged(daemon: Daemon) -> Iterator[Daemon]:
    """A VM on whose first monitor another program sits since the daemon was away."""
    daemon.drop("one", TINY + "stop: {timeout: 1s}\n")
    daemon.wait_for("one", "running")
    daemon.kill()
    with closing(socket.socket(socket.AF_UNIX)) as hog:
        hog.connect(str(daemon.run / "one" / "qmp.sock"))
        assert b"QMP" in hog.recv(4096)
        daemon.start()
        daemon.wait_for_event("one", "monitor-silent")
        yield daemon


def test_a_silent_monitor_is_the_reason_in_list_and_not_as_desired(hogged: Daemon) -> None:
    assert hogged.status("one")["reason"].startswith("QEMU's monitor is silent")
    why = hogged.arcsup("why", "one")
    assert why.returncode == 3
    assert "MonitorAnswers" in why.stdout
    assert "as desired" not in why.stdout.replace("not as desired", "")


def test_a_stop_past_a_silent_monitor_asks_the_guest_and_says_that_it_pulled_the_plug(
    hogged: Daemon,
) -> None:
    stopped = hogged.arcsup("stop", "one")

    assert stopped.stdout == "one: stopped\n"
    assert "one: the guest did not power down: its plug was pulled" in stopped.stderr
    events = hogged.status("one")["events"]
    rungs = [it["data"]["rung"] for it in events if it["kind"] == "stopping"]
    assert rungs == ["power button", "QMP quit"]
    assert [it["data"]["asked"] for it in events if it["kind"] == "plug-pulled"] == [True]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")
def test_a_full_log_folder_costs_no_restarts_and_heals_when_there_is_room(daemon: Daemon) -> None:
    folder = daemon.log / "one"
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k,mode=755", "arcsup", str(folder)]
    subprocess.run(mount, check=True)
    filler = folder / "filler"
    try:
        filler.write_bytes(b"x" * 65536)
        daemon.drop("one")

        waiting = daemon.wait_for("one", "waiting")
        daemon.wait_for_event("one", "trouble")
        daemon.until(lambda: "No space left" in daemon.status("one")["reason"], "it says why")
        filler.unlink()

        running = daemon.wait_for("one", "running")
        assert (waiting["restarts"], running["restarts"]) == (0, 0)
        assert running["lastExit"] is None
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.skipif(shutil.which("swtpm") is None, reason="needs swtpm")
@pytest.mark.parametrize("adopted", [False, True], ids=["started", "adopted"])
def test_a_helper_that_died_is_told_and_the_reason_in_list(daemon: Daemon, adopted: bool) -> None:
    daemon.drop("one", TINY + "tpm: true\nstop: {timeout: 100ms}\n")
    daemon.wait_for("one", "running")
    daemon.until(lambda: helpers_run(daemon) is True, "its helpers are watched")
    [tpm] = [
        it["identity"]["pid"]
        for it in daemon.records()["one"]["launch"]["processes"]
        if it["role"] == "tpm"
    ]
    if adopted:
        daemon.kill()
    os.kill(tpm, signal.SIGKILL)
    if adopted:
        daemon.start()

    told = daemon.wait_for_event("one", "helper-ended")

    assert told["data"] == {"role": "tpm", "pid": tpm}
    assert helpers_run(daemon) is False
    assert "the TPM (swtpm) has ended" in daemon.status("one")["reason"]
    assert daemon.arcsup("why", "one").returncode == 3


@pytest.mark.skipif(shutil.which("swtpm") is None, reason="needs swtpm")
def test_helpers_that_end_with_their_qemu_are_not_told_of(daemon: Daemon) -> None:
    daemon.drop("one", TINY + "tpm: true\nstop: {timeout: 100ms}\n")
    daemon.wait_for("one", "running")
    daemon.until(lambda: helpers_run(daemon) is True, "its helpers are watched")

    daemon.call("stop", "one", wait="30")

    assert "helper-ended" not in [it["kind"] for it in daemon.status("one")["events"]]


def helpers_run(daemon: Daemon) -> object:
    conditions = {it["type"]: it["status"] for it in daemon.status("one")["conditions"]}
    return conditions.get("HelpersRun")
