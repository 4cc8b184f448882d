"""Verbs on files, and where things live."""

import json
import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arcsup.cli.daemon import find_told
from arcsup.cli.files import format_shell
from arcsup.cli.places import PlaceOptions, find_places
from arcsup.errors import NoSuchObject, Refused, SpecError
from tests.cli_runner import Cli
from tests.fake_supervisor import FakeSupervisor

GOOD = "memory: 256MiB\n"
BAD = "memory: lots\ncpu: 2\n"


@pytest.fixture
def cli(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Cli:
    (tmp_path / "vms").mkdir()
    return Cli(FakeSupervisor(), tmp_path / "nowhere", capsys)


@pytest.fixture
def vms(tmp_path: Path, cli: Cli) -> Path:
    return tmp_path / "vms"


def test_files_without_faults_are_0(cli: Cli, vms: Path) -> None:
    (vms / "a.yaml").write_text(GOOD)

    for arguments in (["check", str(vms)], ["check", str(vms / "a.yaml")]):
        result = cli(*arguments)
        assert (result.code, result.out, result.err) == (0, "", "no faults\n")
    assert cli("check", str(vms), "--json").json == []


def test_every_fault_is_a_line_that_editors_understand(cli: Cli, vms: Path) -> None:
    (vms / "a.yaml").write_text(GOOD)
    (vms / "b.yaml").write_text(BAD)

    for path in (vms, vms / "b.yaml"):
        result = cli("check", str(path))
        lines = result.out.splitlines()
        assert result.code == 1
        assert [line.split(": ")[:2] for line in lines] == [
            [f"{vms}/b.yaml:1:9", "memory"],
            [f"{vms}/b.yaml:2:1", "cpu"],
        ]
    [first, _] = cli("check", str(vms), "--json").json
    assert (first["line"], first["column"], first["path"]) == (1, 9, "memory")
    assert first["severity"] == "fault"
    assert cli("check", str(vms), "-o", "name").out == f"{vms}/b.yaml\n"


def test_what_two_files_cannot_both_have_is_found(cli: Cli, vms: Path) -> None:
    forward = "networks: [{type: user, forwards: ['tcp:127.0.0.1:2222:22']}]\n"
    (vms / "a.yaml").write_text(forward)
    (vms / "b.yaml").write_text(forward)

    together = cli("check", str(vms / "a.yaml"), str(vms / "b.yaml"))
    assert together.code == cli("check", str(vms)).code == 1
    assert "2222" in together.out
    assert cli("check", str(vms / "a.yaml")).code == 0


def test_a_warning_is_told_and_is_no_fault(cli: Cli, vms: Path) -> None:
    (vms / "a.yaml").write_text("qemu: {args: [-foo]}\n")

    result = cli("check", str(vms / "a.yaml"))

    assert result.code == 0
    assert result.out.startswith(f"{vms}/a.yaml:1:1: warning: qemu.args")


def test_the_vm_directory_is_checked_when_nothing_is_named(cli: Cli, vms: Path) -> None:
    (vms / "b.yaml").write_text(BAD)
    vms.chmod(0o755)
    (vms / "b.yaml").chmod(0o644)

    assert cli("check", "--vms", str(vms)).code == 1
    assert cli("check", "--vms", str(vms / "nope")).code == 4


def test_a_path_that_is_not_there_is_4(cli: Cli, vms: Path) -> None:
    assert cli("check", str(vms / "nope.yaml")).code == 4


@contextmanager
def somebody_who_may_not_read(folder: Path) -> Iterator[None]:
    folder.chmod(0)
    was_root = os.geteuid() == 0
    if was_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if was_root:
            os.seteuid(0)
        folder.chmod(0o700)


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "{}"),
        ("check", "{}/a.yaml"),
        ("logs", "web", "--log-dir", "{}"),
        ("import", "{}/a.xml"),
        ("plan", "--inventory", "{}/inventory.json"),
    ],
)
def test_what_may_not_be_read_is_5_in_one_line_that_names_it(
    cli: Cli, vms: Path, arguments: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", "/nonexistent")
    with somebody_who_may_not_read(vms):
        result = cli(*(it.format(vms) for it in arguments))

    assert result.code == 5, result.err
    assert str(vms) in result.err.splitlines()[0]
    assert "Traceback" not in result.err


def test_a_name_too_long_for_a_file_is_told_in_one_line(cli: Cli) -> None:
    result = cli("check", "x" * 300)

    assert result.code == 1
    assert "File name too long" in result.err.splitlines()[0]


def test_the_schema_is_a_json_schema(cli: Cli) -> None:
    schema = cli("schema").json

    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["title"] == "arcsup VM file"


def test_qemu_of_something_that_is_not_there_is_4(cli: Cli, vms: Path) -> None:
    assert cli("qemu", "nope", "--vms", str(vms)).code == 4
    assert cli("qemu", str(vms / "nope.yaml")).code == 4
    assert cli("qemu", "../vms/x", "--vms", str(vms)).code == 4


def test_qemu_prints_what_would_be_run(cli: Cli, vms: Path, tmp_path: Path) -> None:
    (vms / "a.yaml").write_text(GOOD)
    places = ["--vms", str(vms), "--state", str(tmp_path / "state"), "--run", str(tmp_path / "r")]

    argv = cli("qemu", "a", "-o", "json", *places).json

    assert "qemu-system" in argv[0]
    assert cli("qemu", "a", "-o", "argv", *places).out.splitlines() == argv
    first, command = cli("qemu", str(vms / "a.yaml"), *places).out.strip().split("\n\n")
    assert read_back(command) == argv
    assert first.startswith(f"mkdir -p -m 700 {tmp_path}/r/a ")


def test_the_switches_of_a_run_change_its_command_line(cli: Cli, vms: Path, tmp_path: Path) -> None:
    gpu = "gpus: [{kind: passthrough, address: 'ff:1f.7'}]\n"
    (vms / "a.yaml").write_text(GOOD + gpu)
    places = ["--vms", str(vms), "--state", str(tmp_path / "state"), "--run", str(tmp_path / "r")]

    def print_line(*switches: str) -> str:
        result = cli("qemu", "a", "-o", "argv", *switches, *places)
        assert result.code == 0, result.err
        return result.out

    assert cli("qemu", "a", *places).code == 3
    plain = print_line("--disable-gpu")
    safe = print_line("--disable-gpu", "--safe-mode")
    tools = print_line("--disable-gpu", "--preinstall")
    assert "unix:" not in plain
    # Root's is in the folder that QEMU's own user may enter.
    assert re.search(rf"unix:{tmp_path}/r/(\.qemu/)?a/display\.sock", safe)
    assert "guest-tools.iso" not in safe
    assert f"{tmp_path}/state/images/guest-tools.iso" in tools


def read_back(command: str) -> list[str]:
    """Return the words that a real shell takes from a command line."""
    done = subprocess.run(
        ["sh", "-c", f"printf '%s\\0' {command}"], capture_output=True, check=True, timeout=10
    )
    return done.stdout.decode().split("\0")[:-1]


@given(
    st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20), min_size=1
    )
)
@settings(max_examples=50, deadline=None)
def test_a_shell_reads_back_the_command_that_is_printed(argv: list[str]) -> None:
    assert read_back(format_shell(argv)) == argv


def test_an_option_and_its_value_stand_on_one_line() -> None:
    shown = format_shell(["qemu", "-m", "2G", "-S", "-name", "a b"])

    assert shown == "qemu \\\n  -m 2G \\\n  -S \\\n  -name 'a b'"


NOTHING: PlaceOptions = {
    "config": None,
    "vms": None,
    "run": None,
    "state": None,
    "log_dir": None,
    "sysfs": None,
}


def test_an_option_beats_the_configuration_which_beats_the_default(tmp_path: Path) -> None:
    config = tmp_path / "arcsup.yaml"
    config.write_text("vmDir: /from/config\nlogDir: /logs/config\ngroup: kvm\n")

    places, settings = find_places(
        "/named/run", **(NOTHING | {"config": config, "vms": Path("/from/option")})
    )

    assert places.vms == Path("/from/option")
    assert places.log == Path("/logs/config")
    assert places.run == Path("/named/run")
    assert places.sysfs == Path("/sys")
    assert settings.group == "kvm"


def test_relative_places_are_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    places, _ = find_places(None, **(NOTHING | {"vms": Path("vms")}))

    assert places.vms == tmp_path / "vms"


def test_a_configuration_that_was_named_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(NoSuchObject, match="no configuration file"):
        find_places(None, **(NOTHING | {"config": tmp_path / "nope.yaml"}))


def test_the_daemon_refuses_a_faulty_configuration_with_its_faults(
    cli: Cli, tmp_path: Path
) -> None:
    config = tmp_path / "arcsup.yaml"
    config.write_text("vmdir: /x\n")

    result = cli("daemon", "--config", str(config))

    assert result.code == 1
    assert result.err.startswith(f"{config}:1:1: vmdir: unknown key")


def test_an_error_for_people_is_found_in_a_group() -> None:
    refused = Refused("another daemon")

    assert find_told(ExceptionGroup("", [ExceptionGroup("", [refused])])) is refused
    assert find_told(ExceptionGroup("", [refused, SpecError("x")])) is None
    assert find_told(ExceptionGroup("", [ValueError()])) is None


def test_data_is_all_that_goes_to_stdout(cli: Cli, vms: Path) -> None:
    assert json.loads(cli("check", str(vms), "--json").out) == []
