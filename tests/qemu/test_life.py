"""A VM's whole life under a real daemon: files in, QEMU up, every way to end, and what follows."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from arcsup.errors import ArcsupError, Refused
from tests.guest import CMDLINE, guest_files, open_console
from tests.leftovers import find_sockets
from tests.qemu.daemon import TINY, Daemon, running_daemon


@pytest.fixture
def daemon(short_dir: Path) -> Iterator[Daemon]:
    with running_daemon(short_dir) as daemon:
        yield daemon


def linux(cmdline: str = "", more: str = "") -> str:
    kernel, initrd = guest_files()
    return (
        f"memory: 256\naccel: tcg\nnetworks: []\n{more}"
        f"boot: {{kernel: {kernel}, initrd: {initrd}, cmdline: '{CMDLINE} {cmdline}'}}\n"
    )


def wait_for_console(daemon: Daemon, name: str, text: str) -> None:
    daemon.wait_for(name, "running")
    log = daemon.log / name / "console.log"
    daemon.until(lambda: text in log.read_text(errors="replace"), f"the console says {text!r}")


def test_a_file_dropped_in_becomes_a_running_vm(daemon: Daemon) -> None:
    daemon.drop("one")

    status = daemon.wait_for("one", "running")
    assert daemon.qemus("one") == [status["pid"]]
    assert (daemon.run / "one").stat().st_mode & 0o777 == 0o700
    assert status["reason"] == ""
    assert status["lastExit"] is None


def test_a_removed_file_leaves_nothing_behind(daemon: Daemon) -> None:
    file = daemon.drop("one", TINY + "stop: {timeout: 1s}\n")
    daemon.wait_for("one", "running")

    file.unlink()

    daemon.wait_for("one", "gone")
    assert daemon.qemus() == []
    assert find_sockets(daemon.run) == [daemon.run / "arcsup.sock"]
    assert not (daemon.run / "one").exists()
    assert daemon.records() == {}


def test_a_killed_qemu_comes_back_as_another_process(daemon: Daemon) -> None:
    daemon.drop("one")
    first = daemon.wait_for("one", "running")["pid"]

    os.kill(first, signal.SIGKILL)

    daemon.until(lambda: daemon.qemus("one") not in ([], [first]), "there is another QEMU")
    status = daemon.wait_for("one", "running")
    assert status["restarts"] == 1
    assert status["lastExit"]["class"] == "crash"
    assert status["lastExit"]["signal"] == signal.SIGKILL
    assert status["lastExit"]["code"] is None


def test_a_crash_loop_ends_in_failed_and_clear_starts_afresh(daemon: Daemon) -> None:
    daemon.drop("one", TINY + "restart: {burst: 2, period: 5m, delay: 1ms}\n")
    for _ in range(3):
        daemon.wait_for("one", "running")
        os.kill(daemon.pid_of("one"), signal.SIGKILL)
        daemon.until(lambda: daemon.state_of("one") != "running", "the crash is seen")

    status = daemon.wait_for("one", "failed")
    assert "restarted 2 times within 300 s" in status["reason"]
    daemon.call("clear", "one")
    daemon.wait_for("one", "running")


def test_backoff_says_when_the_next_try_is(daemon: Daemon) -> None:
    daemon.drop("one", TINY + "restart: {delay: 1m, maxDelay: 1m}\n")
    daemon.wait_for("one", "running")
    os.kill(daemon.pid_of("one"), signal.SIGKILL)

    status = daemon.wait_for("one", "backoff")

    assert status["nextTry"] is not None
    assert "crash (signal 9)" in status["reason"]
    assert daemon.qemus() == []


def test_an_operators_stop_outlasts_touching_the_file_and_a_new_daemon(daemon: Daemon) -> None:
    file = daemon.drop("one")
    daemon.wait_for("one", "running")
    daemon.call("kill", "one", wait="30")
    assert daemon.state_of("one") == "stopped"

    file.write_text(TINY + "description: edited\n")
    daemon.until(
        lambda: daemon.client.get("/v1/vms/one/definition").get("description"), "the edit is seen"
    )
    daemon.terminate()
    daemon.start()

    assert daemon.state_of("one") == "stopped"
    assert daemon.status("one")["reason"] == "stopped by the operator"
    daemon.call("start", "one", wait="30")
    assert daemon.state_of("one") == "running"


def test_a_vm_without_autostart_waits_for_the_operator(daemon: Daemon) -> None:
    daemon.drop("one", TINY + "autostart: false\n")
    daemon.wait_for("one", "stopped")

    daemon.call("start", "one", wait="30")

    assert daemon.state_of("one") == "running"


def test_restart_takes_another_process_and_the_changed_file(daemon: Daemon) -> None:
    daemon.drop("one", TINY + "stop: {timeout: 100ms}\n")
    before = daemon.wait_for("one", "running")["pid"]
    daemon.drop("one", TINY.replace("64", "80") + "stop: {timeout: 100ms}\n")
    daemon.until(lambda: daemon.status("one")["pending"], "the change is pending")
    assert "memory" in daemon.status("one")["reason"]

    daemon.call("restart", "one", wait="30")

    status = daemon.status("one")
    assert status["pid"] != before
    assert "80M" in status["argv"]
    assert status["pending"] is False


def test_what_a_running_vm_can_take_on_is_not_pending(daemon: Daemon) -> None:
    daemon.drop("one")
    pid = daemon.wait_for("one", "running")["pid"]

    daemon.drop("one", TINY + "description: new\nrestart: {delay: 9s}\nautostart: false\n")

    daemon.until(
        lambda: daemon.client.get("/v1/vms/one/definition").get("description") == "new",
        "the edit is seen",
    )
    status = daemon.status("one")
    assert (status["state"], status["pid"], status["pending"]) == ("running", pid, False)
    os.kill(pid, signal.SIGKILL)
    # autostart is off now, and still a crash is answered by the policy of the file as it is.
    assert daemon.wait_for("one", "backoff", "stopped")["state"] in ("backoff", "stopped")


def test_other_media_go_into_the_drive_of_a_running_vm(daemon: Daemon) -> None:
    names = {"first.iso", "second.iso"}
    for name in names:
        (daemon.top / name).write_bytes(bytes(4096))
    daemon.drop("one", TINY + f"cdroms: [{daemon.top}/first.iso]\n")
    pid = daemon.wait_for("one", "running")["pid"]
    assert names_open_in(pid) & names == {"first.iso"}

    daemon.drop("one", TINY + f"cdroms: [{daemon.top}/second.iso]\n")

    daemon.wait_for_event("one", "media-changed")
    assert daemon.pid_of("one") == pid
    daemon.until(lambda: names_open_in(pid) & names == {"second.iso"}, "the other is closed")
    assert daemon.status("one")["pending"] is False


def names_open_in(pid: int) -> set[str]:
    """Return the names of the files that a process has open."""
    return {os.readlink(entry).rpartition("/")[2] for entry in Path(f"/proc/{pid}/fd").iterdir()}


def test_a_command_line_that_qemu_rejects_fails_with_its_own_words_until_the_file_changes(
    daemon: Daemon,
) -> None:
    daemon.drop("one", TINY + "qemu: {args: [-device, no-such-device]}\n")

    status = daemon.wait_for("one", "failed")

    assert "'no-such-device' is not a valid device model name" in status["reason"]
    assert status["lastExit"]["class"] == "start-failed"
    assert status["restarts"] == 0
    daemon.drop("one", TINY)
    daemon.wait_for("one", "running")


def test_pause_and_resume(daemon: Daemon) -> None:
    daemon.drop("one")
    daemon.wait_for("one", "running")

    daemon.call("pause", "one")
    assert daemon.state_of("one") == "paused"
    with pytest.raises(Refused):
        daemon.call("pause", "one")
    daemon.call("resume", "one")
    assert daemon.state_of("one") == "running"


def test_after_holds_a_vm_back_until_the_other_runs(daemon: Daemon) -> None:
    daemon.drop("late", TINY + "after: [early]\n")
    waiting = daemon.wait_for("late", "waiting")
    assert waiting["reason"] == "waiting for VM early, which has no file"

    daemon.drop("early")

    daemon.wait_for("late", "running")
    assert daemon.state_of("early") == "running"


def test_a_missing_disk_is_made_and_never_overwritten(daemon: Daemon) -> None:
    daemon.drop("one", TINY + "disks: [{path: one.qcow2, size: 10MiB}]\n")
    daemon.wait_for("one", "running")
    disk = daemon.state / "images" / "one.qcow2"
    inode = disk.stat().st_ino
    daemon.call("kill", "one", wait="30")

    daemon.call("start", "one", wait="30")

    assert disk.stat().st_ino == inode


def test_a_disk_that_cannot_be_made_says_what_to_do(daemon: Daemon) -> None:
    daemon.drop("one", TINY + "disks: [{path: missing.qcow2}]\n")

    reason = daemon.wait_for("one", "failed")["reason"]

    assert "missing.qcow2: does not exist" in reason
    assert "add size:" in reason


def test_a_frozen_qemu_is_ended_in_spite_of_itself_and_holds_up_nobody(daemon: Daemon) -> None:
    daemon.drop("frozen", TINY + "stop: {timeout: 5m}\n")
    pid = daemon.wait_for("frozen", "running")["pid"]
    os.kill(pid, signal.SIGSTOP)

    daemon.call("stop", "frozen")
    daemon.drop("other")
    daemon.wait_for("other", "running")

    status = daemon.wait_for("frozen", "stopped")
    assert status["lastExit"]["class"] == "stopped"
    assert daemon.qemus("frozen") == []
    rungs = [e["data"]["rung"] for e in status["events"] if e["kind"] == "stopping"]
    assert rungs[-1] in ("SIGTERM", "SIGKILL")


def test_kill_overtakes_a_stop_that_takes_too_long(daemon: Daemon) -> None:
    daemon.drop("one", TINY + "stop: {timeout: 5m}\n")
    daemon.wait_for("one", "running")
    daemon.call("stop", "one")
    daemon.wait_for("one", "stopping")

    daemon.call("kill", "one", wait="30")

    assert daemon.status("one")["lastExit"]["class"] == "killed"


def test_a_signal_from_outside_is_told_from_a_crash_and_answered_by_a_restart(
    daemon: Daemon,
) -> None:
    daemon.drop("one")
    os.kill(daemon.wait_for("one", "running")["pid"], signal.SIGTERM)

    daemon.until(lambda: daemon.status("one")["lastExit"], "the end is seen")

    assert daemon.status("one")["lastExit"]["class"] == "killed"
    daemon.wait_for("one", "running")


@pytest.mark.guest
def test_a_guest_that_powers_off_stays_stopped(daemon: Daemon) -> None:
    daemon.drop("one", linux())
    wait_for_console(daemon, "one", "guest ready")

    daemon.client.post("/v1/vms/one/qmp", {"execute": "system_powerdown"})

    status = daemon.wait_for("one", "stopped")
    assert status["lastExit"]["class"] == "guest-shutdown"
    assert status["reason"] == "the guest powered off"
    daemon.call("start", "one", wait="30")


@pytest.mark.guest
def test_stop_asks_the_guest_and_says_what_it_took(daemon: Daemon) -> None:
    daemon.drop("one", linux())
    wait_for_console(daemon, "one", "guest ready")

    daemon.call("stop", "one", wait="60")

    last = daemon.status("one")["lastExit"]
    assert last["class"] == "stopped"
    rungs = [e["data"]["rung"] for e in daemon.status("one")["events"] if e["kind"] == "stopping"]
    assert rungs == ["power button"]


@pytest.mark.guest
def test_a_guest_that_is_still_booting_hears_a_later_press(daemon: Daemon) -> None:
    daemon.drop("one", linux())
    daemon.wait_for("one", "running")

    daemon.call("stop", "one", wait="60")

    events = daemon.status("one")["events"]
    rungs = [(e["data"]["rung"], e["data"]["enough"]) for e in events if e["kind"] == "stopping"]
    assert rungs == [("power button", True)]


@pytest.mark.guest
def test_a_guest_that_ignores_the_button_is_made_to_end(daemon: Daemon) -> None:
    daemon.drop("one", linux("arcsup.powerbutton=ignore", "stop: {timeout: 1s}\n"))
    wait_for_console(daemon, "one", "guest ready")

    daemon.call("stop", "one", wait="60")

    events = daemon.status("one")["events"]
    rungs = [(e["data"]["rung"], e["data"]["enough"]) for e in events if e["kind"] == "stopping"]
    assert rungs == [("power button", False), ("QMP quit", True)]


@pytest.mark.guest
async def test_a_guest_reboot_stays_inside_its_qemu(daemon: Daemon) -> None:
    daemon.drop("one", linux())
    wait_for_console(daemon, "one", "guest ready")
    pid = daemon.pid_of("one")

    await type_into_console(
        daemon,
        "one",
        "reboot -f",
        lambda: "guest-reset" in [event["kind"] for event in daemon.status("one")["events"]],
    )

    assert (daemon.state_of("one"), daemon.pid_of("one")) == ("running", pid)
    assert daemon.status("one")["restarts"] == 0


@pytest.mark.guest
async def test_a_panic_is_told_from_a_crash_and_answered_by_a_restart(daemon: Daemon) -> None:
    daemon.drop("one", linux().replace("panic=-1", "panic=0"))
    wait_for_console(daemon, "one", "guest ready")

    await type_into_console(
        daemon, "one", "echo c > /proc/sysrq-trigger", lambda: daemon.status("one")["lastExit"]
    )

    assert daemon.status("one")["lastExit"]["class"] == "guest-panic"
    daemon.wait_for("one", "running")
    assert daemon.status("one")["restarts"] == 1


async def type_into_console(
    daemon: Daemon, name: str, text: str, outcome: Callable[[], object]
) -> None:
    """Type a command into the guest's shell and wait for what comes of it."""
    async with open_console(Path(daemon.status(name)["consoleSocket"])) as console:
        await console.run("true")
        await console.send(f"{text}\n")
        # A console that is open and not read slows the guest down: read on while we wait.
        await trio.to_thread.run_sync(daemon.until, outcome, f"{text!r} had its effect")


def test_a_failing_command_says_why(daemon: Daemon) -> None:
    daemon.drop("one", TINY + "qemu: {args: [-no-such-option]}\nautostart: false\n")
    daemon.wait_for("one", "stopped")

    with pytest.raises(ArcsupError, match="no-such-option"):
        daemon.call("start", "one", wait="30")
