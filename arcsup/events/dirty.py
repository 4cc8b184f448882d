"""The one thing that event sources say: something may have changed, look.

Every source can lose or hide events (inotify and netlink queues overflow, a watched directory can
be replaced), so an event never carries what to do. Marks made before the reader comes are merged.
"""

import trio


class Dirty:
    """A set of reasons to look, and a way to wait for the next one."""

    def __init__(self) -> None:
        self._reasons: set[str] = set()
        self._marked = trio.Event()

    def mark(self, reason: str) -> None:
        """Say that something changed. Cheap; may be called from any trio task."""
        self._reasons.add(reason)
        self._marked.set()

    async def wait(self, *, at_most: float) -> frozenset[str]:
        """Return the reasons since the last call; empty when ``at_most`` seconds passed first."""
        with trio.move_on_after(at_most):
            await self._marked.wait()
        reasons, self._reasons = frozenset(self._reasons), set()
        self._marked = trio.Event()
        return reasons


class Bell:
    """Wakes everybody who waits; who comes later waits for the next time."""

    def __init__(self) -> None:
        self._rung = trio.Event()

    def ring(self) -> None:
        """Wake all who wait now."""
        self._rung.set()
        self._rung = trio.Event()

    async def wait(self) -> None:
        """Wait for the next ring."""
        await self._rung.wait()
