"""The stop ladder: ask the guest, then insist. Each rung has its deadline, and what it took is
told.

power button (and guest agent) -> QMP quit -> SIGTERM -> SIGKILL
"""

import logging
import signal
from collections.abc import Awaitable, Callable
from enum import StrEnum
from pathlib import Path
from typing import Any

import trio
from attrs import define, frozen
from qemu.qmp import QMPError
from qemu.qmp.qmp_client import ExecuteError

from arcsup.alongside import alongside
from arcsup.vm.agent import ask_guest_to_power_down
from arcsup.vm.process import Process
from arcsup.vm.qmp import Qmp
from arcsup.vm.second_monitor import open_second_monitor

logger = logging.getLogger(__name__)

ANSWER = 3.0
"""Seconds a monitor may take to take a command; one that takes longer is not asked again."""

AGENT = 1.0
"""Seconds a guest agent may take to answer a sync. Most guests have none, which shows at once."""

PRESS_AGAIN = 5.0
"""Seconds after which the power button is pressed again."""

INSIST = 5.0
"""Seconds for QEMU to end after quit, and again after SIGTERM."""


class Rung(StrEnum):
    """What was done to end a QEMU."""

    POWER_BUTTON = "power button"
    QUIT = "QMP quit"
    TERMINATE = "SIGTERM"
    KILL = "SIGKILL"


@frozen
class RungTaken:
    """One rung, how many seconds were given to it, and whether QEMU was gone after it."""

    rung: Rung
    seconds: float
    enough: bool


@define
class _Order:
    """Everything that the rungs act on."""

    process: Process
    monitor: Callable[[], Qmp | None]
    second_monitor: Path
    agent_socket: Path
    silent: Qmp | None = None
    """The session that did not answer in time."""
    second_silent: bool = False
    """The people's monitor did not answer in time either."""


async def stop_qemu(
    process: Process,
    monitor: Callable[[], Qmp | None],
    second_monitor: Path,
    agent_socket: Path,
    *,
    guest_time: float,
    hard: bool,
    took: Callable[[RungTaken], None],
    spent: float = 0.0,
) -> None:
    """End a QEMU; ``guest_time`` is the guest's share in seconds.

    ``monitor`` gives the QMP session of the moment, None while there is none; ``second_monitor`` is
    the people's, which is asked where the first does not answer. ``took`` is told of each rung.
    ``spent`` are the seconds that interrupted attempts have had. Raises TooSlowError when not even
    SIGKILL helps: the process is then in uninterruptible sleep, and only the kernel can let it go.
    """
    order = _Order(process, monitor, second_monitor, agent_socket)
    for rung, act, deadline in _left(_ladder(hard=hard, guest_time=guest_time), spent):
        started = trio.current_time()
        stepped = True
        try:
            with trio.move_on_after(deadline):
                # A rung that cannot be stepped on is not waited for.
                stepped = await act(order)
                if stepped:
                    async with alongside(_press_again, order, rung):
                        await process.wait()
        finally:
            # Who else waits for the same end may cancel us for it, and we still have to tell.
            if process.ended:
                took(RungTaken(rung, trio.current_time() - started, enough=True))
        if process.ended:
            return
        if stepped:
            took(RungTaken(rung, trio.current_time() - started, enough=False))
    raise trio.TooSlowError


_Act = Callable[[_Order], Awaitable[bool]]


_Rungs = tuple[tuple[Rung, _Act, float], ...]


def _left(ladder: _Rungs, spent: float) -> _Rungs:
    """Return the rungs whose time is not spent, with what is left of it; the last one always."""
    *first, last = ladder
    left = []
    for rung, act, deadline in first:
        if spent < deadline:
            left.append((rung, act, deadline - spent))
        spent = max(0.0, spent - deadline)
    return (*left, last)


def _ladder(*, hard: bool, guest_time: float) -> _Rungs:
    if hard:
        return ((Rung.QUIT, _quit, ANSWER), (Rung.KILL, _kill, INSIST))
    return (
        (Rung.POWER_BUTTON, _press_power_button, guest_time),
        (Rung.QUIT, _quit, INSIST),
        (Rung.TERMINATE, _terminate, INSIST),
        (Rung.KILL, _kill, INSIST),
    )


async def _press_again(order: _Order, rung: Rung) -> None:
    """A guest that is still booting does not hear the button, and would be waited for in vain."""
    while rung is Rung.POWER_BUTTON:
        await trio.sleep(PRESS_AGAIN)
        await _press_power_button(order)


async def _press_power_button(order: _Order) -> bool:
    """Ask the guest both ways. False when there is no guest that could hear it."""
    status = await _execute(order, "query-status")
    pressed = False
    if status is not None:
        if status.get("status") not in ("running", "paused"):
            return False
        if status["status"] == "paused":
            # Halted CPUs hear no button.
            await _execute(order, "cont")
        pressed = await _execute(order, "system_powerdown") is not None
    # A guest whose QEMU answers nobody may have an agent that does.
    with trio.move_on_after(AGENT):
        pressed |= await ask_guest_to_power_down(order.agent_socket)
    return pressed


async def _quit(order: _Order) -> bool:
    return await _execute(order, "quit") is not None


async def _terminate(order: _Order) -> bool:
    order.process.send(signal.SIGTERM)
    return True


async def _kill(order: _Order) -> bool:
    order.process.send(signal.SIGKILL)
    return True


async def _execute(order: _Order, command: str) -> dict[str, Any] | None:
    """Run a QMP command, by the people's monitor where the daemon's own does not answer.

    None when QEMU refuses it or answers by neither in time.
    """
    qmp = order.monitor()
    if qmp is not None and qmp is not order.silent:
        with trio.move_on_after(ANSWER):
            try:
                return _as_object(await qmp.execute(command))
            except QMPError as error:
                logger.info("%s was not taken: %s", command, error)
                if isinstance(error, ExecuteError):
                    return None
        order.silent = qmp
    return await _execute_elsewhere(order, command)


async def _execute_elsewhere(order: _Order, command: str) -> dict[str, Any] | None:
    if order.second_silent:
        return None
    try:
        async with open_second_monitor(order.second_monitor, order.process.pid) as qmp:
            return _as_object(await qmp.execute(command))
    except trio.TooSlowError:
        order.second_silent = True
    except (OSError, QMPError) as error:
        logger.info("%s was not taken by the second monitor: %s", command, error)
    return None


def _as_object(answer: object) -> dict[str, Any]:
    return answer if isinstance(answer, dict) else {}
