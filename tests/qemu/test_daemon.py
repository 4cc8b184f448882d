"""The daemon itself: alone, adoptive, on speaking terms with systemd, and gone when told to."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from arcsup.vm.logfiles import LARGEST_LOG
from tests.leftovers import find_processes_naming, find_sockets
from tests.qemu.daemon import PATIENCE, TINY, Daemon, end, running_daemon

NOBODY = 65534
QUICK = TINY + "stop: {timeout: 100ms}\n"

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def daemon(short_dir: Path) -> Iterator[Daemon]:
    with running_daemon(short_dir) as daemon:
        yield daemon


def put_systemctl(folder: Path, answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a service manager that says ``answer`` first into PATH."""
    folder.mkdir()
    (folder / "systemctl").write_text(f"#!/bin/sh\necho {answer}\nexit 1\n")
    (folder / "systemctl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


# --- alone ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", ["run", "state"])
def test_a_second_daemon_on_the_same_directory_is_refused(daemon: Daemon, shared: str) -> None:
    other = {name: daemon.top / f"other-{name}" for name in ("run", "state")}
    other[shared] = getattr(daemon, shared)

    refused = daemon.arcsup(
        "daemon", "--vms", str(daemon.vms), "--log-dir", str(daemon.log),
        "--run", str(other["run"]), "--state", str(other["state"]),
    )  # fmt: skip

    assert refused.returncode == 6
    assert refused.stderr.splitlines()[0] == f"arcsup: another daemon uses {other[shared]}"
    assert len(refused.stderr.splitlines()) == 2
    assert daemon.answers()


# --- the end -------------------------------------------------------------------------------------


def test_it_ends_though_clients_follow_and_leaves_its_vms_running(daemon: Daemon) -> None:
    daemon.drop("one")
    pid = daemon.wait_for("one", "running")["pid"]
    followers = [
        subprocess.Popen(
            [*daemon.program, "--run", str(daemon.run), "events", "-f"],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )
        for _ in range(3)
    ]  # fmt: skip
    for follower in followers:
        assert follower.stdout is not None
        follower.stdout.readline()

    daemon.terminate()

    assert daemon.qemus() == [pid]
    assert not (daemon.run / "arcsup.sock").exists()
    for follower in followers:
        follower.communicate(timeout=PATIENCE)


def test_it_waits_for_neither_starts_nor_stops_when_it_ends(daemon: Daemon) -> None:
    daemon.drop("stops", TINY + "stop: {timeout: 5m}\n")
    daemon.wait_for("stops", "running")
    daemon.call("stop", "stops")
    daemon.wait_for("stops", "stopping")
    for number in range(5):
        daemon.drop(f"starts{number}")

    daemon.terminate()

    assert daemon.qemus("stops"), "it waited for a guest that takes its time"
    daemon.start()
    for number in range(5):
        daemon.wait_for(f"starts{number}", "running")
    assert len(daemon.qemus("starts")) == 5
    # The guest's time begins anew: the daemon does not know how long it was asked already.
    assert daemon.wait_for("stops", "stopping", "stopped")


def test_on_exit_stop_ends_vms_first_those_that_others_need_last(short_dir: Path) -> None:
    with running_daemon(short_dir, "--on-exit", "stop") as daemon:
        daemon.drop("app", QUICK + "after: [database]\n")
        daemon.drop("database", QUICK)
        daemon.drop("alone", QUICK)
        for name in ("app", "database", "alone"):
            daemon.wait_for(name, "running")

        daemon.terminate()

        assert daemon.qemus() == []
        assert find_sockets(daemon.run) == []
        log = daemon.read_log()
        stopped = [line for line in log.splitlines() if "EVENT=ended" in line]
        order = [line.partition("VM=")[2].split()[0] for line in stopped]
        assert order.index("app") < order.index("database")
        assert set(order) == {"app", "database", "alone"}

        daemon.start()
        for name in ("app", "database", "alone"):
            daemon.wait_for(name, "running")
        daemon.terminate()


def test_a_host_that_goes_down_stops_vms_for_this_time_only(
    short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_systemctl(short_dir / "bin", "stopping", monkeypatch)
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as systemd:
        systemd.bind(f"{short_dir}/notify")
        monkeypatch.setenv("NOTIFY_SOCKET", f"{short_dir}/notify")
        with running_daemon(short_dir) as daemon:
            daemon.drop("one", QUICK)
            daemon.wait_for("one", "running")

            daemon.terminate()

            assert daemon.qemus() == []
            daemon.start()
            daemon.wait_for("one", "running")
        systemd.settimeout(PATIENCE)
        while not systemd.recv(4096).startswith(b"EXTEND_TIMEOUT_USEC=30000000"):
            pass


def test_a_second_signal_ends_a_daemon_that_waits_for_its_vms(short_dir: Path) -> None:
    with running_daemon(short_dir, "--on-exit", "stop") as daemon:
        daemon.drop("one", TINY + "stop: {timeout: 5m}\n")
        pid = daemon.wait_for("one", "running")["pid"]
        assert daemon.process is not None
        daemon.process.send_signal(signal.SIGTERM)
        daemon.wait_for("one", "stopping")

        daemon.process.send_signal(signal.SIGTERM)

        daemon.process.wait(PATIENCE)
        assert daemon.qemus() == [pid]


# --- reload --------------------------------------------------------------------------------------


def test_sighup_reads_the_configuration_and_the_files_again(short_dir: Path) -> None:
    config = short_dir / "arcsup.yaml"
    config.write_text("resync: 1h\n")
    elsewhere = short_dir / "elsewhere.yaml"
    elsewhere.write_text(TINY)
    with running_daemon(short_dir, "--config", str(config)) as daemon:
        assert daemon.process is not None
        (daemon.vms / "one.yaml").symlink_to(elsewhere)
        pid = daemon.wait_for("one", "running")["pid"]

        # Behind a symlink no event tells; an hour is the resync. Only the signal is left.
        elsewhere.write_text(TINY + "description: read again\n")
        daemon.process.send_signal(signal.SIGHUP)
        daemon.until(
            lambda: daemon.client.get("/v1/vms/one/definition").get("description"), "it is read"
        )

        config.write_text("resync: never\n")
        daemon.process.send_signal(signal.SIGHUP)
        daemon.until(lambda: f"{config}:1:9: resync:" in daemon.read_log(), "the fault is told")
        assert daemon.answers()
        assert "Traceback" not in daemon.read_log()
        assert daemon.qemus() == [pid]


# --- systemd -------------------------------------------------------------------------------------


def test_systemd_is_told_what_the_daemon_does(short_dir: Path) -> None:
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as listener:
        listener.bind(str(short_dir / "notify"))
        listener.settimeout(PATIENCE)
        daemon = Daemon(short_dir)
        daemon.environment = {
            "NOTIFY_SOCKET": str(short_dir / "notify"),
            "WATCHDOG_USEC": "400000",
        }
        daemon.start()
        assert daemon.process is not None
        try:
            hear(listener, "READY=1")
            hear(listener, "WATCHDOG=1")
            daemon.drop("one")
            hear(listener, "STATUS=1 of 1 VMs running")
            environment = Path(f"/proc/{daemon.pid_of('one')}/environ").read_bytes()
            assert b"NOTIFY_SOCKET" not in environment
            assert b"WATCHDOG" not in environment

            daemon.process.send_signal(signal.SIGHUP)
            # sd_notify(3): RELOADING=1 comes with the time it began, and READY=1 ends it.
            assert "\nMONOTONIC_USEC=" in hear(listener, "RELOADING=1")
            hear(listener, "READY=1")

            daemon.process.send_signal(signal.SIGTERM)
            hear(listener, "STOPPING=1")
            daemon.process.wait(PATIENCE)
        finally:
            end(daemon)


def hear(listener: socket.socket, beginning: str) -> str:
    """Wait for a message that begins so; the socket's own time-out ends the wait."""
    while not (message := listener.recv(4096).decode()).startswith(beginning):
        pass
    return message


def test_a_notification_socket_that_is_gone_ends_nothing(short_dir: Path) -> None:
    daemon = Daemon(short_dir)
    daemon.environment = {"NOTIFY_SOCKET": str(short_dir / "gone"), "WATCHDOG_USEC": "100000"}
    try:
        daemon.start()
        daemon.drop("one")
        daemon.wait_for("one", "running")
        assert "Traceback" not in daemon.read_log()
    finally:
        end(daemon)


# --- adoption ------------------------------------------------------------------------------------


def crash_and_return(daemon: Daemon) -> None:
    daemon.kill()
    daemon.start()


def test_after_a_crash_the_next_daemon_takes_over_every_vm(daemon: Daemon) -> None:
    for name in ("one", "two"):
        daemon.drop(name)
    before = {name: daemon.wait_for(name, "running") for name in ("one", "two")}

    crash_and_return(daemon)

    for name, old in before.items():
        new = daemon.wait_for(name, "running")
        assert (new["pid"], new["adopted"], new["restarts"]) == (old["pid"], True, 0)
        # The VM runs for as long as before: its age does not begin anew.
        assert new["since"] == old["since"]
        assert new["argv"] == old["argv"]
        assert query_status(daemon, name) == "running"
    assert sorted(daemon.qemus()) == sorted(old["pid"] for old in before.values())
    assert "arcsup_adopted_total 2.0" in read_metrics(daemon)


def query_status(daemon: Daemon, name: str) -> str:
    daemon.until(lambda: daemon.status(name)["conditions"], "its monitor was asked")
    answer = daemon.client.post(f"/v1/vms/{name}/qmp", {"execute": "query-status"})
    return str(answer["return"]["status"])


def read_metrics(daemon: Daemon) -> str:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(daemon.run / "arcsup.sock"))
        client.sendall(b"GET /metrics HTTP/1.0\r\nHost: x\r\nConnection: close\r\n\r\n")
        return b"".join(iter(lambda: client.recv(65536), b"")).decode()


def test_an_adopted_vm_is_stopped_and_restarted_as_any_other(daemon: Daemon) -> None:
    daemon.drop("one", QUICK)
    daemon.wait_for("one", "running")
    crash_and_return(daemon)
    pid = daemon.wait_for("one", "running")["pid"]

    os.kill(pid, signal.SIGKILL)
    daemon.until(lambda: daemon.status("one")["pid"] not in (None, pid), "it is started again")
    status = daemon.wait_for("one", "running")
    assert (status["adopted"], status["restarts"]) == (False, 1)
    # Not our child: how it ended is known to nobody.
    assert (status["lastExit"]["class"], status["lastExit"]["signal"]) == ("crash", None)

    crash_and_return(daemon)
    daemon.wait_for("one", "running")
    daemon.call("stop", "one", wait="30")
    assert daemon.status("one")["lastExit"]["class"] == "stopped"
    assert daemon.qemus() == []


def test_a_qemu_that_died_while_no_daemon_was_there_is_started_again(daemon: Daemon) -> None:
    daemon.drop("one")
    pid = daemon.wait_for("one", "running")["pid"]
    daemon.kill()
    os.kill(pid, signal.SIGKILL)
    daemon.until(lambda: not daemon.qemus(), "QEMU has ended")

    daemon.start()

    daemon.until(lambda: daemon.status("one")["pid"] not in (None, pid), "it is started again")
    status = daemon.wait_for("one", "running")
    assert status["restarts"] == 1
    assert "while no daemon was there" in status["lastExit"]["detail"]


def test_a_paused_vm_is_paused_under_the_next_daemon_too(daemon: Daemon) -> None:
    daemon.drop("one")
    daemon.wait_for("one", "running")
    daemon.call("pause", "one")

    crash_and_return(daemon)

    daemon.wait_for("one", "paused")
    daemon.call("resume", "one")
    assert daemon.state_of("one") == "running"


def test_a_vm_whose_record_cannot_be_read_is_not_started_and_says_why(daemon: Daemon) -> None:
    daemon.drop("one")
    pid = daemon.wait_for("one", "running")["pid"]
    daemon.kill()
    record = daemon.state / "vms" / "one.json"
    whole = record.read_text()
    record.write_text(whole[: len(whole) // 2])

    daemon.start()

    status = daemon.wait_for("one", "invalid")
    assert f"{record} cannot be read" in status["reason"]
    assert "end that QEMU, then remove the file" in status["reason"]
    assert str(record) in daemon.arcsup("status").stdout
    assert daemon.qemus() == [pid]
    daemon.kill()
    record.write_text(whole)
    daemon.start()
    assert daemon.wait_for("one", "running")["pid"] == pid


def test_a_lost_record_starts_no_second_qemu(daemon: Daemon) -> None:
    daemon.drop("one")
    pid = daemon.wait_for("one", "running")["pid"]
    daemon.kill()
    (daemon.state / "vms" / "one.json").unlink()

    daemon.start()

    assert f"QEMU {pid} has the VM's lock" in daemon.wait_for("one", "waiting")["reason"]
    assert daemon.qemus() == [pid]


def test_the_first_answer_already_knows_every_file(daemon: Daemon) -> None:
    daemon.terminate()
    for number in range(300):
        daemon.drop(f"vm-{number}", "autostart: false\n")

    daemon.start()

    assert len(daemon.client.get("/v1/vms")) == 300


def test_a_frozen_qemu_is_adopted_and_told_of(daemon: Daemon) -> None:
    daemon.drop("one", QUICK)
    pid = daemon.wait_for("one", "running")["pid"]
    os.kill(pid, signal.SIGSTOP)

    crash_and_return(daemon)

    status = daemon.wait_for("one", "running")
    assert (status["pid"], status["adopted"]) == (pid, True)
    daemon.wait_for_event("one", "monitor-silent")
    answers = [c["status"] for c in daemon.status("one")["conditions"]]
    assert answers == [False]
    os.kill(pid, signal.SIGCONT)
    daemon.until(
        lambda: [c["status"] for c in daemon.status("one")["conditions"]] == [True],
        "its monitor answers again",
    )


# --- people --------------------------------------------------------------------------------------


def test_people_have_a_monitor_of_their_own(daemon: Daemon) -> None:
    daemon.drop("one")
    monitor = daemon.wait_for("one", "running")["monitorSocket"]

    with raw_monitor(monitor) as ask:
        assert ask("query-status")["status"] == "running"
        daemon.call("pause", "one")
        assert daemon.state_of("one") == "paused"
        assert ask("query-status")["status"] == "paused"
        ask("cont")
        daemon.wait_for("one", "running")


@contextmanager
def raw_monitor(path: str) -> Iterator[Any]:
    """Speak QMP as qmp-shell does, without any of arcsup's code."""
    with closing(socket.socket(socket.AF_UNIX)) as client:
        client.settimeout(PATIENCE)
        while client.connect_ex(path) == errno.ECONNREFUSED:
            # It is bound, and QEMU does not listen yet.
            time.sleep(0.01)
        lines = client.makefile("rb")
        assert "QMP" in json.loads(lines.readline())

        def ask(command: str) -> Any:
            client.sendall(json.dumps({"execute": command}).encode() + b"\n")
            while "event" in (message := json.loads(lines.readline())):
                pass
            return message["return"]

        with lines:
            ask("qmp_capabilities")
            yield ask


@pytest.mark.parametrize(
    "more",
    [
        pytest.param("", id="plain"),
        pytest.param("tpm: true\nshares: [{path: SHARED, tag: shared}]\n", id="helpers"),
        pytest.param("firmware: uefi\n", id="uefi"),
        pytest.param("disks: [{path: new.qcow2, size: 1MiB}]\n", id="disk"),
    ],
)
def test_the_command_that_is_printed_runs_when_it_is_pasted(short_dir: Path, more: str) -> None:
    (short_dir / "shared").mkdir()
    file = short_dir / "one.yaml"
    file.write_text(TINY + more.replace("SHARED", str(short_dir / "shared")))
    places = [f"--{name}={short_dir / name}" for name in ("run", "state", "log-dir")]
    printed = subprocess.run(
        [sys.executable, "-m", "arcsup", "qemu", str(file), *places],
        capture_output=True, text=True, check=True, timeout=PATIENCE,
    )  # fmt: skip
    assert "-m 64M" in printed.stdout

    shell = subprocess.Popen(["sh", "-c", printed.stdout], stdin=subprocess.DEVNULL)
    monitor = short_dir / "run" / "one" / "monitor.sock"
    try:
        while not monitor.exists():
            assert shell.poll() is None, "the shell ended"
            time.sleep(0.01)
        with raw_monitor(str(monitor)) as ask:
            assert ask("query-status")["status"] == "running"
            ask("quit")
        shell.wait(PATIENCE)
        deadline = time.monotonic() + PATIENCE
        while find_processes_naming(short_dir):
            assert time.monotonic() < deadline, "its helpers outlive QEMU"
            time.sleep(0.01)
    finally:
        for pid in find_processes_naming(short_dir):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shell.wait(PATIENCE)


def test_the_command_that_is_printed_has_the_folders_of_the_daemon_that_runs(
    daemon: Daemon,
) -> None:
    daemon.drop("one")
    daemon.wait_for("one", "running")

    printed = daemon.arcsup("qemu", "one", "-o", "argv")

    assert printed.returncode == 0, printed.stderr
    assert f"logfile={daemon.log}/one/console.log" in printed.stdout


# --- a user's session ----------------------------------------------------------------------------


@pytest.fixture
def session(short_dir: Path) -> Iterator[Daemon]:
    """Yield the daemon of an ordinary user, in that user's own directories."""
    become: tuple[str, ...] = ()
    if os.geteuid() == 0:
        become = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--")
        os.chown(short_dir, NOBODY, NOBODY)
    program = (*become, sys.executable, "-m", "arcsup")
    if subprocess.run([*program, "version"], capture_output=True, check=False).returncode:
        pytest.skip("that user may not read this Python")
    daemon = Daemon(short_dir, program=program, environment={"HOME": str(short_dir)})
    if os.geteuid() == 0:
        os.chown(daemon.vms, NOBODY, NOBODY)
    daemon.start()
    yield daemon
    end(daemon)


def test_an_ordinary_user_has_a_daemon_too(session: Daemon) -> None:
    session.drop("one", QUICK)

    pid = session.wait_for("one", "running")["pid"]

    assert session.client.get("/v1/daemon")["system"] is False
    assert (session.run / "one").stat().st_mode & 0o777 == 0o700
    assert Path(f"/proc/{pid}").stat().st_uid == (NOBODY if os.geteuid() == 0 else os.geteuid())
    session.kill()
    session.start()
    assert session.wait_for("one", "running")["pid"] == pid
    session.call("stop", "one", wait="30")
    assert session.qemus() == []


def test_what_a_user_may_not_read_is_told(session: Daemon) -> None:
    file = session.drop("one")
    session.wait_for("one", "running")
    file.chmod(0)

    if os.geteuid() == 0:
        os.chown(file, 0, 0)
    reason = session.wait_for("one", "invalid")["reason"]

    assert "cannot be read by user" in reason
    assert "its last good version runs on" in reason


@as_root
def test_a_parent_that_may_be_passed_but_not_read_is_enough(session: Daemon) -> None:
    session.terminate()
    session.log.mkdir()
    os.chown(session.log, NOBODY, NOBODY)
    os.chown(session.top, 0, NOBODY)
    session.top.chmod(0o710)

    session.start()
    session.drop("one")

    session.wait_for("one", "running")
    assert "Traceback" not in session.read_log()


# --- disks ---------------------------------------------------------------------------------------


@as_root
def test_a_full_disk_is_told_and_got_over(short_dir: Path) -> None:
    state = short_dir / "state"
    state.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "arcsup", state], check=True)
    try:
        with running_daemon(short_dir) as daemon:
            daemon.drop("one")
            pid = daemon.wait_for("one", "running")["pid"]
            filler = state / "filler"
            fill(filler)

            daemon.drop("two")
            daemon.drop("one", TINY + "description: edited\n")
            daemon.until(lambda: "No space left on device" in daemon.read_log(), "it is told")
            assert daemon.qemus() == [pid]
            filler.unlink()

            daemon.wait_for("two", "running")
            assert daemon.client.get("/v1/vms/one/definition")["description"] == "edited"
            assert "Traceback" not in daemon.read_log()
            # What was read in the meantime is durable by now.
            assert "edited" in daemon.records()["one"]["source"]["text"]
            assert daemon.qemus("one") == [pid]
    finally:
        subprocess.run(["umount", "--lazy", state], check=True)


def fill(file: Path) -> None:
    """Take all the space that is left."""
    with suppress(OSError), open(file, "wb", buffering=0) as stream:
        while True:
            stream.write(bytes(4096))


def test_a_log_directory_that_cannot_be_made_is_told_with_its_name(daemon: Daemon) -> None:
    daemon.log.write_text("in the way")
    daemon.drop("one", TINY + "restart: {burst: 1, delay: 1ms}\n")

    reason = daemon.wait_for("one", "failed")["lastExit"]["detail"]

    assert reason == f"{daemon.log}/one: Not a directory"
    assert "Traceback" not in daemon.read_log()


def test_hooks_run_around_the_life_of_a_vm(daemon: Daemon) -> None:
    hook = daemon.top / "hook"
    hook.write_text(f'#!/bin/sh\necho "$ARCSUP_MOMENT $ARCSUP_VM" >> {daemon.top}/moments\n')
    hook.chmod(0o755)
    moments = ("preStart", "postStart", "preStop", "postStop")
    hooks = ", ".join(f"{moment}: [[{hook}]]" for moment in moments)
    daemon.drop("one", QUICK + f"hooks: {{{hooks}}}\n")
    daemon.wait_for("one", "running")
    told = daemon.top / "moments"
    daemon.until(lambda: "postStart one" in told.read_text(), "the hook after the start ran")

    daemon.call("stop", "one", wait="30")

    assert told.read_text().split("\n")[:-1] == [f"{moment} one" for moment in moments]


def test_a_log_that_grows_without_bound_is_begun_anew_under_its_qemu(short_dir: Path) -> None:
    config = short_dir / "arcsup.yaml"
    config.write_text("resync: 1s\n")
    with running_daemon(short_dir, "--config", str(config)) as daemon:
        daemon.drop("one")
        daemon.wait_for("one", "running")
        log = daemon.log / "one" / "qemu.log"

        os.truncate(log, LARGEST_LOG + 1)

        daemon.until(lambda: log.stat().st_size == 0, "it is emptied")
        assert log.with_name("qemu.log.1").stat().st_size == LARGEST_LOG
