"""The connections of a socket that hypercorn serves, by their descriptors.

hypercorn shields its writes from cancellation and has no limit for them, nor for the number of
clients; it gives us no other hold on its connections than their descriptors.
"""

import contextlib
import errno
import logging
import os
import select
import socket
import stat
import struct
from collections import defaultdict
from collections.abc import Iterator
from operator import itemgetter
from pathlib import Path

import trio
from attrs import define, field

logger = logging.getLogger(__name__)

LOOK = 5.0
"""Seconds between two looks at the clients."""

LOOKS = 6
"""A client that had no room for more at so many looks one after the other is dropped. What waits
for it is one answer, or one event; an answer fits into the daemon's memory but once or twice."""

MOST = 512
"""Connections that one user may have: past that the newest are dropped."""


def break_connections(socket_path: Path) -> None:
    """Shut down every connection that was accepted on ``socket_path``.

    A client that does not read (a stopped ``arcsup events -f``) would else hold up the daemon's
    end for ever.
    """
    for connection in find_connections(socket_path):
        with connection:
            _drop(connection, "did not read its answer")


async def tend_connections(socket_path: Path) -> None:
    """Drop clients that take nothing, and those beyond what a user may have, for ever."""
    watch = _Watch()
    while True:
        await trio.sleep(LOOK)
        watch.look(socket_path)


@define
class _Watch:
    """What is known of each connection, by its socket's inode."""

    _seen: dict[int, int] = field(factory=dict)
    """At how many looks it was there."""
    _full: dict[int, int] = field(factory=dict)
    """At how many looks in a row it had no room for more."""

    def look(self, socket_path: Path) -> None:
        seen: dict[int, int] = {}
        full: dict[int, int] = {}
        by_user: defaultdict[int, list[tuple[int, socket.socket]]] = defaultdict(list)
        with contextlib.ExitStack() as opened:
            for connection in find_connections(socket_path):
                opened.enter_context(connection)
                inode = os.fstat(connection.fileno()).st_ino
                seen[inode] = self._seen.get(inode, 0) + 1
                if _is_full(connection):
                    full[inode] = self._full.get(inode, 0) + 1
                if full.get(inode, 0) >= LOOKS:
                    _drop(connection, f"took nothing for {LOOK * LOOKS:.0f} s")
                else:
                    by_user[_peer_uid(connection)].append((-seen[inode], connection))
            for uid, connections in by_user.items():
                for _, connection in sorted(connections, key=itemgetter(0))[MOST:]:
                    _drop(connection, f"is one too many of user {uid}, who may have {MOST}")
        self._seen, self._full = seen, full


def find_connections(socket_path: Path) -> Iterator[socket.socket]:
    """Yield duplicates of our descriptors that are connections on ``socket_path``."""
    known = set()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            status = os.fstat(int(entry.name))
            # A duplicate of ours may have the number that the listing itself had.
            if not stat.S_ISSOCK(status.st_mode) or status.st_ino in known:
                continue
            known.add(status.st_ino)
            duplicate = socket.socket(fileno=os.dup(int(entry.name)))
        except OSError as error:
            # Closed since it was listed.
            if error.errno != errno.EBADF:
                raise
            continue
        if _is_connection(duplicate, socket_path):
            yield duplicate
        else:
            duplicate.close()


def _is_connection(sock: socket.socket, socket_path: Path) -> bool:
    listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    return sock.family == socket.AF_UNIX and not listens and sock.getsockname() == str(socket_path)


def _is_full(connection: socket.socket) -> bool:
    poll = select.poll()
    poll.register(connection, select.POLLOUT)
    return not poll.poll(0)


def _peer_uid(connection: socket.socket) -> int:
    size = struct.calcsize("3i")
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    _pid, uid, _gid = struct.unpack("3i", credentials)
    return int(uid)


def _drop(connection: socket.socket, why: str) -> None:
    with contextlib.suppress(OSError):
        # ENOTCONN: the other end has gone by now.
        connection.shutdown(socket.SHUT_RDWR)
        logger.warning("dropped a client that %s", why)
