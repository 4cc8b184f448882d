"""Reading verbs against a fake supervisor on a real socket."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml

from arcsup.cli.output import cut, format_age, format_seconds, measure, plain, print_table
from arcsup.model import State, Step
from tests.cli_runner import Cli
from tests.fake_supervisor import FakeSupervisor, make_crashed, make_status, serve_in_thread


@pytest.fixture
def cli(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Cli]:
    supervisor = FakeSupervisor(places={"run": str(tmp_path)})
    now = datetime.now(UTC)
    supervisor.add(
        make_status("web", since=now - timedelta(minutes=3, seconds=5)),
        make_crashed("db"),
        make_status(
            "old", State.FAILED, reason="gave up after 5 crashes", since=now - timedelta(hours=5)
        ),
        make_status("web-2", pending=("cpus",), since=now - timedelta(days=3)),
    )
    supervisor.vms["db"] = make_crashed("db")
    with serve_in_thread(supervisor, tmp_path):
        yield Cli(supervisor, tmp_path, capsys)


def test_list_is_an_aligned_table(cli: Cli) -> None:
    cli.supervisor.vms.pop("db")

    result = cli("list")

    assert result.code == 0
    assert result.out == (
        "NAME    STATE     AGE   PID    RESTARTS   GPU   REASON\n"
        "old     failed    5h    -      0          -     gave up after 5 crashes\n"
        "web     running   3m    4242   0          -     -\n"
        "web-2   running   3d    4242   0          -     its file has changed: restart applies it\n"
    )


def test_a_run_in_a_mode_shows_it(cli: Cli) -> None:
    cli.supervisor.add(make_status("new", mode=("preinstall", "disable-gpu")))

    assert cli("list", "new").out.endswith("mode: preinstall, disable-gpu\n")
    assert "Mode: preinstall, disable-gpu; for this run" in cli("status", "new").out
    assert cli("list", "new", "--json").json[0]["mode"] == ["preinstall", "disable-gpu"]


def test_wide_adds_columns(cli: Cli) -> None:
    headers, *rows = cli("list", "-o", "wide", "db").out.splitlines()

    names = ["NAME", "STATE", "AGE", "PID", "RESTARTS", "GPU", "PENDING", "FILE", "REASON"]
    assert headers.split() == names
    assert "nvidia-64 (2048 MiB)" in rows[0]
    assert "/etc/arcsup/vms/db.yaml" in rows[0]


@pytest.mark.parametrize("verb", ["list", "ls", "ps"])
def test_list_has_the_aliases_of_other_programs(verb: str, cli: Cli) -> None:
    assert cli(verb, "-o", "name").out.split() == ["db", "old", "web", "web-2"]


def test_list_as_data(cli: Cli) -> None:
    assert [vm["name"] for vm in cli("list", "-o", "json").json] == ["db", "old", "web", "web-2"]
    assert cli("list", "--json").out == cli("list", "-o", "json").out
    assert yaml.safe_load(cli("list", "-o", "yaml").out) == cli("list", "--json").json


def test_an_empty_list_is_an_empty_array_and_no_table(cli: Cli) -> None:
    cli.supervisor.vms.clear()

    assert cli("list", "--json").json == []
    result = cli("list")
    assert (result.code, result.out) == (0, "")
    assert "no VMs" in result.err


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        (["web*"], ["web", "web-2"]),
        (["*"], ["db", "old", "web", "web-2"]),
        (["web", "w*"], ["web", "web-2"]),
        (["[do]*"], ["db", "old"]),
        (["???"], ["old", "web"]),
    ],
)
def test_names_may_be_globs(patterns: list[str], names: list[str], cli: Cli) -> None:
    assert cli("list", "-o", "name", *patterns).out.split() == names


@pytest.mark.parametrize("pattern", ["nope", "zz*"])
@pytest.mark.parametrize(
    "verb", ["list", "status", "why", "start", "stop", "kill", "restart", "reset", "pause", "clear"]
)
def test_no_such_vm_is_4(verb: str, pattern: str, cli: Cli) -> None:
    result = cli(verb, pattern)

    assert result.code == 4
    assert result.out == ""
    assert result.err.startswith("arcsup: ")
    assert pattern in result.err


def test_status_of_a_vm_in_trouble(cli: Cli) -> None:
    result = cli("status", "db")

    assert result.code == 3
    lines = [line.strip() for line in result.out.splitlines()]
    assert lines[0].startswith("○ db: backoff since 2026-03-01 ")
    assert "Reason: QEMU crashed; next try in 4 s" in lines
    assert "Pending: memory, disks[0].path; arcsup restart db applies it" in lines
    assert any(
        line.startswith("Last exit: crash (signal 11)") and line.endswith("killed by SIGSEGV")
        for line in lines
    )
    assert "GPU: vgpu nvidia-64 0a1b on 0000:41:00.0 (2048 MiB)" in lines
    assert "Sockets: qmp /run/arcsup/db/qmp.sock" in lines
    assert "Conditions: DisksWork=yes Present: nothing asked for" in lines
    assert lines[-1].endswith("started  event 11")


def test_status_of_a_running_vm_is_0(cli: Cli) -> None:
    result = cli("status", "web", "-o", "wide")

    assert result.code == 0
    assert result.out.startswith("● web: running since ")
    assert "Command: qemu-system-x86_64 -name guest=web\n" in result.out


def test_status_as_data_is_an_object_for_one_and_an_array_for_a_glob(cli: Cli) -> None:
    assert cli("status", "web", "--json").json["uuid"]
    assert [vm["name"] for vm in cli("status", "web*", "--json").json] == ["web", "web-2"]
    assert cli("status", "web", "-o", "name").out == "web\n"


def test_the_worst_of_several_vms_is_the_exit_code(cli: Cli) -> None:
    assert cli("status", "web", "web-2").code == 0
    assert cli("status", "web", "old").code == 3
    result = cli("status", "web", "nope", "old")
    assert result.code == 4
    assert "web: running" in result.out


def test_status_without_a_name_is_of_the_daemon(cli: Cli) -> None:
    result = cli("status")

    assert result.code == 0
    assert "arcsup 0.1.0: up 5s" in result.out
    assert "VMs: 1 backoff, 1 failed, 2 running" in result.out
    assert cli("status", "--json").json["pid"] == 1
    cli.supervisor.findings.append("/vms is not there")
    assert "Findings: /vms is not there" in cli("status").out


def test_why_goes_down_to_the_cause(cli: Cli) -> None:
    result = cli("why", "db")

    assert result.code == 3
    lines = result.out.splitlines()
    assert lines[0].startswith("db is backoff (since ")
    assert lines[1] == "  because QEMU crashed"
    assert lines[3] == "    because killed by SIGSEGV"
    assert lines[4].startswith("    next: start again at 2026-03-01 ")


def test_why_of_a_vm_as_desired_is_0(cli: Cli) -> None:
    assert cli("why", "web").out == "web is running, as desired\n"
    assert cli("why", "web").code == 0
    assert cli("why", "web", "--json").json == {
        "name": "web",
        "state": "running",
        "asDesired": True,
        "chain": [],
    }


def test_show_is_yaml_that_can_be_a_vm_file(cli: Cli) -> None:
    assert yaml.safe_load(cli("show", "web").out)["memory"] == "2GiB"
    assert cli("show", "web", "--json").json["memory"] == "2GiB"


def test_plan_tells_what_is_to_be_done(cli: Cli) -> None:
    assert cli("plan").err == "nothing to do: all is as desired\n"
    assert cli("plan", "--detailed-exitcode").code == 0
    assert cli("plan", "--json").json == []
    cli.supervisor.planned.append(Step("start", "db", "it crashed"))

    assert cli("plan").out.splitlines()[1].split() == ["start", "db", "it", "crashed"]
    assert cli("plan").code == 0
    assert cli("plan", "--detailed-exitcode").code == 2


def test_what_cannot_be_done_is_in_the_plan_and_is_no_change(cli: Cli) -> None:
    cli.supervisor.planned.append(Step("wait", "db", "gpus[0]: the host has no GPU"))

    assert cli("plan").out.splitlines()[1].startswith("wait     db       gpus[0]: the host")
    assert cli("plan", "--detailed-exitcode").code == 0


def test_a_message_cannot_move_the_readers_terminal(cli: Cli) -> None:
    cli.supervisor.add(make_status("evil", State.FAILED, reason="\x1b[2Jboo\nweb   running"))

    lines = cli("list", "evil").out.splitlines()

    assert len(lines) == 2
    assert "\x1b" not in lines[1]


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(-5, "0s"), (59.9, "59s"), (60, "1m"), (7199, "119m"), (7200, "2h"), (172800, "2d")],
)
def test_ages_are_in_their_largest_unit(seconds: float, shown: str) -> None:
    assert format_seconds(seconds) == shown


def test_an_age_is_counted_from_now() -> None:
    now = datetime(2026, 3, 1, 12, 3, 10, tzinfo=UTC)

    assert format_age("2026-03-01T12:00:00.000Z", now) == "3m"


def test_wide_characters_take_two_columns() -> None:
    assert measure("abc") == 3
    assert measure("日本") == 4
    assert measure("é") == 1
    assert cut("0123456789abc", 11) == "0123456789…"


def test_plain_text_has_no_control_characters() -> None:
    assert plain("a\x1b[31mb") == "a\N{REPLACEMENT CHARACTER}[31mb"
    assert plain("日本 é") == "日本 é"


def test_a_table_is_cut_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["A", "B"], [["x", "a long reason that does not fit"]], cut_to=20)

    assert capsys.readouterr().out == "A   B\nx   a long reason t…\n"
