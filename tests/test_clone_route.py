"""The progress of what the daemon does for a client, over a real socket and without one."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from arcsup.control.client import Client, follow_work
from arcsup.control.clone_route import TELL, ProgressStream
from arcsup.errors import ArcsupError, DaemonUnreachable, Refused, Terminal, UsageError
from tests.fake_supervisor import FakeSupervisor, make_status, serve_in_thread
from tests.test_control_stream import Client as Listener

BODY = {"disk": "/images/a.qcow2", "target": "/images/b.qcow2"}


@pytest.fixture
def supervisor() -> FakeSupervisor:
    fake = FakeSupervisor()
    fake.add(make_status("web"))
    return fake


@pytest.fixture
def client(supervisor: FakeSupervisor, short_dir: Path) -> Iterator[Client]:
    with serve_in_thread(supervisor, short_dir):
        yield Client(short_dir / "arcsup.sock")


def clone(client: Client, body: dict[str, str]) -> list[float]:
    return list(follow_work(client.stream("/v1/vms/web/clone", body=body)))


def test_a_clone_tells_how_far_it_is_to_its_end(client: Client, supervisor: FakeSupervisor) -> None:
    told = clone(client, BODY)

    assert told == sorted(told)
    assert told[-1] == 100.0
    assert supervisor.copied == [(Path("/images/a.qcow2"), Path("/images/b.qcow2"))]


def test_what_is_refused_at_once_has_a_status_of_its_own(
    client: Client, supervisor: FakeSupervisor
) -> None:
    supervisor.failures["clone"] = Refused("b.qcow2 is there already", "choose another")

    with pytest.raises(Refused, match="there already"):
        client.post("/v1/vms/web/clone", BODY)
    with pytest.raises(UsageError, match="absolute"):
        clone(client, BODY | {"target": "b.qcow2"})


def test_a_daemon_that_ends_without_a_word_is_told() -> None:
    with pytest.raises(DaemonUnreachable):
        list(follow_work(iter([(0, {"percent": 3.0})])))


def test_an_error_in_between_is_raised_as_what_it_is() -> None:
    error = {"code": "terminal", "message": "the disk is full", "hint": "make room"}

    with pytest.raises(Terminal, match="the disk is full"):
        list(follow_work(iter([(0, {"percent": 3.0}), (0, {"error": error})])))


async def listen(
    stays: float, seconds: float, error: ArcsupError | None = None, end: float = 1e9
) -> tuple[Listener, bool]:
    """Listen to work that takes so long; return what was sent, and whether it was cancelled."""
    cancelled, closing = True, trio.Event()

    async def work(report: Callable[[float], None]) -> None:
        nonlocal cancelled
        report(1.0)
        await trio.sleep(seconds)
        cancelled = False
        if error is not None:
            raise error

    async def close() -> None:
        await trio.sleep(end)
        closing.set()

    listener = Listener(stays)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(close)
        await ProgressStream(work, closing)({}, listener.receive, listener.send)
        nursery.cancel_scope.cancel()
    return listener, cancelled


def events(listener: Listener) -> list[dict[str, object]]:
    return [json.loads(it.removeprefix(b"data: ")) for it in listener.body.split(b"\n\n") if it]


async def test_a_client_that_leaves_ends_the_work(autojump_clock: MockClock) -> None:
    _, cancelled = await listen(stays=5, seconds=100)

    assert cancelled
    assert trio.current_time() < 100


async def test_a_daemon_that_ends_ends_the_work_and_says_so(autojump_clock: MockClock) -> None:
    listener, cancelled = await listen(stays=1000, seconds=100, end=5)

    assert cancelled
    told = events(listener)[-1]["error"]
    assert isinstance(told, dict)
    assert told["code"] == "no-daemon"


async def test_a_client_hears_of_slow_work_all_the_time(autojump_clock: MockClock) -> None:
    listener, cancelled = await listen(stays=1000, seconds=100 * TELL)

    assert not cancelled
    assert len(events(listener)) >= 100
    assert events(listener)[-1] == {"percent": 100.0, "done": True}
    assert listener.sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}


async def test_work_that_fails_late_ends_with_its_error(autojump_clock: MockClock) -> None:
    listener, _ = await listen(stays=1000, seconds=10, error=Terminal("full", "make room"))

    assert listener.sent[0]["status"] == 200
    assert events(listener)[-1]["error"] == {
        "code": "terminal", "message": "full", "hint": "make room"
    }  # fmt: skip
