"""Real programs behind their gates, held by who they are."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio
from attrs import evolve

from arcsup.errors import Terminal
from arcsup.vm.process import (
    GatedProcess,
    Process,
    ProcessEnd,
    ProcessId,
    closing_gate,
    end_process,
    find_processes_holding,
    inherited_environment,
    read_start_time,
    start_gated,
)
from tests.shortages import without_descriptors

BOOT = "boot"


def start(tmp_path: Path, script: str, pass_fds: tuple[int, ...] = ()) -> GatedProcess:
    output = tmp_path / "output"
    return start_gated(["sh", "-c", script], boot_id=BOOT, output=output, pass_fds=pass_fds)


async def test_a_program_begins_when_its_gate_opens(tmp_path: Path) -> None:
    gated = start(tmp_path, "echo begun; exit 3")
    assert (tmp_path / "output").read_text() == ""

    gated.open_gate()

    with trio.fail_after(30):
        assert await gated.process.wait() == ProcessEnd(code=3)
    assert (tmp_path / "output").read_text() == "begun\n"
    gated.process.close()


async def test_a_gate_that_closes_ends_the_program_unbegun(tmp_path: Path) -> None:
    with closing_gate(start(tmp_path, "echo begun")) as gated:
        pass

    with trio.fail_after(30):
        assert (await gated.process.wait()).code != 0
    assert (tmp_path / "output").read_text() == ""
    gated.process.close()


async def test_a_gate_that_opens_for_a_dead_program_harms_nobody(tmp_path: Path) -> None:
    gated = start(tmp_path, "exit 0")
    gated.process.send(signal.SIGKILL)
    with trio.fail_after(30):
        assert await gated.process.wait() == ProcessEnd(signal=signal.SIGKILL)

    gated.open_gate()
    gated.process.send(signal.SIGKILL)
    assert str(await gated.process.wait()) == "signal SIGKILL"
    gated.process.close()


def test_what_cannot_be_started_says_so(tmp_path: Path) -> None:
    with pytest.raises(Terminal, match="sh could not be started: No such file or directory"):
        start_gated(["sh"], boot_id=BOOT, output=tmp_path / "not-there" / "output")


async def test_a_process_is_found_by_who_it_is_and_not_by_its_number(tmp_path: Path) -> None:
    gated = start(tmp_path, "exec sleep 600")
    gated.open_gate()
    identity = gated.process.identity

    found = Process.find(identity, boot_id=BOOT)
    assert found is not None
    assert found.pid == identity.pid
    found.close()
    # A pid is given out again; the time of its start is not.
    reused = evolve(identity, start_time=identity.start_time - 1)
    assert Process.find(reused, boot_id=BOOT) is None
    assert Process.find(identity, boot_id="after a reboot") is None
    with trio.fail_after(30):
        await end_process(gated.process, grace=10)
    assert Process.find(identity, boot_id=BOOT) is None
    assert read_start_time(identity.pid) is None
    gated.process.close()


async def test_a_process_that_cannot_be_looked_at_is_not_taken_for_gone(tmp_path: Path) -> None:
    gated = start(tmp_path, "exec sleep 600")
    gated.open_gate()

    with without_descriptors(), pytest.raises(OSError, match="Too many open files"):
        Process.find(gated.process.identity, boot_id=BOOT)

    with trio.fail_after(30):
        await end_process(gated.process, grace=10)
    gated.process.close()


def test_who_holds_a_file_is_not_known_to_be_nobody_where_no_look_is_possible(
    tmp_path: Path,
) -> None:
    with open(tmp_path / "lock", "w"):
        with without_descriptors(), pytest.raises(OSError, match="Too many open files"):
            list(find_processes_holding(tmp_path / "lock"))
        assert os.getpid() in find_processes_holding(tmp_path / "lock")


def test_a_program_that_cannot_be_held_is_ended_before_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(pid: int) -> int:
        started.append(pid)
        raise OSError(errno.EMFILE, "Too many open files")

    started: list[int] = []
    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr("os.pidfd_open", refuse)

    with pytest.raises(OSError, match="Too many open files"):
        start(tmp_path, "echo begun; exec sleep 600")

    assert not Path(f"/proc/{started[0]}").exists()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_start_that_fails_at_the_next_program_lets_go_of_the_first(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))

    with pytest.raises(RuntimeError), closing_gate(start(tmp_path, "echo begun")) as gated:
        raise RuntimeError("the next one could not be started")

    assert not Path(f"/proc/{gated.process.pid}").exists()
    assert len(os.listdir("/proc/self/fd")) == before


async def test_a_process_that_is_no_child_is_watched_too() -> None:
    script = "sleep 600 >/dev/null 2>&1 & echo $!"
    made = subprocess.run(["sh", "-c", script], capture_output=True, check=True, text=True)
    pid = int(made.stdout)
    start_time = read_start_time(pid)
    assert start_time is not None
    process = Process.find(ProcessId(BOOT, pid, start_time), boot_id=BOOT)
    assert process is not None

    with trio.fail_after(30):
        end = await end_process(process, grace=10)

    assert end == ProcessEnd()
    assert str(end) == "an unknown status"
    process.close()


async def test_a_stopped_process_hears_the_signal_to_end(tmp_path: Path) -> None:
    gated = start(tmp_path, "exec sleep 600")
    gated.open_gate()
    gated.process.send(signal.SIGSTOP)

    with trio.fail_after(30):
        assert await end_process(gated.process, grace=20) == ProcessEnd(signal=signal.SIGTERM)
    gated.process.close()


async def test_a_process_that_ignores_the_signal_is_killed(tmp_path: Path) -> None:
    gated = start(tmp_path, "trap '' TERM; echo ready; while :; do sleep 600; done")
    gated.open_gate()
    with trio.fail_after(30):
        while not (tmp_path / "output").read_text():  # noqa: ASYNC110 - another process writes it
            await trio.sleep(0.01)
        assert await end_process(gated.process, grace=0.2) == ProcessEnd(signal=signal.SIGKILL)
    gated.process.close()


async def test_two_may_wait_for_one_process(tmp_path: Path) -> None:
    gated = start(tmp_path, "exit 0")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(gated.process.wait)
        nursery.start_soon(gated.process.wait)
        gated.open_gate()
    gated.process.close()


async def test_only_what_is_passed_reaches_the_program(tmp_path: Path) -> None:
    passed, kept = os.open("/dev/full", os.O_RDONLY), os.open("/dev/zero", os.O_RDONLY)
    gated = start(tmp_path, "readlink /proc/$$/fd/*", pass_fds=(passed,))
    os.close(passed)
    os.close(kept)
    gated.open_gate()
    with trio.fail_after(30):
        await gated.process.wait()

    links = (tmp_path / "output").read_text().split()
    assert "/dev/full" in links
    assert "/dev/zero" not in links
    gated.process.close()


async def test_a_program_has_a_session_and_a_directory_of_its_own(tmp_path: Path) -> None:
    gated = start(tmp_path, "pwd; cat; ps -o sid= -p $$ 2>/dev/null || echo $$; exit 0")
    gated.open_gate()
    with trio.fail_after(30):
        assert await gated.process.wait() == ProcessEnd(code=0)

    where, session = (tmp_path / "output").read_text().split()
    assert where == "/"
    assert int(session) == gated.process.pid
    gated.process.close()


def test_who_holds_a_file_is_found(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    assert list(find_processes_holding(file)) == []
    with open(file, "w"):
        assert list(find_processes_holding(file)) == [os.getpid()]


def test_a_name_with_parentheses_hides_no_start_time(tmp_path: Path) -> None:
    program = tmp_path / "a) R 1 (b"
    program.symlink_to(sys.executable)
    with subprocess.Popen([program, "-c", "input()"], stdin=subprocess.PIPE) as process:
        mine = read_start_time(os.getpid())
        theirs = read_start_time(process.pid)
        assert mine is not None
        assert theirs is not None
        assert theirs >= mine
        process.communicate(b"\n")


async def test_a_program_learns_nothing_that_only_the_daemon_was_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "topsecret")
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/systemd/notify")
    monkeypatch.setenv("LC_TIME", "C.UTF-8")
    monkeypatch.setenv("WAYLAND_DISPLAY", "wayland-0")
    for environment in (None, inherited_environment()):
        output = tmp_path / "output"
        output.unlink(missing_ok=True)
        with closing_gate(
            start_gated(["env"], boot_id=BOOT, output=output, environment=environment)
        ) as gated:
            gated.open_gate()
            with trio.fail_after(30):
                assert await gated.process.wait() == ProcessEnd(code=0)
        gated.process.close()

        names = {line.partition("=")[0] for line in output.read_text().splitlines()}
        assert {"PATH", "LC_TIME", "WAYLAND_DISPLAY"} <= names
        assert not names & {"AWS_SECRET_ACCESS_KEY", "NOTIFY_SOCKET"}
