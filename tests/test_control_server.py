import grp
import os
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from arcsup.control.app import Control
from arcsup.control.client import Client
from arcsup.control.server import create_listener, serve_control
from arcsup.errors import NotPermitted, Refused, Terminal
from arcsup.model import State, VmStatus
from tests.fake_supervisor import FakeSupervisor, make_event, make_status, serve_control_with_status

GET_VMS = b"GET /v1/vms HTTP/1.0\r\n\r\n"


@asynccontextmanager
async def serving(supervisor: FakeSupervisor, path: Path) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_control_with_status, supervisor, path)
        yield
        nursery.cancel_scope.cancel()


async def ask(path: Path, request: bytes) -> bytes:
    stream = await trio.open_unix_socket(path)
    async with stream:
        await stream.send_all(request)
        return b"".join([chunk async for chunk in stream])


async def test_the_socket_is_for_owner_and_group_only(tmp_path: Path) -> None:
    path = tmp_path / "arcsup.sock"
    async with serving(FakeSupervisor(), path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert (await ask(path, GET_VMS)).startswith(b"HTTP/1.1 200")


async def test_the_socket_belongs_to_the_group(tmp_path: Path) -> None:
    group = grp.getgrgid(os.getegid())
    with create_listener(tmp_path / "s", group.gr_name):
        assert (tmp_path / "s").stat().st_gid == group.gr_gid


async def test_a_group_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(Terminal, match="no group 'nobody-has-this'"):
        create_listener(tmp_path / "s", "nobody-has-this")


async def test_the_socket_is_gone_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "arcsup.sock"
    async with serving(FakeSupervisor(), path):
        pass

    assert not path.exists()


async def test_the_socket_of_a_later_daemon_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "arcsup.sock"
    async with serving(FakeSupervisor(), path):
        path.rename(tmp_path / "moved")
        path.touch()

    assert path.exists()


@pytest.mark.parametrize("gone", ["socket", "folder"])
async def test_a_socket_that_somebody_removes_is_made_again(
    tmp_path: Path, autojump_clock: MockClock, gone: str
) -> None:
    path = tmp_path / "run" / "arcsup.sock"
    path.parent.mkdir()
    told: list[str] = []
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(serve_control, tell=told.append), FakeSupervisor(), path)
        path.unlink()
        if gone == "folder":
            path.parent.rmdir()
        await trio.sleep(5)

        assert (await ask(path, GET_VMS)).startswith(b"HTTP/1.1 200")
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        if gone == "folder":
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o755
        nursery.cancel_scope.cancel()
    assert told == [f"{path} had been removed by somebody, and was made again"]
    assert not path.exists()


async def test_a_socket_that_another_daemon_put_there_is_left_alone(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    path = tmp_path / "arcsup.sock"
    told: list[str] = []
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(serve_control, tell=told.append), FakeSupervisor(), path)
        path.unlink()
        with create_listener(path, None):
            await trio.sleep(20)
            assert len(told) == 1
            assert "another daemon listens there" in told[0]
        await trio.sleep(5)

        assert (await ask(path, GET_VMS)).startswith(b"HTTP/1.1 200")
        nursery.cancel_scope.cancel()


async def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "arcsup.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))

    async with serving(FakeSupervisor(), path):
        assert (await ask(path, GET_VMS)).startswith(b"HTTP/1.1 200")


async def test_a_second_daemon_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "arcsup.sock"
    async with serving(FakeSupervisor(), path):
        with pytest.raises(Refused, match="another daemon"):
            await serve_control(FakeSupervisor(), path)
        assert (await ask(path, GET_VMS)).startswith(b"HTTP/1.1 200")


async def test_a_file_in_the_way_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "arcsup.sock").write_text("precious")

    with pytest.raises(Terminal, match="in the way"):
        await serve_control(FakeSupervisor(), tmp_path / "arcsup.sock")

    assert (tmp_path / "arcsup.sock").read_text() == "precious"


async def test_a_path_too_long_for_a_socket_is_told(tmp_path: Path) -> None:
    with pytest.raises(Terminal, match="longer than 107 bytes"):
        await serve_control(FakeSupervisor(), tmp_path / ("x" * 108))


async def test_a_directory_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(Terminal, match="cannot listen there"):
        await serve_control(FakeSupervisor(), tmp_path / "nope" / "arcsup.sock")


async def test_it_ends_at_once_with_readers_and_idle_connections(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    path = tmp_path / "arcsup.sock"
    async with serving(FakeSupervisor(), path):
        reader = await trio.open_unix_socket(path)
        idle = await trio.open_unix_socket(path)
        await reader.send_all(b"GET /v1/events HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200" in await reader.receive_some(65536)
        began = trio.current_time()
    assert trio.current_time() == began
    await reader.aclose()
    await idle.aclose()


@pytest.mark.parametrize(("target", "times"), [("/v1/events", 1), ("/v1/openapi.json", 50)])
async def test_it_ends_within_a_second_with_a_client_that_does_not_read(
    tmp_path: Path, autojump_clock: MockClock, target: str, times: int
) -> None:
    path = tmp_path / "arcsup.sock"
    supervisor = FakeSupervisor()
    for _ in range(50):
        supervisor.log.append(make_event("x" * 100_000))
    async with serving(supervisor, path):
        stalled = await trio.open_unix_socket(path)
        await stalled.send_all(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode() * times)
        await stalled.receive_some(1)
        await wait_all_tasks_blocked(0.1)
        began = trio.current_time()
    assert trio.current_time() - began < 1
    await stalled.aclose()


class Watched(FakeSupervisor):
    """Waits for ever, and tells when that begins and ends."""

    def __init__(self) -> None:
        super().__init__()
        self.add(make_status("web"))
        self.began, self.ended = trio.Event(), trio.Event()

    async def settle(self, name: str, verb: str, seconds: float) -> VmStatus:
        return await self.wait_for(name, None, seconds)

    async def wait_for(self, name: str, state: State | None, seconds: float) -> VmStatus:
        self.began.set()
        try:
            await trio.sleep(1000)
        finally:
            self.ended.set()
        return self.status(name)


async def test_whoever_waits_is_told_that_the_daemon_ends(tmp_path: Path) -> None:
    path = tmp_path / "arcsup.sock"
    supervisor = Watched()
    answers = []

    async def wait() -> None:
        answers.append(await ask(path, b"POST /v1/vms/web/stop?wait=60 HTTP/1.0\r\n\r\n"))

    async with trio.open_nursery() as nursery, serving(supervisor, path):
        nursery.start_soon(wait)
        await supervisor.began.wait()
    [answer] = answers
    assert answer.startswith(b"HTTP/1.1 503")
    assert b"the daemon is ending" in answer


async def test_a_client_that_leaves_ends_its_wait(tmp_path: Path) -> None:
    path = tmp_path / "arcsup.sock"
    supervisor = Watched()
    async with serving(supervisor, path):
        stream = await trio.open_unix_socket(path)
        await stream.send_all(b"GET /v1/vms/web/wait?for=stopped HTTP/1.0\r\n\r\n")
        await supervisor.began.wait()
        await stream.aclose()
        with trio.fail_after(5):
            await supervisor.ended.wait()


async def test_half_a_request_does_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "arcsup.sock"
    async with serving(FakeSupervisor(), path):
        for half in (
            b"GET /v1/v",
            b"\x00\xff\r\n\r\n",
            b"POST /v1/vms HTTP/1.1\r\nContent-Length: 9",
        ):
            stream = await trio.open_unix_socket(path)
            await stream.send_all(half)
            await stream.aclose()
        assert (await ask(path, GET_VMS)).startswith(b"HTTP/1.1 200")


async def test_on_the_socket_for_reading_nothing_can_be_changed(tmp_path: Path) -> None:
    path, supervisor = tmp_path / "arcsup-ro.sock", FakeSupervisor()
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(serve_control, read_only=True), supervisor, path)
        client = Client(path)
        assert await trio.to_thread.run_sync(client.get, "/v1/vms") == []
        for operation in Control(supervisor, trio.Event()).operations():
            if operation.method == "GET":
                continue
            target = operation.path.replace("{name}", "web")
            with pytest.raises(NotPermitted, match="for reading only"):
                await trio.to_thread.run_sync(client.post, target, {})
        assert supervisor.calls == []
        nursery.cancel_scope.cancel()
