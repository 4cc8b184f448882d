"""Server-sent events (HTML Living Standard, "Server-sent events") from the event log."""

import json
from collections.abc import Awaitable, Callable
from contextlib import aclosing

import trio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from arcsup.control.supervisor import Supervisor
from arcsup.control.views import view_event
from arcsup.model import Event

HEARTBEAT = 15.0
"""Seconds between comments: a client that is gone without a word is noticed by them."""


def format_event(number: int, event: Event) -> bytes:
    """Return one server-sent event; JSON has no newlines, so ``data`` is one line."""
    return f"id: {number}\ndata: {json.dumps(view_event(event))}\n\n".encode()


class EventStream(Response):
    """Events after ``since``; with ``follow`` for ever, until the client leaves or ``closing``.

    Starlette's StreamingResponse leaves the generator to the garbage collector when the client
    leaves; this one closes it.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        supervisor: Supervisor,
        closing: trio.Event,
        *,
        since: int,
        vm: str | None,
        follow: bool,
        heartbeat: float = HEARTBEAT,
    ) -> None:
        super().__init__(headers={"cache-control": "no-store"})
        # The length is not known before the end.
        del self.headers["content-length"]
        self._supervisor = supervisor
        self._closing = closing
        self._since = since
        self._vm = vm
        self._follow = follow
        self._heartbeat = heartbeat

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request (ASGI)."""
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        if self._follow:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._send_new, send)
                nursery.start_soon(self._send_heartbeats, send)
                nursery.start_soon(_cancel_after, self._closing.wait, nursery.cancel_scope)
                await wait_for_disconnect(receive)
                nursery.cancel_scope.cancel()
        else:
            for number, event in self._supervisor.events(self._since, self._vm):
                await send_chunk(send, format_event(number, event))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_new(self, send: Send) -> None:
        # A comment at once: the client sees that it is connected before anything happens.
        await send_chunk(send, b": arcsup\n\n")
        async with aclosing(self._supervisor.follow(self._since, self._vm)) as events:
            async for number, event in events:
                await send_chunk(send, format_event(number, event))

    async def _send_heartbeats(self, send: Send) -> None:
        while True:
            await trio.sleep(self._heartbeat)
            await send_chunk(send, b": still here\n\n")


async def send_chunk(send: Send, chunk: bytes) -> None:
    """Send a piece of a body that goes on."""
    await send({"type": "http.response.body", "body": chunk, "more_body": True})


async def wait_for_disconnect(receive: Receive) -> None:
    """Return when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _cancel_after(wait: Callable[[], Awaitable[None]], scope: trio.CancelScope) -> None:
    await wait()
    scope.cancel()
