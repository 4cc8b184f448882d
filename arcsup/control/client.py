"""The client of the control socket: HTTP/1.0 over a unix socket, on the standard library's sockets.

http.client would do, but importing it (it brings the email package) takes longer than everything
else that ``arcsup list`` does. HTTP/1.0 has neither chunks nor connections that are kept.
"""

import json
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from arcsup.errors import (
    ArcsupError,
    DaemonUnreachable,
    NoSuchObject,
    NotPermitted,
    Refused,
    SpecError,
    Stuck,
    Terminal,
    TimedOut,
    Transient,
    UsageError,
)
from arcsup.places import READ_ONLY_SOCKET, SOCKET_PATH_LIMIT, Places

ANSWER_TIMEOUT = 30.0
"""Seconds that the daemon may take to answer, beyond what the request itself asks it to wait."""

SILENCE_TIMEOUT = 60.0
"""Seconds without even a heartbeat after which an event stream counts as dead."""

_BY_CODE: dict[str, type[ArcsupError]] = {
    error.code: error
    for error in (
        DaemonUnreachable,
        NoSuchObject,
        NotPermitted,
        Refused,
        SpecError,
        Stuck,
        Terminal,
        TimedOut,
        Transient,
        UsageError,
    )
}


def find_socket(run: str | None) -> Path:
    """Return the control socket: of ``run``, else ARCSUP_RUN, else where a daemon is.

    Without either, a user's own daemon comes before the system's.
    """
    chosen = run or os.environ.get("ARCSUP_RUN")
    if chosen:
        return Path(chosen) / "arcsup.sock"
    own = Places.default().socket
    system = Places.default(system=True).socket
    return own if _may_exist(own) or not _may_exist(system) else system


def _may_exist(path: Path) -> bool:
    """Tell whether there is something, or something that we are not allowed to see."""
    try:
        path.stat()
    except PermissionError:
        return True
    except OSError:
        return False
    return True


class Client:
    """Asks the daemon. Every method raises DaemonUnreachable, NotPermitted, TimedOut, or the error
    that the daemon answered.
    """

    def __init__(self, socket_path: Path) -> None:
        self.socket_path = socket_path

    def get(self, path: str, query: dict[str, str] | None = None, *, patience: float = 0) -> Any:
        """Return the JSON at ``path``; ``patience``: seconds that the request asks to wait."""
        return json.loads(self._ask("GET", _join(path, query), None, patience))

    def post(
        self,
        path: str,
        body: dict[str, Any] | None = None,
        query: dict[str, str] | None = None,
        *,
        patience: float = 0,
    ) -> Any:
        """Post ``body`` as JSON and return the JSON that comes back."""
        return json.loads(self.post_for_bytes(path, body, query, patience=patience))

    def post_for_bytes(
        self,
        path: str,
        body: dict[str, Any] | None = None,
        query: dict[str, str] | None = None,
        *,
        patience: float = 0,
    ) -> bytes:
        """Post ``body`` as JSON and return what comes back as it is."""
        return self._ask("POST", _join(path, query), body, patience)

    def stream(
        self, path: str, query: dict[str, str] | None = None, body: dict[str, Any] | None = None
    ) -> Iterator[tuple[int, Any]]:
        """Yield (number, JSON) of each server-sent event until the daemon ends the stream.

        With a ``body`` it is posted. An event without a number has that of the one before, or 0.
        """
        method = "GET" if body is None else "POST"
        with self._open(method, _join(path, query), body, SILENCE_TIMEOUT) as (answer, _):
            number, data = 0, ""
            for raw in answer:
                line = raw.decode().rstrip("\r\n")
                field, _, value = line.partition(": ")
                if field == "id":
                    number = int(value)
                elif field == "data":
                    data = value
                elif not line and data:
                    yield number, json.loads(data)
                    data = ""

    def _ask(self, method: str, target: str, body: dict[str, Any] | None, patience: float) -> bytes:
        with self._open(method, target, body, patience + ANSWER_TIMEOUT) as (answer, length):
            content = answer.read(length)
        if len(content) < length:
            raise DaemonUnreachable("the daemon ended before it had answered")
        return content

    @contextmanager
    def _open(
        self, method: str, target: str, body: dict[str, Any] | None, timeout: float
    ) -> Iterator[tuple[BufferedReader, int]]:
        """Yield the body of a successful answer and its length in bytes (-1: until the end)."""
        content = b"" if body is None else json.dumps(body).encode()
        head = (
            f"{method} {target} HTTP/1.0\r\nHost: localhost\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        )
        try:
            with self._connect(method, timeout) as connection, connection.makefile("rb") as answer:
                with suppress(BrokenPipeError):  # Who is refused at the door is told why as well.
                    connection.sendall(head.encode() + content)
                status, length = _read_head(answer)
                if not 200 <= status < 300:
                    raise _make_error(status, answer.read(length))
                yield answer, length
        except TimeoutError:
            raise TimedOut(
                f"the daemon did not answer within {timeout:.0f} s", "its log may tell why"
            ) from None
        except ConnectionError:
            raise DaemonUnreachable("the daemon ended before it had answered") from None

    def _connect(self, method: str, timeout: float) -> socket.socket:
        try:
            return _connect_to(self.socket_path, timeout)
        except NotPermitted:
            # Who may only look may be in the group of the other socket.
            reading = self.socket_path.with_name(READ_ONLY_SOCKET)
            if method != "GET" or not os.access(reading, os.R_OK | os.W_OK):
                raise
            return _connect_to(reading, timeout)


def _connect_to(socket_path: Path, timeout: float) -> socket.socket:
    path = os.fspath(socket_path)
    if len(os.fsencode(path)) > SOCKET_PATH_LIMIT:
        raise DaemonUnreachable(
            f"{path}: longer than {SOCKET_PATH_LIMIT} bytes, no socket can be there"
        )
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # With a time-out of Python's own, connect would not wait for a daemon whose backlog is
        # full (unix(7), EAGAIN). The kernel's is whole seconds and microseconds (socket(7)).
        seconds, fraction = divmod(timeout, 1)
        patience = struct.pack("ll", int(seconds), max(1, int(fraction * 1e6)))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, patience)
        connection.connect(path)
        connection.settimeout(timeout)
    except PermissionError:
        connection.close()
        raise NotPermitted(
            f"you may not use {path}", "run as root, or join the group that owns the socket"
        ) from None
    except OSError as error:
        connection.close()
        raise DaemonUnreachable(
            f"no daemon at {path}: {(error.strerror or str(error)).lower()}",
            "start it with `systemctl start arcsup` or `arcsup daemon`; --run names another",
        ) from None
    return connection


def follow_work(events: Iterator[tuple[int, Any]]) -> Iterator[float]:
    """Yield how far something is that the daemon does, in percent, until it is done.

    Raises what the daemon answers at its end, DaemonUnreachable where there is none.
    """
    for _, told in events:
        if "error" in told:
            raise _word_error(told["error"])
        yield float(told["percent"])
        if told.get("done"):
            return
    raise DaemonUnreachable("the daemon ended before it was done")


def vm_path(name: str, *rest: str) -> str:
    """Return the path of a VM, whatever is in its name."""
    return "/".join(["/v1/vms", quote(name, safe="", errors="surrogateescape"), *rest])


def _join(path: str, query: dict[str, str] | None) -> str:
    return f"{path}?{urlencode(query, errors='surrogateescape')}" if query else path


def _read_head(answer: BufferedReader) -> tuple[int, int]:
    """Return the status and the body's length in bytes (-1: until the end)."""
    words = _read_line(answer).split(maxsplit=2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not words[1].isdigit():
        raise DaemonUnreachable("what answers at the socket is no arcsup daemon")
    length = -1
    while line := _read_line(answer):
        key, _, value = line.partition(b":")
        if key.lower() == b"content-length":
            length = int(value)
    return int(words[1]), length


def _read_line(answer: BufferedReader) -> bytes:
    line = answer.readline()
    if not line.endswith(b"\n"):
        raise DaemonUnreachable("the daemon ended before it had answered")
    return line.strip()


def _make_error(status: int, body: bytes) -> ArcsupError:
    try:
        return _word_error(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return ArcsupError(f"the daemon answered {status}: {body[:200].decode(errors='replace')}")


def _word_error(error: dict[str, str]) -> ArcsupError:
    code, message, hint = error["code"], error["message"], error["hint"]
    return _BY_CODE.get(code, ArcsupError)(message, hint)
