"""Looks at files that may never come back: a dead network file system keeps whoever looks at it."""

from collections.abc import Callable
from functools import partial
from typing import TypeVar, TypeVarTuple

import trio

Ts = TypeVarTuple("Ts")
T = TypeVar("T")

_turns: dict[str, trio.CapacityLimiter] = {}


async def look_at(what: str, look: Callable[[*Ts], T], *args: *Ts) -> T:
    """Return what ``look`` returns; it may only read, and is left behind when this is cancelled.

    What is looked at (a path, say) has one thread at most, and none of those that all other work
    shares: who looks again waits for the look that has not come back.
    """
    turn = _turns.setdefault(what, trio.CapacityLimiter(1))
    try:
        work = partial(look, *args)
        return await trio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=turn)
    finally:
        use = turn.statistics()
        if not use.borrowed_tokens and not use.tasks_waiting:
            _turns.pop(what, None)
