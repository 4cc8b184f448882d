"""Uevents get lost: a socket that is not read for too long overflows, once and for all."""

import errno
import select
import socket
from pathlib import Path

import pytest

from tests.lab.kernel import Uevents, create, write


def flood(path: Path) -> None:
    for _ in range(200):
        write(path / "uevent", "change")


def test_an_overflowed_socket_says_enobufs_once_and_has_lost_events(
    mtty: Path, uuid: str, uevents: Uevents
) -> None:
    uevents.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    flood(mtty)
    with pytest.raises(OSError, match="buffer") as caught:
        uevents.next()
    assert caught.value.errno == errno.ENOBUFS
    assert 0 < len(uevents.seen()) < 200
    create(mtty, "mtty-1", uuid)
    assert uevents.wait_for("bind", uuid).subsystem == "mdev"


def test_poll_reports_the_overflow_as_an_error_until_so_error_is_read(
    mtty: Path, uevents: Uevents
) -> None:
    uevents.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    flood(mtty)
    poll = select.poll()
    poll.register(uevents.socket, select.POLLIN)
    assert poll.poll(0)[0][1] & select.POLLERR
    assert poll.poll(0)[0][1] & select.POLLERR, "looking does not clear it"
    error = uevents.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    assert error == errno.ENOBUFS
    assert not poll.poll(0)[0][1] & select.POLLERR
