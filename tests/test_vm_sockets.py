"""Listening sockets: there before their server, and never in anybody's way."""

import socket
import stat
from pathlib import Path

import pytest

from arcsup.errors import Terminal
from arcsup.vm.sockets import Listener, chardev_place, listen_unix


def test_a_client_can_connect_before_anybody_accepts(short_dir: Path) -> None:
    listener = listen_unix(short_dir / "vm" / "qmp.sock")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(listener.path))
    listener.close()

    assert stat.S_IMODE(listener.path.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(listener.path.stat().st_mode) == 0o600


def test_a_stale_socket_file_gives_way(short_dir: Path) -> None:
    for _ in range(2):
        listen_unix(short_dir / "qmp.sock").close()


def test_what_is_no_socket_is_left_alone(short_dir: Path) -> None:
    (short_dir / "qmp.sock").write_text("somebody's letter")

    with pytest.raises(Terminal, match="is no socket"):
        listen_unix(short_dir / "qmp.sock")
    assert (short_dir / "qmp.sock").read_text() == "somebody's letter"


def test_a_path_that_the_kernel_cannot_bind_is_refused(short_dir: Path) -> None:
    with pytest.raises(Terminal, match="too long for a socket") as caught:
        listen_unix(short_dir / ("x" * 107))
    assert "--run" in caught.value.hint


def test_a_folder_that_cannot_be_made_is_named(short_dir: Path) -> None:
    (short_dir / "file").touch()

    with pytest.raises(Terminal, match="cannot make the socket"):
        listen_unix(short_dir / "file" / "qmp.sock")


@pytest.mark.parametrize(
    ("listener", "place"),
    [(Listener(Path("/a"), 7), "fd=7"), (Listener(Path("/a,b")), "path=/a,,b")],
)
def test_a_chardev_uses_the_descriptor_where_there_is_one(listener: Listener, place: str) -> None:
    assert chardev_place(listener) == place
