"""The control socket: bound and accepted on by us, each connection served by hypercorn.

hypercorn's own worker would accept whoever comes, and gives no hold on its connections.
"""

import contextlib
import grp
import logging
import os
import socket
import stat
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import cast

import trio
from attrs import define, frozen
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState, Framework
from hypercorn.utils import wrap_app
from starlette.types import ASGIApp, Receive, Scope, Send

from arcsup.control.app import make_app
from arcsup.control.connections import Connections
from arcsup.control.supervisor import Supervisor
from arcsup.errors import ArcsupError, NotPermitted, Refused, Terminal
from arcsup.keep_going import keep_going
from arcsup.places import SOCKET_PATH_LIMIT

logger = logging.getLogger(__name__)

SOCKET_MODE = 0o660
BACKLOG = 128

FOLDER_MODE = 0o755
"""Of the socket's folder where it has to be made again: members of the group pass through it."""

LOOK_AT_PLACE = 2.0
"""Seconds between two looks whether the socket is still where clients look for it."""

REQUEST_TIME = 30.0
"""Seconds within which a client has asked, or asks again. hypercorn's own five can pass before a
daemon that gets no CPU has read what is there."""

PIECE = 1 << 14
"""Bytes that are read of a connection at once."""

GRACE = 0.4
"""Seconds that requests under way get to end when the daemon ends."""

BREAK_AFTER = 0.6
"""Seconds after which connections that are still open are shut down."""


async def serve_control(
    supervisor: Supervisor,
    socket_path: Path,
    *,
    group: str | None = None,
    read_only: bool = False,
    tell: Callable[[str], None] = logger.warning,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve the control socket until cancelled; then end within a second and remove it.

    ``read_only`` serves another one, on which nothing can be changed.
    The socket is 0660 and belongs to ``group`` where one is given. A socket that a dead daemon
    left is replaced, and one of ours that somebody has removed is made again, of which ``tell``
    hears. Raises Refused when another daemon listens there, Terminal for a group that does not
    exist or a path that cannot be a socket, NotPermitted.
    """
    closing, served = trio.Event(), trio.Event()
    context, config = WorkerContext(None), _configure()
    app = _only_http_1(make_app(supervisor, closing, read_only=read_only))
    turns: dict[int, trio.Lock] = {}

    async def serve(stream: trio.SocketStream, uid: int) -> None:
        turn = None if uid in {0, os.geteuid()} else turns.setdefault(uid, trio.Lock())
        served = app if turn is None else _in_turn(app, turn)
        # Both are ASGI 3; Starlette types its messages as maps, hypercorn as TypedDicts.
        wrapped = wrap_app(cast("Framework", served), config.wsgi_max_body_size, "asgi")
        # hypercorn asks nothing of a stream that this one has not.
        plain = cast("trio.SSLStream[trio.SocketStream]", _InPieces(stream))
        await TCPServer(wrapped, config, context, ConnectionState({}), plain)

    async def hold_handlers(
        task_status: trio.TaskStatus[trio.Nursery] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        # Cancelled from outside, requests under way would be dropped without an answer.
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as handlers:
                task_status.started(handlers)
                await closing.wait()
                await context.terminated.set()
                handlers.cancel_scope.deadline = trio.current_time() + GRACE
        served.set()

    place = _Place(socket_path, group, tell)
    place.bind()
    connections = Connections(serve, read_only=read_only)
    async with trio.open_nursery() as nursery:
        try:
            handlers = await nursery.start(hold_handlers)
            nursery.start_soon(keep_going, "looking after clients", connections.tend)
            logger.info("listening on %s", socket_path)
            task_status.started()
            while True:
                await place.while_there(partial(_accept, connections, handlers))
                await place.bind_again()
        finally:
            closing.set()
            place.remove()
            with trio.move_on_after(BREAK_AFTER, shield=True):
                await served.wait()
            if not served.is_set():
                connections.break_all()
            connections.close()


async def _accept(
    connections: Connections, handlers: trio.Nursery, listener: socket.socket
) -> None:
    await keep_going("accepting", partial(connections.accept, listener, handlers))


@frozen
class _InPieces:
    """A connection that is read in pieces of at most PIECE bytes.

    hypercorn asks for 64 KiB at a time and keeps several before anybody asks for them: of hundreds
    of clients with long bodies that would be as many times 300 KiB.
    """

    _stream: trio.SocketStream

    @property
    def socket(self) -> trio.socket.SocketType:
        return self._stream.socket

    async def receive_some(self, most: int) -> bytes:
        return await self._stream.receive_some(min(most, PIECE))

    async def send_all(self, data: bytes) -> None:
        await self._stream.send_all(data)

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        await self._stream.aclose()


@define(eq=False)
class _Place:
    """Where a socket is, and the one of ours that is there."""

    path: Path
    group: str | None
    tell: Callable[[str], None]
    _listener: socket.socket | None = None
    _inode: int = 0

    def bind(self) -> None:
        """Listen there. Errors as of create_listener."""
        self._listener = create_listener(self.path, self.group)
        self._inode = self.path.lstat().st_ino

    async def while_there(self, accept: Callable[[socket.socket], Awaitable[None]]) -> None:
        """Have connections accepted until the socket is no longer where clients look for it."""
        assert self._listener is not None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept, self._listener)
            while True:
                await trio.sleep(LOOK_AT_PLACE)
                if not self._is_ours():
                    break
            nursery.cancel_scope.cancel()
        self._listener.close()
        self._listener = None

    async def bind_again(self) -> None:
        """Make the socket anew, and its folder: a cleaner of /run may have taken both."""
        told = ""
        while self._listener is None:
            try:
                if not self.path.parent.is_dir():
                    self.path.parent.mkdir(parents=True)
                    self.path.parent.chmod(FOLDER_MODE)
                self.bind()
            except (ArcsupError, OSError) as error:
                if told != (told := str(error)):
                    self.tell(f"{self.path} was removed and cannot be made again: {error}")
                await trio.sleep(LOOK_AT_PLACE)
        self.tell(f"{self.path} had been removed by somebody, and was made again")

    def _is_ours(self) -> bool:
        try:
            return self.path.lstat().st_ino == self._inode
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            return True  # Not seen: nothing says that it is gone.

    def remove(self) -> None:
        """Close the socket and remove it, unless it has been replaced by a later daemon's."""
        if self._listener is None:
            return
        self._listener.close()
        with contextlib.suppress(OSError):
            if self.path.lstat().st_ino == self._inode:
                self.path.unlink()


def _only_http_1(app: ASGIApp) -> ASGIApp:
    """Refuse HTTP/2, which hypercorn takes from whoever asks for it.

    With its flow control a client can hold up a hundred answers at a time while its connection
    has room (RFC 9113, section 5.2), and nobody would see it.
    """

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["http_version"] == "2":
            # Without a body: that would wait for room as well.
            await send({"type": "http.response.start", "status": 505, "headers": []})
            await send({"type": "http.response.body", "body": b""})
        else:
            await app(scope, receive, send)

    return answer


def _in_turn(app: ASGIApp, turn: trio.Lock) -> ASGIApp:
    """Begin the requests of one user one after the other, and let all others have a turn between.

    What a request makes is made in one go; of hundreds at once, everybody else would wait for all.
    """

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        async with turn:
            await trio.lowlevel.checkpoint()
        await app(scope, receive, send)

    return answer


def create_listener(socket_path: Path, group: str | None) -> socket.socket:
    """Bind and return the listening socket. Errors as in serve_control."""
    if len(os.fsencode(socket_path)) > SOCKET_PATH_LIMIT:
        raise Terminal(
            f"{socket_path}: longer than {SOCKET_PATH_LIMIT} bytes, no socket can be there",
            "choose a shorter runtime directory with --run",
        )
    group_id = None if group is None else find_group(group)
    _remove_stale_socket(socket_path)
    with contextlib.ExitStack() as cleanup_on_fail:
        listener = cleanup_on_fail.enter_context(
            socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        )
        try:
            _bind_privately(listener, socket_path)
            cleanup_on_fail.callback(socket_path.unlink, missing_ok=True)
            if group_id is not None:
                os.chown(socket_path, -1, group_id)
            socket_path.chmod(SOCKET_MODE)
            listener.listen(BACKLOG)
        except PermissionError as error:
            raise NotPermitted(
                f"{socket_path}: {error.strerror}", "choose a directory of yours with --run"
            ) from error
        except OSError as error:
            raise Terminal(f"{socket_path}: cannot listen there: {error.strerror}") from error
        cleanup_on_fail.pop_all()
    return listener


def find_group(group: str) -> int:
    """Return a group's number. Raises Terminal when there is none of that name."""
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise Terminal(
            f"there is no group {group!r} to give the control socket to",
            f"groupadd --system {group}, or name another group in the configuration",
        ) from None


def _configure() -> Config:
    config = Config()
    http_logger = logging.getLogger("arcsup.control.http")
    # At INFO hypercorn announces an address and a key to press, neither of them true here.
    http_logger.setLevel(logging.WARNING)
    config.errorlog = http_logger
    config.accesslog = None
    config.keep_alive_timeout = REQUEST_TIME
    config.include_server_header = False
    # Pieces of a body that are read before somebody asks for them.
    config.max_app_queue_size = 4
    return config


def _bind_privately(listener: socket.socket, socket_path: Path) -> None:
    # Nobody else may connect between bind and chmod.
    umask = os.umask(0o177)
    try:
        listener.bind(str(socket_path))
    finally:
        os.umask(umask)


def _remove_stale_socket(socket_path: Path) -> None:
    try:
        is_socket = stat.S_ISSOCK(socket_path.lstat().st_mode)
    except FileNotFoundError:
        return
    if not is_socket:
        raise Terminal(f"{socket_path}: in the way, and not a socket", "move it away")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(str(socket_path))
        except ConnectionRefusedError:
            socket_path.unlink()
            return
        except BlockingIOError:
            # A full backlog: somebody listens, and is busy.
            pass
    raise Refused(
        f"{socket_path}: another daemon listens there",
        "only one daemon can serve a runtime directory",
    )
