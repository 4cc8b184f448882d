"""A task that keeps to its share of the one CPU that all tasks of the daemon have together.

Tasks take turns, so a source that never falls silent cannot stop the others; but with it there
would be no quiet moment any more, and each of the others would wait for it at every turn.
"""

import time

import trio

CREDIT = 0.25
"""Seconds of work that may be done in one go before the share counts."""


class Pace:
    """Work between ``begin`` and ``rest``, and no more than a share of the time on average."""

    def __init__(self, share: float) -> None:
        self._share = share
        self._credit = CREDIT
        self._rested = trio.current_time()
        self._began: float | None = None

    def begin(self) -> None:
        """Note that work begins, which does not wait for anything until ``rest``."""
        self._began = time.perf_counter()

    async def rest(self) -> None:
        """Note that work is done, and wait for as long as it has to be made up for."""
        if self._began is None:
            return
        worked = time.perf_counter() - self._began
        self._began = None
        now = trio.current_time()
        earned = (now - self._rested) * self._share
        self._credit = min(CREDIT, self._credit + earned) - worked
        self._rested = now
        if self._credit < 0:
            await trio.sleep(-self._credit / self._share)
