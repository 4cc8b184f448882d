"""The control socket: bound by us, served by hypercorn's trio worker, ended in time."""

import contextlib
import grp
import logging
import os
import socket
import stat
from pathlib import Path
from typing import cast

import trio
from hypercorn.config import Config
from hypercorn.trio import serve
from hypercorn.typing import Framework
from starlette.types import ASGIApp, Receive, Scope, Send

from arcsup.control.app import make_app
from arcsup.control.connections import break_connections, tend_connections
from arcsup.control.supervisor import Supervisor
from arcsup.errors import NotPermitted, Refused, Terminal
from arcsup.places import SOCKET_PATH_LIMIT

logger = logging.getLogger(__name__)

SOCKET_MODE = 0o660
BACKLOG = 128

REQUEST_TIME = 30.0
"""Seconds within which a client has asked, or asks again. hypercorn's own five can pass before a
daemon that gets no CPU has read what is there."""

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
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve the control socket until cancelled; then end within a second and remove it.

    ``read_only`` serves another one, on which nothing can be changed.
    The socket is 0660 and belongs to ``group`` where one is given. A socket that a dead daemon
    left is replaced. Raises Refused when another daemon listens there, Terminal for a group that
    does not exist or a path that cannot be a socket, NotPermitted.
    """
    closing = trio.Event()
    served = trio.Event()
    # Both are ASGI 3; Starlette types its messages as maps, hypercorn as TypedDicts.
    app = cast("Framework", _only_http_1(make_app(supervisor, closing, read_only=read_only)))

    async def serve_shielded(
        descriptor: int, task_status: trio.TaskStatus[object] = trio.TASK_STATUS_IGNORED
    ) -> None:
        # Cancelled from outside, hypercorn would drop requests under way without an answer.
        with trio.CancelScope(shield=True):
            await serve(
                app,
                _configure(descriptor),
                shutdown_trigger=closing.wait,
                task_status=task_status,
                mode="asgi",
            )
        served.set()

    listener = create_listener(socket_path, group)
    inode = socket_path.stat().st_ino
    # From here on the descriptor is hypercorn's, which closes it.
    descriptor = listener.detach()
    async with trio.open_nursery() as nursery:
        try:
            await nursery.start(serve_shielded, descriptor)
            # hypercorn makes it inheritable, for workers that we do not have.
            os.set_inheritable(descriptor, False)
            logger.info("listening on %s", socket_path)
            task_status.started()
            await tend_connections(socket_path)
        finally:
            closing.set()
            with trio.move_on_after(BREAK_AFTER, shield=True):
                await served.wait()
            if not served.is_set():
                break_connections(socket_path)
            _remove_socket(socket_path, inode)


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


def _configure(descriptor: int) -> Config:
    config = Config()
    config.bind = [f"fd://{descriptor}"]
    http_logger = logging.getLogger("arcsup.control.http")
    # At INFO hypercorn announces an address and a key to press, neither of them true here.
    http_logger.setLevel(logging.WARNING)
    config.errorlog = http_logger
    config.accesslog = None
    config.graceful_timeout = GRACE
    config.keep_alive_timeout = REQUEST_TIME
    config.include_server_header = False
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


def _remove_socket(socket_path: Path, inode: int) -> None:
    """Remove the socket, unless it has been replaced by a later daemon's."""
    with contextlib.suppress(FileNotFoundError):
        if socket_path.lstat().st_ino == inode:
            socket_path.unlink()
