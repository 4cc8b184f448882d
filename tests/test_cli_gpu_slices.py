"""The verbs gpu types --for, adopt, release and unquarantine, from a fake daemon."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from arcsup.errors import NoSuchObject, Refused
from tests.cli_runner import Cli
from tests.fake_supervisor import FakeSupervisor, make_status, serve_in_thread

UUID = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001"


@pytest.fixture
def cli(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Cli]:
    supervisor = FakeSupervisor()
    supervisor.add(make_status("web"))
    with serve_in_thread(supervisor, tmp_path):
        yield Cli(supervisor, tmp_path, capsys)


def test_types_for_a_vm_say_of_each_why(cli: Cli) -> None:
    result = cli("gpu", "types", "--for", "web")

    assert result.code == 0
    lines = [line.split("   ") for line in result.out.splitlines()]
    assert "nvidia-64" in lines[1]
    assert lines[1][-1] == "the only one"
    assert lines[2][-1] == "excluded"
    assert cli("gpu", "types", "--for", "web", "-o", "name").out == "nvidia-64\n"
    assert [v["why"] for v in cli("gpu", "types", "--for", "web", "--json").json] == [
        "the only one",
        "excluded",
    ]


def test_types_for_a_file_are_asked_with_its_text_and_3_when_one_is_missing(
    cli: Cli, tmp_path: Path
) -> None:
    file = tmp_path / "try.yaml"
    file.write_text("gpus: [{}, {}]\n")

    result = cli("gpu", "types", "--for", str(file))

    assert result.code == 3
    assert cli.supervisor.calls == [("explain", str(file), "gpus: [{}, {}]\n")]
    assert "the host has no GPU" in result.out


def test_types_for_nobody_are_4(cli: Cli) -> None:
    assert cli("gpu", "types", "--for", "nope").code == 4
    assert cli("gpu", "types", "--for", "./nope.yaml").code == 4


def test_a_slice_is_adopted_and_let_go(cli: Cli) -> None:
    assert cli("gpu", "adopt", UUID.upper(), "--vm", "web").code == 0
    assert cli("gpu", "release", UUID).code == 0
    assert cli.supervisor.calls == [("adopt", UUID, "web"), ("release", UUID)]


def test_what_is_held_is_6_and_what_is_not_there_is_4(cli: Cli) -> None:
    cli.supervisor.failures["adopt"] = Refused(f"{UUID} is in use by process 7", "end that first")
    cli.supervisor.failures["release"] = NoSuchObject(f"arcsup has no slice {UUID}")

    adopted = cli("gpu", "adopt", UUID, "--vm", "web")
    assert (adopted.code, adopted.out) == (6, "")
    assert adopted.err == f"arcsup: {UUID} is in use by process 7\n  hint: end that first\n"
    assert cli("gpu", "release", UUID).code == 4
    assert cli("gpu", "adopt", UUID, "--vm", "nope").code == 4
    assert cli("gpu", "adopt", UUID).code == 2


def test_what_is_quarantined_is_listed_and_lifted(cli: Cli) -> None:
    assert cli("gpu", "unquarantine").out == "mbochs/mbochs-small\n"
    assert cli.supervisor.calls == []
    assert cli("gpu", "unquarantine", "mbochs", "--json").json == ["mbochs/mbochs-small"]
    assert cli.supervisor.calls == [("unquarantine", "mbochs")]
