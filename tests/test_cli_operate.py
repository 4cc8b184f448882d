"""Verbs that change something, and the exit codes of the contract."""

import io
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from arcsup.cli.session import Session
from arcsup.cli.waiting import telling_what_for
from arcsup.errors import (
    ArcsupError,
    NotPermitted,
    Refused,
    Terminal,
    TimedOut,
    Transient,
)
from arcsup.model import State
from tests.cli_runner import Cli
from tests.fake_supervisor import PNG, FakeSupervisor, make_event, make_status, serve_in_thread


@pytest.fixture
def cli(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Cli]:
    supervisor = FakeSupervisor(places={"log": str(tmp_path / "log")})
    supervisor.add(
        make_status("web"),
        make_status("web-2", State.STOPPED),
        make_status("old", State.FAILED, reason="gave up after 5 crashes"),
    )
    with serve_in_thread(supervisor, tmp_path):
        yield Cli(supervisor, tmp_path, capsys)


@pytest.mark.parametrize(
    ("verb", "state"),
    [
        ("start", "running"),
        ("stop", "stopped"),
        ("kill", "stopped"),
        ("restart", "running"),
        ("adopt", "running"),
        ("reset", "running"),
        ("pause", "paused"),
        ("resume", "running"),
    ],
)
def test_a_verb_does_it_and_says_what_came_of_it(verb: str, state: str, cli: Cli) -> None:
    result = cli(verb, "web")

    assert (result.code, result.out, result.err) == (0, f"web: {state}\n", "")
    assert (verb, "web") in cli.supervisor.calls


def test_clear_leaves_failed(cli: Cli) -> None:
    assert cli("clear", "old").out == "old: running\n"


def test_a_glob_means_all_that_match(cli: Cli) -> None:
    result = cli("stop", "web*")

    assert result.out == "web: stopped\nweb-2: stopped\n"
    assert sorted(cli.supervisor.calls) == [("stop", "web"), ("stop", "web-2")]


def test_one_failure_among_several_does_not_stop_the_others(cli: Cli) -> None:
    result = cli("clear", "web", "old")

    assert (result.code, result.out) == (6, "old: running\n")
    assert result.err == "arcsup: web has not failed\n  hint: arcsup start starts it\n"


def test_no_wait_comes_back_at_once(cli: Cli) -> None:
    cli.supervisor.stuck = True

    assert cli("stop", "web", "--no-wait").code == 0


def test_a_timeout_is_124(cli: Cli) -> None:
    cli.supervisor.stuck = True

    assert cli("stop", "web", "--timeout", "50ms").code == 124
    assert cli("wait", "web", "--for", "stopped", "--timeout", "0.05").code == 124


def test_whoever_waits_long_is_told_what_for(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("arcsup.cli.waiting.NOTICE_AFTER", 0.0)
    monkeypatch.setattr("arcsup.cli.waiting.AGAIN_AFTER", 0.01)
    cli.supervisor.stuck = True
    cli.supervisor.add(make_status("off", State.WAITING, reason="no free slice"))

    result = cli("stop", "off", "--timeout", "300ms")

    assert result.code == 124
    assert result.err.startswith("off is ")
    assert result.err.count("off is ") == 1


class KeptTerminal(io.StringIO):
    """A terminal that keeps all; capsys loses what a thread writes while it is read."""

    def isatty(self) -> bool:
        return True


def test_on_a_terminal_the_reason_is_kept_true_and_wiped_in_the_end(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("arcsup.cli.waiting.NOTICE_AFTER", 0.0)
    monkeypatch.setattr("arcsup.cli.waiting.AGAIN_AFTER", 0.01)
    monkeypatch.setenv("COLUMNS", "60")
    terminal = KeptTerminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    supervisor = cli.supervisor
    session = Session(str(cli.run_dir))

    with telling_what_for(session, {"web"}):
        for percent in (8, 40):
            reason = f"saved to a.qcow2: {percent} %, {'x' * 60}"
            supervisor.add(make_status("web", State.STOPPING, reason=reason))
            deadline = time.monotonic() + 60
            while f"web is stopping: saved to a.qcow2: {percent} %" not in terminal.getvalue():
                assert time.monotonic() < deadline
                time.sleep(0.01)

    lines = terminal.getvalue().split("\r")
    assert lines[-2:] == [" " * 59, ""]
    assert max(map(len, lines)) == 59, "it fits on a line"


def test_start_that_ends_in_failure_is_1_with_the_reason(cli: Cli) -> None:
    cli.supervisor.failures["start"] = ArcsupError("old: QEMU said: no such machine", "fix it")

    result = cli("start", "old")

    assert result.code == 1
    assert result.err == "arcsup: old: QEMU said: no such machine\n  hint: fix it\n"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ArcsupError("no"), 1),
        (Terminal("no"), 1),
        (Transient("no"), 1),
        (NotPermitted("no"), 5),
        (Refused("no"), 6),
        (TimedOut("no"), 124),
        (ZeroDivisionError("no"), 1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_exit_codes_are_those_of_the_contract(error: Exception, code: int, cli: Cli) -> None:
    cli.supervisor.failures["pause"] = error

    result = cli("pause", "web")

    assert result.code == code
    assert result.out == ""
    assert result.err.startswith("arcsup: ")
    assert "Traceback" not in result.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["lits"],
        ["list", "--nope"],
        ["list", "-o", "xml"],
        ["stop"],
        ["stop", "web", "--timeout", "soon"],
        ["wait", "web", "--for", "happy"],
        ["events", "--since", "yesterday"],
        ["qmp", "web"],
        ["qmp", "web", "query-status", "{"],
        ["qmp", "web", "query-status", "[]"],
        ["screenshot", "web"],
        ["completion", "tcsh"],
        ["logs", "web", "-n", "-1"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_2_in_two_lines(arguments: list[str], cli: Cli) -> None:
    result = cli(*arguments)

    assert result.code == 2
    assert result.out == ""
    assert result.err.startswith("arcsup: ")
    assert len(result.err.splitlines()) <= 2


def test_a_misspelt_verb_is_met_with_the_nearest(cli: Cli) -> None:
    assert "did you mean list?" in cli("lits").err


def test_start_takes_a_file(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "try.yaml"
    file.write_text("memory: 1GiB\n")

    result = cli("start", str(file))

    assert (result.code, result.out) == (0, "try: running\n")
    assert ("submit", str(file), "memory: 1GiB\n") in cli.supervisor.calls


def test_start_hands_the_switches_on(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "try.yaml").write_text("memory: 1GiB\n")

    cli("start", "web-2", "--disable-gpu", "--safe-mode")
    cli("start", str(tmp_path / "try.yaml"), "--preinstall")

    verbs = [call[0] for call in cli.supervisor.calls]
    assert verbs == ["start safe-mode disable-gpu", "submit preinstall"]


def test_a_faulty_file_is_1_with_its_faults_as_lines(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("faulty: 1\n")

    result = cli("start", str(tmp_path / "bad.yaml"))

    assert result.code == 1
    assert result.err.startswith(f"{tmp_path}/bad.yaml:1:1: faulty: unknown key")


def test_files_that_are_none_are_refused_in_a_line(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe")
    (tmp_path / "huge.yaml").write_bytes(b"#" * (2 << 20))

    assert cli("start", "./nope.yaml").code == 4
    assert cli("start", str(tmp_path) + "/").code == 2
    assert "not UTF-8" in cli("start", str(tmp_path / "binary.yaml")).err
    assert "longer than" in cli("start", str(tmp_path / "huge.yaml")).err


@pytest.mark.parametrize("name", ["w\udce9n.yaml", "w\x1b[2Jn.yaml"])
def test_a_file_whose_name_cannot_be_shown_is_refused_in_a_line_that_shows_it(
    name: str, cli: Cli, tmp_path: Path
) -> None:
    (tmp_path / name).write_text("memory: 1GiB\n")

    result = cli("start", str(tmp_path / name))

    assert (result.code, cli.supervisor.calls) == (2, [])
    assert repr(str(tmp_path / name)) in result.err.splitlines()[0]


def test_wait_for_a_state_that_is_there(cli: Cli) -> None:
    assert cli("wait", "web").code == 0
    assert cli("wait", "web", "--for", "running").out == ""


def test_wait_for_gone_is_done_when_there_is_no_such_vm(cli: Cli) -> None:
    assert cli("wait", "nope", "--for", "gone").code == 0
    assert cli("wait", "nope", "--for", "running").code == 4


def test_qmp_prints_what_qemu_returns(cli: Cli) -> None:
    result = cli("qmp", "web", "device_del", '{"id": "x"}')

    assert result.json == {"command": "device_del", "arguments": {"id": "x"}}


def test_a_screenshot_is_written_whole(cli: Cli, tmp_path: Path) -> None:
    assert cli("screenshot", "web", str(tmp_path / "web.png")).code == 0
    assert (tmp_path / "web.png").read_bytes() == PNG
    assert cli("screenshot", "web", str(tmp_path / "nope" / "web.png")).code == 1
    assert [path.name for path in tmp_path.iterdir() if "png" in path.name] == ["web.png"]


def test_reload_names_what_takes_another_start_of_the_daemon(cli: Cli) -> None:
    cli.supervisor.later = ("group", "viewer")
    result = cli("reload")

    assert (result.code, result.out) == (0, "")
    assert result.err == "taken when the daemon is started again: group, viewer\n"


def test_reload_reaches_the_daemon(cli: Cli) -> None:
    assert cli("reload").code == 0
    assert cli.supervisor.calls == [("reload",)]


def test_events_are_shown_oldest_first(cli: Cli) -> None:
    cli.supervisor.log.append(make_event("one", "web"))
    cli.supervisor.log.append(make_event("two", None, "reloaded"))
    cli.supervisor.log.append(make_event("three", "web-2"))

    lines = cli("events").out.splitlines()
    assert [line.split()[-1] for line in lines] == ["MESSAGE", "one", "two", "three"]
    assert [event["message"] for event in cli("events", "--json").json] == ["one", "two", "three"]
    assert [e["message"] for e in cli("events", "web*", "--json").json] == ["one", "three"]
    assert [e["message"] for e in cli("events", "web", "--json").json] == ["one"]
    assert [e["message"] for e in cli("events", "--since", "2", "--json").json] == ["three"]
    assert cli("events", "--since", "5m", "--json").json == []
    assert len(cli("events", "--since", "2026-03-01T12:00:00Z", "--json").json) == 3


def test_following_events_ends_with_the_daemon(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    supervisor = FakeSupervisor()
    supervisor.log.append(make_event("one", "web"))
    codes: list[int] = []
    with serve_in_thread(supervisor, tmp_path):
        cli = Cli(supervisor, tmp_path, capsys)
        thread = threading.Thread(target=lambda: codes.append(cli("events", "-f", "--json").code))
        thread.start()
        supervisor.followed.wait(10)
    thread.join(10)

    assert codes == [69]


def test_without_a_daemon_every_verb_is_69_and_says_how_to_start_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli = Cli(FakeSupervisor(), tmp_path / "nowhere", capsys)
    calls = [
        *(["list"], ["status"], ["status", "web"], ["show", "web"], ["why", "web"], ["plan"]),
        *(["start", "web"], ["stop", "web*"], ["wait", "web"], ["events", "-f"], ["reload"]),
        *(["qmp", "web", "x"], ["screenshot", "web", "x.png"], ["console", "web"]),
    ]
    for arguments in calls:
        result = cli(*arguments)
        assert result.code == 69, arguments
        assert "arcsup daemon" in result.err


def test_verbs_that_need_no_daemon_do_without(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli = Cli(FakeSupervisor(), tmp_path / "nowhere", capsys)

    assert cli("version").out.startswith("arcsup 0.")
    assert cli("version", "--json").json["version"]
    assert "_arcsup_completion" in cli("completion", "bash").out
    assert "#compdef arcsup" in cli("completion", "zsh").out
    assert "complete --no-files --command arcsup" in cli("completion", "fish").out
