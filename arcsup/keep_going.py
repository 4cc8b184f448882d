"""Tasks of the daemon that go on when the host has run short of something for a moment."""

import logging
from collections.abc import Awaitable, Callable

import trio

from arcsup.errors import is_shortage

logger = logging.getLogger(__name__)

AFTER_A_SHORTAGE = 2.0
"""Seconds after which a task that the host had nothing left for is begun again."""

TOLD_AGAIN = 60.0
"""Seconds within which the same trouble of a task is logged only once."""


async def keep_going(what: str, task: Callable[[], Awaitable[None]]) -> None:
    """Run ``task`` to its end; begin it again as often as it fails for want of something.

    That is descriptors, memory, threads or room: nothing of it may end the daemon, on which all VMs
    depend. Every other error is a defect and comes out as it is.
    """
    told: dict[str, float] = {}
    while True:
        try:
            await task()
        except Exception as error:
            if not is_shortage(error):
                raise
            why, now = str(_first_of(error)), trio.current_time()
            if now - told.get(why, -TOLD_AGAIN) >= TOLD_AGAIN:
                told[why] = now
                logger.error("%s: %s; it is begun again", what, why)  # noqa: TRY400
        else:
            return
        await trio.sleep(AFTER_A_SHORTAGE)


def _first_of(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
