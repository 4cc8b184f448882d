"""Listening sockets, made before the program that will serve them is started.

A client can connect from the first moment: connections wait in the backlog until the program
accepts them, so nobody polls for a socket file to appear.
"""

import os
import socket
import stat
from pathlib import Path

from attrs import frozen

from arcsup.errors import Terminal
from arcsup.places import SOCKET_PATH_LIMIT
from arcsup.vm.options import escape

_BACKLOG = 16


@frozen
class Listener:
    """A unix socket: its path and, where arcsup made it, the listening file descriptor.

    ``fd`` is None where the program is to bind the path itself (a command line that is only
    printed). The descriptor belongs to whoever called ``listen_unix``: ``close`` it once the
    program that inherits it is started.
    """

    path: Path
    fd: int | None = None

    def close(self) -> None:
        """Close the descriptor; the socket stays where its heir listens."""
        if self.fd is not None:
            os.close(self.fd)


def listen_unix(path: Path) -> Listener:
    """Bind a socket (0600, in a folder of 0700) and listen; a stale socket file gives way.

    Raises:
        Terminal: the path is too long, is taken by something else, or cannot be made.
    """
    check_socket_path(path)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _remove_stale(path)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.bind(os.fspath(path))
            path.chmod(0o600)
            sock.listen(_BACKLOG)
            return Listener(path, sock.detach())
    except OSError as error:
        raise Terminal(
            f"{path}: cannot make the socket: {error.strerror}",
            hint="look at the owner and the free space of the runtime directory",
        ) from error


def check_socket_path(path: Path) -> None:
    """Raise Terminal for a path that the kernel cannot bind a socket to."""
    length = len(os.fsencode(path))
    if length > SOCKET_PATH_LIMIT:
        raise Terminal(
            f"{path}: {length} bytes are too long for a socket (at most {SOCKET_PATH_LIMIT})",
            hint="use a shorter runtime directory (--run, runtimeDir) or a shorter VM name",
        )


def _remove_stale(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise Terminal(f"{path}: is there and is no socket", hint="move it away")
    path.unlink()


def chardev_place(listener: Listener) -> str:
    """Return where a ``-chardev socket`` server listens: the descriptor, else the path."""
    if listener.fd is not None:
        return f"fd={listener.fd}"
    return f"path={escape(listener.path)}"
