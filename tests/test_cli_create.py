"""The verb create, up to what it asks of the daemon and what it tells of the answer."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from arcsup.cli.create import describe_screen
from arcsup.control.shapes import ViewingJson
from tests.cli_runner import Cli
from tests.fake_supervisor import FakeSupervisor, make_status, serve_in_thread


@pytest.fixture
def cli(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Cli]:
    monkeypatch.chdir(tmp_path)
    for name in ("installer.iso", "drivers.iso"):
        (tmp_path / name).write_bytes(b"\0")
    (tmp_path / "guest.yaml").write_text("disks: [{path: guest.qcow2}]\n")
    supervisor = FakeSupervisor()
    supervisor.add(make_status("guest"))
    with serve_in_thread(supervisor, tmp_path):
        yield Cli(supervisor, tmp_path, capsys)


@pytest.mark.parametrize(("size", "mib"), [("64", 65536), ("512MiB", 512), ("1TiB", 1 << 20)])
def test_the_daemon_is_asked_for_the_disk_and_the_media(size: str, mib: int, cli: Cli) -> None:
    result = cli("create", "guest.yaml", "installer.iso", size, "--drivers", "drivers.iso")

    assert (result.code, result.out) == (0, "guest: running\n")
    [mode] = cli.supervisor.modes
    here = cli.run_dir
    assert mode.media == (f"{here}/installer.iso", f"{here}/drivers.iso")
    assert mode.disk_mib == mib
    assert cli.supervisor.calls[0][0] == "submit create"


def test_answers_go_along_and_no_password_is_told(cli: Cli) -> None:
    (cli.run_dir / "password").write_text("sesame\n")
    unattended = ("--unattended", "debian", "--password-file", "password")

    result = cli("create", "guest.yaml", "installer.iso", "20", *unattended)

    assert result.code == 0, result.err
    assert cli.supervisor.answers is not None
    assert "d-i passwd/username string user\n" in cli.supervisor.answers.preseed
    assert "sesame" not in cli.supervisor.answers.preseed + result.out + result.err


def test_a_cloud_image_is_what_the_disk_lies_over(cli: Cli) -> None:
    (cli.run_dir / "password").write_text("sesame\n")
    unattended = ("--unattended", "cloud-init", "--password-file", "password")

    result = cli("create", "guest.yaml", "installer.iso", "20", *unattended)

    assert result.code == 0, result.err
    [mode] = cli.supervisor.modes
    assert (mode.media, mode.base) == ((), f"{cli.run_dir}/installer.iso")
    assert cli.supervisor.answers is not None
    assert set(cli.supervisor.answers.files) == {"user-data", "meta-data"}


def test_without_a_daemon_it_is_69(
    tmp_path: Path, cli: Cli, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = Cli(cli.supervisor, tmp_path / "nowhere", capsys)

    assert alone("create", "guest.yaml", "installer.iso", "1").code == 69


def test_a_file_that_is_not_there_is_4(cli: Cli) -> None:
    result = cli("create", "nope.yaml", "installer.iso", "1")

    assert (result.code, result.err) == (4, "arcsup: there is no file nope.yaml\n")


@pytest.mark.parametrize(
    ("display", "socket", "screen"),
    [
        ("vnc", "/run/arcsup/a/display.sock", "VNC on /run/arcsup/a/display.sock: arcsup view a"),
        ("vnc", "", "VNC on 127.0.0.1:5930: arcsup view a"),
        ("gtk", "", "a window of the daemon's session"),
    ],
)
def test_it_is_told_where_the_screen_is(display: str, socket: str, screen: str) -> None:
    viewing: ViewingJson = {
        "display": display,
        "socket": socket,
        "address": "127.0.0.1",
        "port": 5930,
        "frames": [],
    }

    assert describe_screen("a", viewing) == f"its screen is {screen}"
    assert describe_screen("a", None) == ""
    assert describe_screen("a", {**viewing, "display": "none"}) == ""
