"""The route that copies a disk of a VM that runs: it tells how far it is until it is done.

Server-sent events, each ``{"percent"}``, the last ``{"done": true}`` or an error as other routes
answer it. A client that leaves ends the copy, and nothing of it stays.
"""

import json
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import trio
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from arcsup.control.requests import make_error, read_body, take_text
from arcsup.control.stream import send_chunk, wait_for_disconnect
from arcsup.control.supervisor import Supervisor
from arcsup.errors import ArcsupError, DaemonUnreachable, UsageError

TELL = 1.0
"""Seconds between two events, also where nothing got further: a client knows that we are here."""

Work = Callable[[Callable[[float], None]], Awaitable[None]]
"""What is done; it is given what takes the percentage."""


def make_clone_handler(
    supervisor: Supervisor, closing: trio.Event
) -> Callable[[Request], Awaitable[Response]]:
    """Return the handler of ``POST /v1/vms/NAME/clone``."""

    async def clone(request: Request) -> Response:
        """Copy a disk; the answer begins when the copy does."""
        body = await read_body(request)
        name = str(request.path_params["name"])
        source, target = (_take_path(body, key) for key in ("disk", "target"))

        async def work(report: Callable[[float], None]) -> None:
            await supervisor.clone(name, source, target, report)

        return ProgressStream(work, closing)

    return clone


def _take_path(body: dict[str, Any], key: str) -> Path:
    path = Path(take_text(body, key))
    if not path.is_absolute():
        raise UsageError(f"{key!r} must be an absolute path, got {str(path)!r}")
    return path


class ProgressStream(Response):
    """Runs ``work`` while the client listens. What is refused at once has a status of its own."""

    media_type = "text/event-stream"

    def __init__(self, work: Work, closing: trio.Event) -> None:
        super().__init__(headers={"cache-control": "no-store"})
        # The length is not known before the end.
        del self.headers["content-length"]
        self._work = work
        self._closing = closing
        self._percent: float | None = None
        self._news = trio.Event()
        """Set when the work has begun, and when it has ended."""
        self._ended = False
        self._left = False
        self._error: ArcsupError | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request (ASGI)."""
        working = trio.CancelScope()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_client, receive, working)
            nursery.start_soon(self._watch_daemon, working)
            nursery.start_soon(self._run, working)
            # Nothing is sent by those, which can be cancelled: half a message is none.
            await self._news.wait()
            if self._ended and self._error is not None:
                refusal = make_error(self._error.code, self._error.message, self._error.hint)
                await refusal(scope, receive, send)
            elif not self._left:
                await self._tell(send)
            nursery.cancel_scope.cancel()

    async def _tell(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        while not self._ended:
            self._news = trio.Event()
            await _send_event(send, {"percent": round(self._percent or 0.0, 1)})
            with trio.move_on_after(TELL):
                await self._news.wait()
        if not self._left:
            await _send_event(send, _word(self._error))
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _run(self, working: trio.CancelScope) -> None:
        try:
            with working:
                await self._work(self._report)
        except ArcsupError as error:
            self._error = self._error or error
        finally:
            self._ended = True
            self._news.set()

    def _report(self, percent: float) -> None:
        if self._percent is None:
            self._news.set()
        self._percent = percent

    async def _watch_client(self, receive: Receive, working: trio.CancelScope) -> None:
        await wait_for_disconnect(receive)
        self._left = True
        working.cancel()

    async def _watch_daemon(self, working: trio.CancelScope) -> None:
        await self._closing.wait()
        self._error = DaemonUnreachable(
            "the daemon is ending; nothing was copied", "ask again when the daemon is back"
        )
        working.cancel()


def _word(error: ArcsupError | None) -> Mapping[str, Any]:
    if error is None:
        return {"percent": 100.0, "done": True}
    return {"error": {"code": error.code, "message": error.message, "hint": error.hint}}


async def _send_event(send: Send, value: Mapping[str, Any]) -> None:
    await send_chunk(send, f"data: {json.dumps(value)}\n\n".encode())
