"""QMP on streams in memory: what a QEMU, or something that is none, may say and leave unsaid."""

import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from qemu.qmp import ConnectError, ExecInterruptedError
from qemu.qmp.qmp_client import ExecuteError
from trio.testing import MemoryReceiveStream, MemorySendStream, MockClock, memory_stream_pair

from arcsup.vm.qmp import (
    EVENT_BUFFER,
    EVENT_BYTES,
    LONGEST_SENTENCE,
    MAX_LINE,
    NonsenseError,
    Qmp,
    connect_qmp_socket,
    list_devices,
    open_qmp,
    query_status,
)

GREETING = {"QMP": {"version": {"qemu": {"major": 7, "minor": 2, "micro": 0}}, "capabilities": []}}

Stream = trio.StapledStream[MemorySendStream, MemoryReceiveStream]


class Peer:
    """The other end: it says what the test tells it to."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self._buffer = b""

    async def say(self, *messages: object) -> None:
        text = b"".join(json.dumps(message).encode() + b"\r\n" for message in messages)
        await self.stream.send_all(text)

    async def hear(self) -> dict[str, Any]:
        while b"\n" not in self._buffer:
            self._buffer += await self.stream.receive_some()
        line, _, self._buffer = self._buffer.partition(b"\n")
        heard: dict[str, Any] = json.loads(line)
        return heard

    async def answer(self, value: object) -> dict[str, Any]:
        command = await self.hear()
        await self.say({"return": value, "id": command["id"]})
        return command

    async def negotiate(self) -> None:
        await self.say(GREETING)
        assert (await self.answer({}))["execute"] == "qmp_capabilities"

    async def close(self) -> None:
        await self.stream.aclose()


@asynccontextmanager
async def session() -> AsyncIterator[tuple[Qmp, Peer]]:
    ours, theirs = memory_stream_pair()
    peer = Peer(theirs)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.negotiate)
        async with open_qmp(ours) as qmp:
            yield qmp, peer


async def test_a_greeting_is_answered_by_negotiation_and_then_commands_work() -> None:
    async with session() as (qmp, peer), trio.open_nursery() as nursery:
        nursery.start_soon(peer.answer, {"status": "running"})

        assert await qmp.execute("query-status") == {"status": "running"}


async def test_arguments_are_sent_as_they_are() -> None:
    async with session() as (qmp, peer), trio.open_nursery() as nursery:
        nursery.start_soon(qmp.execute, "qom-list", {"path": "/machine"})
        command = await peer.answer([])

    assert (command["execute"], command["arguments"]) == ("qom-list", {"path": "/machine"})


async def test_events_between_a_command_and_its_answer_are_kept_apart() -> None:
    async with session() as (qmp, peer), trio.open_nursery() as nursery:
        nursery.start_soon(answer_amid_events, peer)

        assert await qmp.execute("stop") == {}
        first, second = await qmp.events.receive(), await qmp.events.receive()

    assert (first.name, first.data) == ("STOP", {})
    assert (second.name, second.data) == ("RESET", {"guest": True})


async def answer_amid_events(peer: Peer) -> None:
    command = await peer.hear()
    await peer.say(
        {"event": "STOP"},
        {"return": {}, "id": command["id"]},
        {"event": "RESET", "data": {"guest": True}},
    )


async def test_a_refusal_is_raised_in_qemus_own_words() -> None:
    async with session() as (qmp, peer), trio.open_nursery() as nursery:
        nursery.start_soon(refuse, peer)

        with pytest.raises(ExecuteError, match="Device 'cd7' not found"):
            await qmp.execute("eject")


async def refuse(peer: Peer) -> None:
    command = await peer.hear()
    error = {"class": "GenericError", "desc": "Device 'cd7' not found"}
    await peer.say({"error": error, "id": command["id"]})


async def test_an_answer_later_than_another_commands_finds_its_own() -> None:
    async with session() as (qmp, peer):
        answers: dict[str, object] = {}

        async def ask(command: str) -> None:
            answers[command] = await qmp.execute(command)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, "a")
            nursery.start_soon(ask, "b")
            first, second = await peer.hear(), await peer.hear()
            for command in (second, first):
                await peer.say({"return": command["execute"], "id": command["id"]})

    assert answers == {"a": "a", "b": "b"}


async def test_the_end_of_the_stream_fails_what_waits_and_what_comes_later() -> None:
    async with session() as (qmp, peer):
        failed = trio.Event()

        async def wait_in_vain() -> None:
            with pytest.raises(ExecInterruptedError, match="query-status"):
                await qmp.execute("query-status")
            failed.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait_in_vain)
            await peer.hear()
            await peer.close()
            await failed.wait()
        assert [event async for event in qmp.events] == []
        with pytest.raises(ExecInterruptedError):
            await qmp.execute("quit")


@pytest.mark.parametrize(
    "first",
    [b"", b"SSH-2.0-OpenSSH_9.2\r\n", b"[]\n", b"\xff\n", b'{"QMP": 5}\n', b'{"return": {}}\n'],
)
async def test_what_does_not_greet_is_no_qemu(first: bytes) -> None:
    ours, theirs = memory_stream_pair()
    if first:
        await theirs.send_all(first)
    await theirs.aclose()

    with pytest.raises(ConnectError):
        async with open_qmp(ours):
            raise AssertionError("there is no session")


async def test_a_qemu_that_refuses_to_negotiate_gives_no_session() -> None:
    ours, theirs = memory_stream_pair()
    peer = Peer(theirs)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.say, GREETING)
        nursery.start_soon(refuse, peer)
        with pytest.raises(ConnectError, match="not negotiated"):
            async with open_qmp(ours):
                raise AssertionError("there is no session")


@pytest.mark.parametrize("line", [b"}{\n", b"[1]\n", b"\xff\xfe\n", b'"text"\n'])
async def test_garbage_ends_the_session_and_not_the_daemon(line: bytes) -> None:
    async with session() as (qmp, peer), trio.open_nursery() as nursery:
        nursery.start_soon(peer.stream.send_all, line)

        with pytest.raises(ExecInterruptedError):
            await qmp.execute("query-status")

        assert qmp.broken


@pytest.mark.parametrize(
    "answer",
    [{"error": 5}, {"error": {"class": "GenericError"}}, {"error": {"desc": 7, "class": []}}],
)
async def test_a_malformed_refusal_fails_its_command_alone(answer: dict[str, object]) -> None:
    async with session() as (qmp, peer), trio.open_nursery() as nursery:

        async def misanswer() -> None:
            command = await peer.hear()
            await peer.say({**answer, "id": command["id"]})

        nursery.start_soon(misanswer)
        with pytest.raises(ExecInterruptedError, match="makes no sense"):
            await qmp.execute("query-status")
        nursery.start_soon(peer.answer, {})
        assert await qmp.execute("query-status") == {}


async def test_answers_that_nobody_waits_for_are_passed_over() -> None:
    async with session() as (qmp, peer), trio.open_nursery() as nursery:
        await peer.say({"return": 1, "id": 999}, {"return": 2}, {"return": 3, "id": "x"})

        async def answer_twice() -> None:
            command = await peer.hear()
            await peer.say(*[{"return": n, "id": command["id"]} for n in (1, 2)])

        nursery.start_soon(answer_twice)
        assert await qmp.execute("query-status") == 1
        nursery.start_soon(peer.answer, "still there")
        assert await qmp.execute("query-status") == "still there"


async def test_a_line_without_an_end_ends_the_session() -> None:
    async with session() as (qmp, peer), trio.open_nursery() as nursery:
        nursery.start_soon(peer.stream.send_all, b"x" * (MAX_LINE + 1))
        with pytest.raises(ExecInterruptedError):
            await qmp.execute("query-status")
        assert "too long" in qmp.broken
        nursery.cancel_scope.cancel()


async def test_a_slow_reader_loses_events_and_is_told_and_commands_work_on() -> None:
    async with session() as (qmp, peer), trio.open_nursery() as nursery:
        await peer.say(*[{"event": f"E{n}"} for n in range(EVENT_BUFFER + 10)])
        nursery.start_soon(peer.answer, {})

        assert await qmp.execute("query-status") == {}
        assert qmp.lost_events
        assert (await qmp.events.receive()).name == "E0"


async def test_of_events_that_nobody_reads_no_more_is_kept_than_so_many_bytes() -> None:
    async with session() as (qmp, peer), trio.open_nursery() as nursery:
        long = {"event": "LONG", "data": {"word": "x" * 1000}}
        await peer.say(*[long] * EVENT_BUFFER)
        nursery.start_soon(peer.answer, {})
        assert await qmp.execute("query-status") == {}

        assert qmp.lost_events
        assert qmp.events.statistics().current_buffer_used <= EVENT_BYTES // 1000


async def test_an_event_too_long_to_be_kept_comes_without_its_data() -> None:
    async with session() as (qmp, peer):
        await peer.say({"event": "E" * 1000, "data": {"word": "x" * EVENT_BYTES}})
        event = await qmp.events.receive()

        assert (event.name, event.data, qmp.lost_events) == ("E" * 64, {}, True)


async def test_a_refusal_of_megabytes_is_kept_short() -> None:
    async with session() as (qmp, peer), trio.open_nursery() as nursery:
        nursery.start_soon(refuse_at_length, peer)
        with pytest.raises(ExecuteError) as refusal:
            await qmp.execute("eject")

    assert str(refusal.value) == "x" * LONGEST_SENTENCE


async def refuse_at_length(peer: Peer) -> None:
    command = await peer.hear()
    await peer.say({"error": {"class": "G", "desc": "x" * 10**6}, "id": command["id"]})


@pytest.mark.parametrize("answer", [None, 7, "running", [], [7], {"status": 7}, [{"name": {}}]])
@pytest.mark.parametrize("ask", [query_status, list_devices])
async def test_an_answer_that_makes_no_sense_is_an_error_of_the_monitors(
    ask: Callable[[Qmp], Awaitable[object]], answer: object
) -> None:
    if ask is list_devices and answer == []:
        return
    async with session() as (qmp, peer), trio.open_nursery() as nursery:
        nursery.start_soon(peer.answer, answer)
        with pytest.raises(NonsenseError):
            await ask(qmp)


async def test_what_is_no_message_is_not_repeated_as_a_whole() -> None:
    for line in (b"x" * 10**6 + b"\n", b"[" + b"7," * 10**6 + b"7]\n"):
        async with session() as (qmp, peer), trio.open_nursery() as nursery:
            nursery.start_soon(peer.stream.send_all, line)
            with pytest.raises(ExecInterruptedError):
                await qmp.execute("query-status")
            assert 0 < len(qmp.broken) < 200
            nursery.cancel_scope.cancel()


async def test_a_command_that_hangs_holds_up_no_other(autojump_clock: MockClock) -> None:
    async with session() as (qmp, peer), trio.open_nursery() as nursery:
        with trio.move_on_after(5) as limit:
            await qmp.execute("hangs")
        assert limit.cancelled_caught
        assert (await peer.hear())["execute"] == "hangs"
        nursery.start_soon(peer.answer, "later")

        assert await qmp.execute("query-status") == "later"


async def test_a_command_cut_off_half_sent_ends_the_session(autojump_clock: MockClock) -> None:
    async with session() as (qmp, _):
        sender = qmp_stream(qmp).send_stream

        async def block() -> None:
            await trio.sleep_forever()

        sender.send_all_hook = block
        with trio.move_on_after(5):
            await qmp.execute("half")
        sender.send_all_hook = None

        # Who knows how much of it was sent: the next command would be garbage to QEMU.
        with pytest.raises(ExecInterruptedError):
            await qmp.execute("query-status")
        assert [event async for event in qmp.events] == []


def qmp_stream(qmp: Qmp) -> Stream:
    stream = qmp._stream
    assert isinstance(stream, trio.StapledStream)
    return stream


async def test_leaving_the_session_closes_the_connection() -> None:
    async with session() as (_, peer):
        pass

    assert await peer.stream.receive_some() == b""


async def test_an_ordinary_end_is_no_breach() -> None:
    async with session() as (qmp, peer):
        await peer.close()
        assert [event async for event in qmp.events] == []

    assert qmp.broken == ""


async def test_a_monitor_that_others_wait_for_is_busy_and_not_the_wrong_server(
    short_dir: Path,
) -> None:
    path = short_dir / "qmp.sock"
    with ExitStack() as opened:
        listener = opened.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(path))
        listener.listen(0)
        waiting = opened.enter_context(socket.socket(socket.AF_UNIX))
        waiting.connect(str(path))

        with pytest.raises(BlockingIOError, match="others already wait for this monitor"):
            await connect_qmp_socket(path)
