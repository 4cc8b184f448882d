"""The stop ladder on a simulated clock: each rung, its deadline, and what is told of it."""

import signal
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, memory_stream_pair

from arcsup.vm.process import Process, ProcessEnd, ProcessId
from arcsup.vm.qmp import Qmp
from arcsup.vm.stop import INSIST, Rung, RungTaken, stop_qemu
from tests.people_monitor import PeoplesMonitor


class Stubborn(Process):
    """A process that ends on one signal only, or on none: then it sleeps uninterruptibly."""

    def __init__(self, ends_on: signal.Signals | None) -> None:
        super().__init__(ProcessId("boot", 1, 1), -1)
        self.ends_on = ends_on
        self.sent: list[signal.Signals] = []
        self.gone = trio.Event()

    @property
    def ended(self) -> bool:
        return self.gone.is_set()

    def send(self, number: signal.Signals) -> None:
        self.sent.append(number)
        if number is self.ends_on:
            self.gone.set()

    async def wait(self) -> ProcessEnd:
        await self.gone.wait()
        return ProcessEnd(signal=self.ends_on)


async def stop(
    process: Process,
    monitor: Qmp | None = None,
    *,
    second: Path = Path("/nonexistent/monitor.sock"),
    hard: bool = False,
    spent: float = 0.0,
) -> list[RungTaken]:
    taken: list[RungTaken] = []
    await stop_qemu(
        process,
        lambda: monitor,
        second,
        Path("/nonexistent/agent.sock"),
        guest_time=60,
        hard=hard,
        took=taken.append,
        spent=spent,
    )
    return taken


async def silent_monitor() -> Qmp:
    ours, _theirs = memory_stream_pair()
    return Qmp(ours)


async def test_without_a_monitor_the_guests_time_is_not_waited_for(
    autojump_clock: MockClock,
) -> None:
    process = Stubborn(signal.SIGTERM)

    assert await stop(process) == [RungTaken(Rung.TERMINATE, 0.0, enough=True)]
    assert trio.current_time() == 0


async def test_a_silent_monitor_costs_its_answers_and_not_the_guests_time(
    autojump_clock: MockClock,
) -> None:
    process = Stubborn(signal.SIGTERM)

    taken = await stop(process, await silent_monitor())

    assert taken[-1].rung is Rung.TERMINATE
    assert taken[-1].enough
    assert trio.current_time() <= 10


async def test_a_guest_is_asked_by_the_peoples_monitor_where_the_first_one_is_silent(
    tmp_path: Path,
) -> None:
    process = Stubborn(None)
    people = PeoplesMonitor(tmp_path / "monitor.sock")
    people.on = lambda command: process.gone.set() if command == "system_powerdown" else None

    async with people.serving():
        taken = await stop(process, second=people.socket)

    assert [(it.rung, it.enough) for it in taken] == [(Rung.POWER_BUTTON, True)]
    assert people.asked == ["query-status", "system_powerdown"]


async def test_a_kill_quits_by_the_peoples_monitor_where_the_first_one_is_silent(
    tmp_path: Path,
) -> None:
    process = Stubborn(None)
    people = PeoplesMonitor(tmp_path / "monitor.sock")
    people.on = lambda command: process.gone.set() if command == "quit" else None

    async with people.serving():
        taken = await stop(process, second=people.socket, hard=True)

    assert [it.rung for it in taken] == [Rung.QUIT]


async def test_what_ignores_sigterm_is_killed_after_its_time(autojump_clock: MockClock) -> None:
    process = Stubborn(signal.SIGKILL)

    taken = await stop(process)

    assert [(it.rung, it.enough) for it in taken] == [(Rung.TERMINATE, False), (Rung.KILL, True)]
    assert trio.current_time() == pytest.approx(INSIST)


async def test_a_ladder_that_was_interrupted_goes_on_with_the_time_that_is_left(
    autojump_clock: MockClock,
) -> None:
    process = Stubborn(signal.SIGKILL)

    taken = await stop(process, await silent_monitor(), spent=60 + INSIST + 1)

    assert [it.rung for it in taken] == [Rung.TERMINATE, Rung.KILL]
    assert trio.current_time() == pytest.approx(INSIST - 1)


@pytest.mark.parametrize("hard", [False, True])
async def test_a_ladder_whose_time_is_spent_ends_in_a_kill(
    autojump_clock: MockClock, hard: bool
) -> None:
    process = Stubborn(signal.SIGKILL)

    taken = await stop(process, await silent_monitor(), hard=hard, spent=1000)

    assert [it.rung for it in taken] == [Rung.KILL]


async def test_a_kill_asks_no_guest_and_sends_no_sigterm(autojump_clock: MockClock) -> None:
    process = Stubborn(signal.SIGKILL)

    taken = await stop(process, hard=True)

    assert [it.rung for it in taken] == [Rung.KILL]
    assert process.sent == [signal.SIGKILL]


async def test_what_not_even_sigkill_ends_is_reported(autojump_clock: MockClock) -> None:
    process = Stubborn(None)

    with pytest.raises(trio.TooSlowError):
        await stop_qemu(
            process,
            lambda: None,
            Path("/x"),
            Path("/x"),
            guest_time=60,
            hard=False,
            took=lambda _taken: None,
        )
    assert process.sent == [signal.SIGTERM, signal.SIGKILL]
    assert trio.current_time() == pytest.approx(2 * INSIST)
