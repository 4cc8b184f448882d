"""The connections of one listening socket: who may have how many, and who is dropped.

hypercorn shields its writes from cancellation and has no limit for them, nor for the number of
clients: a connection that it does not end is shut down here. Descriptors are what the supervision
of VMs lives on, so clients get only a part of what the process may have.
"""

import contextlib
import errno
import json
import logging
import os
import resource
import select
import socket
import struct
from collections.abc import Awaitable, Callable

import trio
from attrs import define, field, frozen

from arcsup.errors import is_shortage

logger = logging.getLogger(__name__)

LOOK = 5.0
"""Seconds between two looks at the clients."""

LOOKS = 6
"""A client that had no room for more at so many looks one after the other is dropped. What waits
for it is one answer, or one event; an answer fits into the daemon's memory but once or twice."""

LOOKS_AFTER_IT_LEFT = 12
"""One whose client has left at so many looks is ended: hypercorn waits for ever to hand on the rest
of a body that nobody asks for, and does not see then that the client has gone."""

MOST = 512
"""Connections that one user may have where anything may be asked."""

MOST_READING = 64
"""The same on the socket for reading: a monitor needs one, and one more while it restarts."""

AFTER_A_FAILURE = 0.1
"""Seconds after which a connection is accepted again when the kernel could not give one."""

TOLD_AGAIN = 60.0
"""Seconds within which it is logged only once that a user's connections are refused."""

_AT_THE_LIMIT = frozenset({errno.EMFILE, errno.ENFILE})


@frozen
class Limits:
    """How many connections a socket may have: of one user, and of all together.

    The daemon's own user and root count for themselves alone: others never keep them out.
    """

    of_user: int
    of_all: int


def find_limits(*, read_only: bool) -> Limits:
    """Return what the descriptors of this process allow now.

    Both sockets, with root and the daemon's own user on each, have at most 5/8 of them.
    """
    descriptors, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if read_only:
        return Limits(
            min(MOST_READING, descriptors // 32), min(4 * MOST_READING, descriptors // 16)
        )
    return Limits(min(MOST, descriptors // 8), min(4 * MOST, descriptors // 4))


@define(eq=False)
class _Connection:
    stream: trio.SocketStream
    uid: int
    served: trio.CancelScope = field(factory=trio.CancelScope)
    full: int = 0
    """At how many looks in a row it had no room for more."""
    left: int = 0
    """At how many looks in a row its client had closed it."""

    def look(self) -> None:
        """Count how often it has been the same."""
        if (descriptor := self.stream.socket.fileno()) < 0:
            return  # It is closed, and its task about to end.
        poll = select.poll()
        poll.register(descriptor, select.POLLOUT)
        state = dict(poll.poll(0)).get(descriptor, 0)
        # A client that only has nothing more to say is no POLLHUP (unix_poll() in the kernel).
        self.left = self.left + 1 if state & select.POLLHUP else 0
        self.full = self.full + 1 if not state else 0

    def drop(self, why: str) -> None:
        with contextlib.suppress(OSError):
            # ENOTCONN: the other end has gone by now.
            self.stream.socket.shutdown(socket.SHUT_RDWR)
            logger.warning("dropped a client that %s", why)


@define(eq=False)
class Connections:
    """Accepts connections, has each served, and drops those that take nothing."""

    serve: Callable[[trio.SocketStream, int], Awaitable[None]]
    """Serves a connection of a user, by number, until it ends."""
    read_only: bool = False
    _open: set[_Connection] = field(factory=set)
    _told: dict[int, float] = field(factory=dict)
    """When something of a user was last logged, on trio's clock; below 0: nobody's own."""
    _spare: int = field(factory=lambda: _open_spare())
    """A descriptor to give up when there is no other: with it, who comes can be sent away."""

    def close(self) -> None:
        """Give back the descriptor that is kept."""
        if self._spare >= 0:
            os.close(self._spare)
            self._spare = -1

    async def accept(self, listener: socket.socket, handlers: trio.Nursery) -> None:
        """Take in who comes to ``listener``, for ever; each is served in ``handlers``."""
        listener.setblocking(False)
        while True:
            try:
                await trio.lowlevel.wait_readable(listener)
                accepted, _ = listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                continue  # Whoever it was has left.
            except OSError as error:
                self._tell(-1, f"no connection can be accepted: {error.strerror}")
                if error.errno in _AT_THE_LIMIT:
                    self._send_one_away(listener)
                await trio.sleep(AFTER_A_FAILURE)
                continue
            uid = _peer_uid(accepted)
            if why := self._find_refusal(uid):
                self._tell(uid, f"refused a connection: {why}")
                _refuse(accepted, why)
            else:
                stream = trio.SocketStream(trio.socket.from_stdlib_socket(accepted))
                connection = _Connection(stream, uid)
                self._open.add(connection)
                handlers.start_soon(self._serve, connection)

    async def _serve(self, connection: _Connection) -> None:
        try:
            with connection.served:
                await self.serve(connection.stream, connection.uid)
        except Exception as error:
            # One connection's trouble is not the daemon's.
            if is_shortage(error):
                self._tell(-1, f"a connection was lost: {error}")
            elif self._is_due(-2):
                # hypercorn fails on some clients that break off, who could fill the log by that.
                logger.exception("serving a connection went wrong")
        finally:
            self._open.discard(connection)
            await trio.aclose_forcefully(connection.stream)

    def _find_refusal(self, uid: int) -> str:
        """Return why no further connection of a user is taken, "" if it is."""
        limits = find_limits(read_only=self.read_only)
        if sum(it.uid == uid for it in self._open) >= limits.of_user:
            return f"it is one too many of user {uid}, who may have {limits.of_user}"
        trusted = {0, os.geteuid()}
        if uid not in trusted and sum(it.uid not in trusted for it in self._open) >= limits.of_all:
            return f"all users together may have {limits.of_all}"
        return ""

    def _tell(self, uid: int, what: str) -> None:
        if self._is_due(uid):
            logger.warning("%s (said at most once in %.0f s)", what, TOLD_AGAIN)

    def _is_due(self, uid: int) -> bool:
        """Tell whether something of a user is to be logged; it counts as logged then."""
        now = trio.current_time()
        due = now - self._told.get(uid, -TOLD_AGAIN) >= TOLD_AGAIN
        if due:
            self._told[uid] = now
        return due

    def _send_one_away(self, listener: socket.socket) -> None:
        """Accept with the spare descriptor and close: who waits in vain would ask for ever."""
        self.close()
        with contextlib.suppress(OSError):
            accepted, _ = listener.accept()
            _refuse(accepted, "the daemon has no file descriptor left")
        self._spare = _open_spare()

    async def tend(self) -> None:
        """Drop clients that take nothing, and what is left of those that have gone, for ever."""
        while True:
            await trio.sleep(LOOK)
            for connection in list(self._open):
                connection.look()
                if connection.full >= LOOKS:
                    connection.drop(f"took nothing for {LOOK * LOOKS:.0f} s")
                if connection.left >= LOOKS_AFTER_IT_LEFT:
                    connection.served.cancel()

    def break_all(self) -> None:
        """Shut down every connection.

        A client that does not read (a stopped ``arcsup events -f``) would else hold up the daemon's
        end for ever.
        """
        for connection in self._open:
            connection.drop("did not read its answer")


def _open_spare() -> int:
    """Return a descriptor of nothing, -1 when not even that can be had."""
    try:
        return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1


def _refuse(accepted: socket.socket, why: str) -> None:
    error = {"code": "transient", "message": why, "hint": "close some, or ask again later"}
    body = json.dumps({"error": error}).encode()
    head = (
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    with accepted, contextlib.suppress(OSError):
        accepted.setblocking(False)
        accepted.send(head.encode() + body)


def _peer_uid(connection: socket.socket) -> int:
    size = struct.calcsize("3i")
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    _pid, uid, _gid = struct.unpack("3i", credentials)
    return int(uid)
