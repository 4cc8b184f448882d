"""Files that somebody else has named: nothing else is opened, and nobody is waited for."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from arcsup import opening
from arcsup.opening import open_named


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (os.mkfifo, "FIFO"),
        (make_socket, "socket"),
        (Path.mkdir, "directory"),
        (lambda path: path.symlink_to("/dev/tty"), "device"),
    ],
)
def test_what_is_no_file_is_named(short_dir: Path, make: Callable[[Path], None], kind: str) -> None:
    make(short_dir / "it")

    for or_block_device, expected in ((False, "a regular file"), (True, "a file or a block dev")):
        with pytest.raises(OSError, match=f"is a {kind}, expected {expected}"):
            open_named(short_dir / "it", or_block_device=or_block_device)


def test_a_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "it").write_bytes(b"content")

    with open_named(tmp_path / "it") as stream:
        assert stream.read() == b"content"


def test_a_block_device_is_opened_only_where_one_may_be_named() -> None:
    devices = [path for path in Path("/dev").iterdir() if path.is_block_device()]
    for device in devices[:1]:
        with pytest.raises(OSError, match="is a device, expected a regular file"):
            open_named(device)


def test_what_becomes_a_pipe_after_the_look_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "it").touch()
    open_at_once = opening._open_at_once

    def exchange(path: str, flags: int) -> int:
        os.unlink(path)
        os.mkfifo(path)
        return open_at_once(path, flags)

    monkeypatch.setattr(opening, "_open_at_once", exchange)
    before = len(os.listdir("/proc/self/fd"))

    with pytest.raises(OSError, match="is a FIFO"):
        open_named(tmp_path / "it")

    assert len(os.listdir("/proc/self/fd")) == before
