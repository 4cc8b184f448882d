"""Clients that take nothing, say nothing, or come in hundreds: dropped, and nobody else notices."""

import json
import os
import resource
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, closing, contextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from arcsup.control import connections
from arcsup.control.requests import BODY_DEADLINE, LARGE_BODIES, SMALL_BODY
from arcsup.control.server import REQUEST_TIME, serve_control
from arcsup.model import VmName, VmStatus
from tests.fake_supervisor import FakeSupervisor, make_event, make_status

GET_VMS = b"GET /v1/vms HTTP/1.1\r\nHost: arcsup\r\n\r\n"
FOLLOW = b"GET /v1/events HTTP/1.1\r\nHost: arcsup\r\n\r\n"


@pytest.fixture
def supervisor() -> FakeSupervisor:
    """Return one whose list and events are longer than a socket takes."""
    supervisor = FakeSupervisor()
    for number in range(2000):
        supervisor.add(make_status(f"vm{number}"))
    for _ in range(200):
        supervisor.log.append(make_event("x" * 10_000))
    return supervisor


@asynccontextmanager
async def serving(
    supervisor: FakeSupervisor, path: Path, *, read_only: bool = False
) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(serve_control, read_only=read_only), supervisor, path)
        yield
        nursery.cancel_scope.cancel()


async def ask(path: Path, request: bytes = GET_VMS) -> bytes:
    """Return the beginning of an answer."""
    async with await trio.open_unix_socket(path) as stream:
        await stream.send_all(request)
        return bytes(await stream.receive_some(1000))


async def read_to_the_end(stream: trio.SocketStream) -> int:
    """Return how many bytes are still to be had before the daemon's side ends."""
    return sum([len(chunk) async for chunk in stream])


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("request_", [GET_VMS, FOLLOW])
async def test_a_client_that_never_reads_is_dropped_with_a_reason(
    supervisor: FakeSupervisor,
    tmp_path: Path,
    autojump_clock: MockClock,
    caplog: pytest.LogCaptureFixture,
    request_: bytes,
    *,
    read_only: bool,
) -> None:
    path = tmp_path / "arcsup.sock"
    async with serving(supervisor, path, read_only=read_only):
        async with await trio.open_unix_socket(path) as stalled:
            await stalled.send_all(request_)
            await trio.sleep(20)
            assert "dropped" not in caplog.text
            assert b"200" in await ask(path)
            await trio.sleep(20)

            assert await read_to_the_end(stalled) < 1_000_000
        assert "dropped a client that took nothing for 30 s" in caplog.text
        assert b"200" in await ask(path)


async def test_who_follows_and_hears_nothing_for_long_is_not_dropped(
    tmp_path: Path, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    path, supervisor = tmp_path / "arcsup.sock", FakeSupervisor()
    async with serving(supervisor, path), await trio.open_unix_socket(path) as reader:
        await reader.send_all(FOLLOW)
        # It does not look either, as one that was stopped for a while.
        await trio.sleep(600)
        supervisor.log.append(make_event("at last"))
        heard = b""
        while b"at last" not in heard and (chunk := await reader.receive_some(65536)):
            heard += chunk

    assert b"at last" in heard
    assert "dropped" not in caplog.text


@pytest.mark.parametrize("begun", [b"", b"GET /v1/v", b"GET /v1/vms HTTP/1.1\r\nHost: ar"])
async def test_who_does_not_finish_a_request_is_not_waited_for(
    tmp_path: Path, autojump_clock: MockClock, begun: bytes
) -> None:
    path = tmp_path / "arcsup.sock"
    async with serving(FakeSupervisor(), path), await trio.open_unix_socket(path) as client:
        if begun:
            await client.send_all(begun)
        with trio.fail_after(REQUEST_TIME + 5):
            await read_to_the_end(client)


async def test_who_writes_a_byte_now_and_then_is_not_waited_for(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    path = tmp_path / "arcsup.sock"
    request = b"GET /v1/vms HTTP/1.1\r\n" + b"X: y\r\n" * 1000
    async with serving(FakeSupervisor(), path), await trio.open_unix_socket(path) as client:
        with trio.fail_after(60), pytest.raises(trio.BrokenResourceError):
            await send_slowly(client, request)


async def send_slowly(client: trio.SocketStream, request: bytes) -> None:
    for number in range(len(request)):
        await client.send_all(request[number : number + 1])
        await trio.sleep(1)


async def test_a_body_that_comes_too_slowly_is_refused(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    path = tmp_path / "arcsup.sock"
    head = b"POST /v1/vms HTTP/1.1\r\nHost: arcsup\r\nContent-Length: 1000\r\n\r\n{"
    async with serving(FakeSupervisor(), path), await trio.open_unix_socket(path) as client:
        await client.send_all(head)
        with trio.fail_after(30):
            answer = b"".join([chunk async for chunk in client])

    assert b" 400 " in answer
    assert b"did not arrive within 10 s" in answer


@pytest.mark.parametrize(("read_only", "limit"), [(False, "MOST"), (True, "MOST_READING")])
async def test_a_user_who_has_all_that_he_may_gets_no_more(
    tmp_path: Path,
    autojump_clock: MockClock,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    limit: str,
    *,
    read_only: bool,
) -> None:
    monkeypatch.setattr(connections, limit, 10)
    path = tmp_path / "arcsup.sock"
    async with serving(FakeSupervisor(), path, read_only=read_only), AsyncExitStack() as stack:
        clients = [await follow(path, stack) for _ in range(10)]
        for _ in range(5):
            async with await trio.open_unix_socket(path) as client:
                refused = await client.receive_some(1000)
            assert b" 503 " in refused
            assert b"one too many of user" in refused
        assert caplog.text.count("one too many of user") == 1

        await clients.pop().aclose()
        await trio.sleep(60)  # Who follows is known to have left when a heartbeat is sent.
        await follow(path, stack)


async def follow(path: Path, stack: AsyncExitStack) -> trio.SocketStream:
    client = await stack.enter_async_context(await trio.open_unix_socket(path))
    await client.send_all(FOLLOW)
    assert b"200" in await client.receive_some(1000)
    return client


async def test_clients_leave_descriptors_to_the_supervision_of_vms(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for descriptors in (64, 1024, 1 << 20):
        monkeypatch.setattr(resource, "getrlimit", lambda _, n=descriptors: (n, n))
        both = [connections.find_limits(read_only=value) for value in (False, True)]
        # All others, root, and a daemon's own user that is not root.
        assert sum(it.of_all + 2 * it.of_user for it in both) <= descriptors * 5 // 8
        assert min(it.of_user for it in both) >= 2
        assert both[1].of_all <= both[0].of_all // 4


async def test_without_descriptors_who_comes_is_sent_away_and_the_others_are_served(
    tmp_path: Path, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "arcsup.sock"
    async with serving(FakeSupervisor(), path), AsyncExitStack() as stack:
        client = await follow(path, stack)
        waiting = [socket.socket(socket.AF_UNIX) for _ in range(2)]
        for it in waiting:
            stack.enter_context(it)
        with no_descriptors():
            for it in waiting:
                it.connect(str(path))
            await trio.sleep(10)
        for it in waiting:
            assert b"no file descriptor left" in it.recv(1000)
        assert "Too many open files" in caplog.text
        assert len(caplog.text.splitlines()) < 5
        with trio.move_on_after(1) as limit:
            await read_to_the_end(client)
        assert limit.cancelled_caught
        assert b"200" in await ask(path)


@contextmanager
def no_descriptors() -> Iterator[None]:
    """Let the process open nothing more for the block."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_http_2_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "arcsup.sock"
    # With it, a client could hold up hundreds of answers on a connection that has room
    # (RFC 9113, section 5.2).
    upgrade = (
        b"GET /v1/vms HTTP/1.1\r\nHost: arcsup\r\nConnection: Upgrade, HTTP2-Settings\r\n"
        b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n"
    )
    async with serving(FakeSupervisor(), path):
        async with await trio.open_unix_socket(path) as client:
            await client.send_all(upgrade)
            heard = b""
            with trio.move_on_after(5):
                while b"[]" not in heard and (chunk := await client.receive_some(65536)):
                    heard += chunk
        assert b"[]" not in heard
        assert b"200" in await ask(path)


@pytest.mark.parametrize("target", ["/v1/vms", "/v1/vms/db/clear"])
async def test_who_leaves_in_the_middle_of_a_body_that_nobody_reads_leaves_nothing_behind(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    monkeypatch.setattr(connections, "MOST_READING", 3)
    path = tmp_path / "arcsup.sock"
    head = f"POST {target} HTTP/1.1\r\nHost: a\r\nContent-Length: 5000000\r\n\r\n".encode()
    async with serving(FakeSupervisor(), path, read_only=True):
        for _ in range(3):
            async with await trio.open_unix_socket(path) as client:
                with trio.move_on_after(1):
                    await client.send_all(head + b" " * 5_000_000)
                assert b" 403 " in await client.receive_some(1000)
        async with await trio.open_unix_socket(path) as client:
            assert b" 503 " in await client.receive_some(1000), "each of them is still held"

        await trio.sleep(connections.LOOK * (connections.LOOKS_AFTER_IT_LEFT + 2))

        assert b" 200 " in await ask(path)


async def test_large_requests_wait_for_room_and_keep_no_small_one_waiting(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    path, large = tmp_path / "arcsup.sock", b" " * 3 * SMALL_BODY
    async with serving(FakeSupervisor(), path), AsyncExitStack() as stack:

        async def submit(body: bytes, length: int) -> trio.SocketStream:
            client = await stack.enter_async_context(await trio.open_unix_socket(path))
            head = f"POST /v1/gpus/release HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n"
            await client.send_all(head.encode() + body)
            return client

        holders = [await submit(large, 2 * len(large)) for _ in range(LARGE_BODIES)]
        await trio.sleep(BODY_DEADLINE / 2)
        late = await submit(b"[1]" + large, len(large) + 3)
        small = await submit(b"[1]", 3)
        await hear(small, b"must be a JSON object")
        with trio.move_on_after(BODY_DEADLINE / 3) as limit:
            await late.receive_some(1000)
        assert limit.cancelled_caught, "it waits"

        for client in holders:
            await hear(client, b"did not arrive")
        await hear(late, b"must be a JSON object")


async def test_who_finds_no_room_for_a_large_request_is_told_to_come_again(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, supervisor = tmp_path / "arcsup.sock", FakeSupervisor()

    async def never(*_: object) -> VmName:
        await trio.sleep_forever()
        raise AssertionError

    monkeypatch.setattr(FakeSupervisor, "submit", never)
    source = "#" * 2 * SMALL_BODY
    body = json.dumps({"file": "/one.yaml", "source": source}).encode()
    head = f"POST /v1/vms HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    async with serving(supervisor, path), AsyncExitStack() as stack:
        for _ in range(LARGE_BODIES):
            client = await stack.enter_async_context(await trio.open_unix_socket(path))
            await client.send_all(head + body)
        async with await trio.open_unix_socket(path) as client:
            await client.send_all(head + body)
            await hear(client, b"too many large requests are being read")


async def hear(client: trio.SocketStream, words: bytes) -> None:
    """Read until some words have come."""
    heard = b""
    while words not in heard:
        chunk = await client.receive_some(1000)
        assert chunk, heard
        heard += chunk


async def test_a_client_that_breaks_off_again_and_again_fills_no_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "arcsup.sock"

    async def fail(_stream: trio.SocketStream, _uid: int) -> None:
        raise trio.BusyResourceError("another task is sending")

    served = connections.Connections(fail)
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(path))
        listener.listen()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(served.accept, listener, nursery)
            for _ in range(20):
                async with await trio.open_unix_socket(path) as client:
                    await read_to_the_end(client)
            nursery.cancel_scope.cancel()
    served.close()

    assert caplog.text.count("serving a connection went wrong") == 1


async def test_requests_of_a_user_by_the_hundred_are_begun_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, supervisor = tmp_path / "arcsup.sock", FakeSupervisor()
    begun, together = 0, list[int]()

    def statuses(_self: FakeSupervisor) -> tuple[VmStatus, ...]:
        nonlocal begun
        begun += 1
        return ()

    async def count() -> None:
        nonlocal begun
        while True:
            together.append(begun)
            begun = 0
            await trio.lowlevel.checkpoint()

    monkeypatch.setattr(FakeSupervisor, "statuses", statuses)
    monkeypatch.setattr(connections, "_peer_uid", lambda _: 60956)
    async with serving(supervisor, path), AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(await trio.open_unix_socket(path)) for _ in range(60)
        ]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(count)
            for client in clients:
                await client.send_all(GET_VMS)
            for client in clients:
                await hear(client, b"[]")
            nursery.cancel_scope.cancel()

    assert max(together) == 1
