"""The verb view: which client it finds for what a VM has, and how it runs it."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from arcsup.cli.viewers import Find, choose_viewers
from arcsup.control.shapes import ViewingJson
from arcsup.errors import NoSuchObject, Refused
from arcsup.model import Display, DisplayType, State, Viewing
from arcsup.vm.displays import find_viewing
from tests.cli_runner import Cli
from tests.fake_supervisor import FakeSupervisor, make_status, serve_in_thread

PATIENCE = 30.0


def make_viewing(
    display: str,
    *,
    socket: str = "",
    address: str = "",
    port: int | None = None,
    frames: tuple[str, ...] = (),
) -> ViewingJson:
    return {
        "display": display,
        "socket": socket,
        "address": address,
        "port": port,
        "frames": list(frames),
    }


def having(*programs: str) -> Find:
    return lambda name: f"/bin/{name}" if name in programs else None


EVERYTHING = having("looking-glass-client", "remote-viewer", "spicy", "vncviewer")


@pytest.mark.parametrize(
    ("viewing", "find", "expected"),
    [
        (
            make_viewing("spice", socket="/run/a/display.sock"),
            EVERYTHING,
            ["/bin/remote-viewer --title a spice+unix:///run/a/display.sock"],
        ),
        (
            make_viewing("spice", address="::1", port=5900),
            EVERYTHING,
            ["/bin/remote-viewer --title a spice://[::1]:5900"],
        ),
        (
            make_viewing("spice", socket="/s"),
            having("spicy"),
            ["/bin/spicy --title a --uri=spice+unix:///s"],
        ),
        (make_viewing("vnc", socket="/s"), EVERYTHING, ["/bin/vncviewer /s"]),
        (
            make_viewing("vnc", address="127.0.0.1", port=5901),
            EVERYTHING,
            ["/bin/vncviewer 127.0.0.1::5901"],
        ),
        (
            make_viewing("vnc", address="127.0.0.1", port=5901),
            having("remote-viewer"),
            ["/bin/remote-viewer --title a vnc://127.0.0.1:5901"],
        ),
        (
            make_viewing("spice", socket="/s", frames=("/dev/shm/f",)),
            EVERYTHING,
            [
                (
                    "/bin/looking-glass-client app:shmFile=/dev/shm/f win:title=a spice:host=/s"
                    " spice:port=0"
                )
            ],
        ),
        (
            make_viewing("spice", address="127.0.0.1", port=5905, frames=("/dev/kvmfr0", "/f-1")),
            EVERYTHING,
            [
                (
                    "/bin/looking-glass-client app:shmFile=/dev/kvmfr0 win:title=a"
                    " spice:host=127.0.0.1 spice:port=5905"
                ),
                "/bin/looking-glass-client app:shmFile=/f-1 win:title=a: monitor 2 spice:enable=no",
            ],
        ),
        (
            make_viewing("none", frames=("/f",)),
            EVERYTHING,
            ["/bin/looking-glass-client app:shmFile=/f win:title=a spice:enable=no"],
        ),
        (
            make_viewing("spice", socket="/s", frames=("/f",)),
            having("remote-viewer"),
            ["/bin/remote-viewer --title a spice+unix:///s"],
        ),
    ],
)
def test_the_client_fits_what_the_vm_has(
    viewing: ViewingJson, find: Find, expected: list[str]
) -> None:
    assert [" ".join(line) for line in choose_viewers("a", viewing, find).commands] == expected


@pytest.mark.parametrize(
    ("viewing", "find", "hint"),
    [
        (make_viewing("spice", socket="/s"), having("vncviewer"), "virt-viewer"),
        (make_viewing("vnc", socket="/s"), having("remote-viewer"), "tigervnc"),
        (make_viewing("vnc", address="::1", port=1), having(), "tigervnc"),
        (make_viewing("none", frames=("/f",)), having("remote-viewer"), "looking-glass-client"),
    ],
)
def test_what_to_install_is_said(viewing: ViewingJson, find: Find, hint: str) -> None:
    with pytest.raises(NoSuchObject) as caught:
        choose_viewers("a", viewing, find)

    assert f"install {hint}" in caught.value.hint


@pytest.mark.parametrize(
    ("display", "words"),
    [
        ("none", "no display"),
        ("egl-headless", "no display"),
        ("gtk", "window is QEMU's own"),
    ],
)
def test_what_nobody_can_look_at_is_refused(display: str, words: str) -> None:
    with pytest.raises(Refused, match=words):
        choose_viewers("a", make_viewing(display), EVERYTHING)


@pytest.mark.parametrize(
    ("frames", "display", "programs", "words"),
    [
        (("/f",), "spice", ("remote-viewer",), "install looking-glass-client"),
        (("/f",), "none", ("looking-glass-client",), "takes no keys"),
        ((), "spice", ("remote-viewer",), ""),
    ],
)
def test_what_could_be_better_is_told(
    frames: tuple[str, ...], display: str, programs: tuple[str, ...], words: str
) -> None:
    viewing = make_viewing(display, socket="/s", frames=frames)
    notes = choose_viewers("a", viewing, having(*programs)).notes

    assert (words in notes[0]) if words else notes == []


@pytest.mark.parametrize(
    ("display", "expected"),
    [
        (Display(), Viewing(DisplayType.NONE)),
        (Display(DisplayType.SPICE), Viewing(DisplayType.SPICE, "/run/s")),
        (
            Display(DisplayType.VNC, listen="0.0.0.0"),
            Viewing(DisplayType.VNC, address="127.0.0.1", port=5900),
        ),
        (
            Display(DisplayType.SPICE, listen="::", port=6000),
            Viewing(DisplayType.SPICE, address="::1", port=6000),
        ),
        (
            Display(DisplayType.SPICE, port=6000),
            Viewing(DisplayType.SPICE, address="127.0.0.1", port=6000),
        ),
    ],
)
def test_a_client_of_this_host_is_told_where_to_connect(
    display: Display, expected: Viewing
) -> None:
    assert find_viewing(display, Path("/run/s"), ()) == expected


@pytest.fixture
def cli(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Cli]:
    supervisor = FakeSupervisor()
    socket = tmp_path / "display"
    socket.touch()
    supervisor.add(
        make_status("web", viewing=Viewing(DisplayType.SPICE, str(socket))),
        make_status("secret", viewing=Viewing(DisplayType.SPICE, "/nowhere/display")),
        make_status("old", State.STOPPED),
    )
    monkeypatch.setenv("PATH", f"{tmp_path}/bin")
    (tmp_path / "bin").mkdir()
    with serve_in_thread(supervisor, tmp_path):
        yield Cli(supervisor, tmp_path, capsys)
    for thread in threading.enumerate():
        if thread.name == "watch-end":
            thread.join(PATIENCE)
            assert not thread.is_alive(), "view still asks for the end of a VM that nobody views"


def install_client(cli: Cli, script: str) -> None:
    client = cli.run_dir / "bin" / "remote-viewer"
    client.write_text(f"#!/bin/sh\n{script}\n")
    client.chmod(0o755)


def test_print_shows_the_command_and_starts_nothing(cli: Cli) -> None:
    install_client(cli, "exit 9")
    result = cli("view", "web", "--print")

    client, socket = cli.run_dir / "bin/remote-viewer", cli.run_dir / "display"
    assert result.out == f"{client} --title web spice+unix://{socket}\n"
    assert result.code == 0


def test_a_guest_that_gets_its_tools_is_seen_on_its_screen_not_by_its_frames(cli: Cli) -> None:
    socket = cli.run_dir / "display"
    viewing = Viewing(DisplayType.VNC, str(socket), frames=("/dev/shm/nowhere",))
    cli.supervisor.add(make_status("new", viewing=viewing, mode=("preinstall",)))
    for name in ("looking-glass-client", "vncviewer"):
        install_client(cli, "exit 0")
        (cli.run_dir / "bin/remote-viewer").rename(cli.run_dir / "bin" / name)

    assert cli("view", "new", "--print").out == f"{cli.run_dir}/bin/vncviewer {socket}\n"


def test_the_client_is_run_until_it_ends(cli: Cli) -> None:
    install_client(cli, f'echo "$@" >{cli.run_dir}/seen')

    assert cli("view", "web").code == 0
    assert (cli.run_dir / "seen").read_text().startswith("--title web spice+unix:///")


def test_a_client_that_fails_is_told(cli: Cli) -> None:
    install_client(cli, "exit 3")
    result = cli("view", "web")

    assert result.code == 1
    assert "remote-viewer --title web" in result.err
    assert "ended with 3" in result.err


def test_nothing_is_started_for_what_cannot_be_seen(cli: Cli) -> None:
    missing = cli("view", "web")
    assert (missing.code, "install virt-viewer" in missing.err) == (4, True)
    install_client(cli, "exit 0")
    stopped = cli("view", "old")
    assert (stopped.code, "old is stopped" in stopped.err) == (6, True)
    secret = cli("view", "secret")
    assert (secret.code, "viewer: USER" in secret.err) == (5, True)
