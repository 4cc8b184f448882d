from collections.abc import AsyncGenerator
from contextlib import aclosing

import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from arcsup.control.events import EventLog
from arcsup.model import Event
from tests.fake_supervisor import make_event


def fill(log: EventLog, count: int) -> None:
    for number in range(count):
        log.append(make_event(f"event {number + 1}", vm=f"vm{number % 2}"))


def test_numbers_count_from_one() -> None:
    log = EventLog()

    assert log.last == 0
    assert log.append(make_event("first")) == 1
    assert log.append(make_event("second")) == 2
    assert log.last == 2


@given(st.integers(0, 40), st.integers(0, 60), st.integers(1, 12))
def test_since_returns_what_is_kept_after_a_number(count: int, since: int, capacity: int) -> None:
    log = EventLog(capacity)
    fill(log, count)

    numbers = [number for number, _ in log.since(since)]

    kept = list(range(max(count - capacity, 0) + 1, count + 1))
    assert numbers == [n for n in kept if n > since or since > count]


def test_since_can_be_of_one_vm() -> None:
    log = EventLog()
    fill(log, 5)

    assert [n for n, _ in log.since(0, "vm1")] == [2, 4]


async def take(events: AsyncGenerator[tuple[int, Event], None], count: int) -> list[int]:
    return [(await anext(events))[0] for _ in range(count)]


async def test_a_follower_gets_what_was_and_what_comes() -> None:
    log = EventLog()
    fill(log, 3)
    async with aclosing(log.follow(1)) as events:
        assert await take(events, 2) == [2, 3]
        log.append(make_event("new"))
        assert await take(events, 1) == [4]


async def test_a_waiting_follower_is_woken() -> None:
    log = EventLog()
    got: list[int] = []

    async def read() -> None:
        async with aclosing(log.follow(0)) as events:
            got.extend(await take(events, 1))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        log.append(make_event("one"))

    assert got == [1]


async def test_a_slow_follower_loses_the_oldest_and_sees_the_gap() -> None:
    log = EventLog(capacity=3)
    fill(log, 1)
    async with aclosing(log.follow(0)) as events:
        assert await take(events, 1) == [1]
        fill(log, 10)
        assert await take(events, 3) == [9, 10, 11]


async def test_following_one_vm_skips_the_others() -> None:
    log = EventLog()
    fill(log, 4)
    async with aclosing(log.follow(0, "vm0")) as events:
        assert await take(events, 2) == [1, 3]


async def test_a_number_from_before_a_daemon_restart_means_all() -> None:
    log = EventLog()
    fill(log, 2)
    async with aclosing(log.follow(900)) as events:
        assert await take(events, 2) == [1, 2]
