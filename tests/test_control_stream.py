"""Event streams without a network, where time is simulated."""

import math
from collections.abc import MutableMapping
from typing import Any

import trio
from trio.testing import MockClock

from arcsup.control.stream import HEARTBEAT, EventStream
from tests.fake_supervisor import FakeSupervisor, make_event

Message = MutableMapping[str, Any]


class Client:
    """Keeps what it is sent; leaves after a time."""

    def __init__(self, stays: float = math.inf) -> None:
        self.stays = stays
        self.sent: list[Message] = []

    async def receive(self) -> Message:
        await trio.sleep(self.stays)
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        await trio.lowlevel.checkpoint()
        self.sent.append(message)

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)


def open_stream(supervisor: FakeSupervisor, closing: trio.Event) -> EventStream:
    return EventStream(supervisor, closing, since=0, vm=None, follow=True)


async def test_a_quiet_stream_has_a_heartbeat(autojump_clock: MockClock) -> None:
    client = Client(stays=4 * HEARTBEAT - 1)

    await open_stream(FakeSupervisor(), trio.Event())({}, client.receive, client.send)

    assert client.body.count(b": still here\n\n") == 3


async def test_a_stream_ends_properly_when_the_daemon_does(autojump_clock: MockClock) -> None:
    client, closing = Client(), trio.Event()
    supervisor = FakeSupervisor()
    supervisor.log.append(make_event("last words"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(open_stream(supervisor, closing), {}, client.receive, client.send)
        await trio.sleep(1)
        closing.set()

    assert b"last words" in client.body
    assert client.sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}


async def test_a_client_that_leaves_ends_its_stream(autojump_clock: MockClock) -> None:
    client = Client(stays=5)

    await open_stream(FakeSupervisor(), trio.Event())({}, client.receive, client.send)

    assert trio.current_time() < HEARTBEAT * 2
