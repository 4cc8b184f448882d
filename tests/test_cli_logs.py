import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcsup.cli.logs import BLOCK, Tail, strip_controls
from tests.cli_runner import Cli
from tests.fake_supervisor import FakeSupervisor, serve_in_thread


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    directory = tmp_path / "log" / "web"
    directory.mkdir(parents=True)
    (directory / "qemu.log").write_bytes(b"qemu: one\nqemu: two\n")
    (directory / "console.log").write_bytes(b"\x1bc\x1b[2JSeaBIOS\r\n\x1b[31mlogin:\x1b[0m ")
    return tmp_path / "log"


@pytest.fixture
def cli(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(FakeSupervisor(), tmp_path / "nowhere", capsys)


def test_both_logs_are_shown_under_their_names(cli: Cli, logs: Path) -> None:
    result = cli("logs", "web", "--log-dir", str(logs))

    assert result.code == 0
    assert result.out == (
        "==> qemu.log <==\nqemu: one\nqemu: two\n\n==> console.log <==\nSeaBIOS\nlogin: "
    )


def test_one_log_is_shown_as_it_is(cli: Cli, logs: Path) -> None:
    assert cli("logs", "web", "--qemu", "--log-dir", str(logs)).out == "qemu: one\nqemu: two\n"
    assert cli("logs", "web", "--qemu", "-n", "1", "--log-dir", str(logs)).out == "qemu: two\n"
    raw = cli("logs", "web", "--console", "--raw", "--log-dir", str(logs)).out
    assert raw.startswith("\x1bc\x1b[2JSeaBIOS\r\n")


def test_the_daemon_knows_where_the_logs_are(
    logs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    supervisor = FakeSupervisor(places={"log": str(logs)})
    with serve_in_thread(supervisor, tmp_path):
        cli = Cli(supervisor, tmp_path, capsys)
        assert cli("logs", "web", "--qemu").out == "qemu: one\nqemu: two\n"
        assert cli("logs", "nope").code == 4


@pytest.mark.parametrize("name", ["nope", "..", "../log/web", "/etc", ".", ""])
def test_a_name_cannot_lead_out_of_the_directory(name: str, cli: Cli, logs: Path) -> None:
    assert cli("logs", name, "--log-dir", str(logs)).code == 4


@given(st.lists(st.binary(max_size=50).map(lambda b: b.replace(b"\n", b"")), max_size=20))
def test_the_last_lines_are_those_of_the_file(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]
) -> None:
    path = tmp_path_factory.mktemp("logs") / "a.log"
    lines = [line.replace(b"\r", b"") for line in lines]
    path.write_bytes(b"".join(line + b"\n" for line in lines))

    for count in (0, 1, 3, 100):
        wanted = lines[-count:] if count else []
        assert Tail(path).read_last(count) == b"".join(line + b"\n" for line in wanted)


def test_long_logs_are_read_from_their_end(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_bytes(b"x" * 3 * BLOCK + b"\nlast but one\nlast\n")

    assert Tail(path).read_last(2) == b"last but one\nlast\n"


def test_what_comes_is_read_once_across_truncation_and_rotation(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    tail = Tail(path)
    assert tail.read_last(10) == b""
    path.write_bytes(b"one\n")
    assert tail.read_new() == b"one\n"
    assert tail.read_new() == b""
    with path.open("ab") as stream:
        stream.write(b"two\n")
    assert tail.read_new() == b"two\n"
    os.truncate(path, 0)
    path.write_bytes(b"3\n")
    assert tail.read_new() == b"3\n"
    path.rename(tmp_path / "a.log.1")
    assert tail.read_new() == b""
    path.write_bytes(b"after rotation\n")
    assert tail.read_new() == b"after rotation\n"


@given(st.binary())
def test_nothing_that_a_terminal_acts_on_is_left(content: bytes) -> None:
    left = strip_controls(content)

    assert {byte for byte in left if byte < 32 or byte == 127} <= set(b"\t\n")
