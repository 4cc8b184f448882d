"""The last events, kept in memory, numbered from 1, for ``events`` and ``status``."""

from collections import deque
from collections.abc import AsyncGenerator
from itertools import islice

import trio

from arcsup.model import Event

CAPACITY = 2000


class EventLog:
    """A ring of numbered events. One trio run owns it; it is not for threads.

    Readers hold only the number that they have read up to, so however many and however slow they
    are, they cost nothing and hold up nobody: one that falls behind finds the oldest gone, and
    sees it by the gap in the numbers.
    """

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._kept: deque[Event] = deque(maxlen=capacity)
        self._last = 0
        self._appended = trio.Event()

    @property
    def last(self) -> int:
        """Number of the newest event; 0 when there has been none."""
        return self._last

    def append(self, event: Event) -> int:
        """Keep an event, wake the readers, and return the event's number."""
        self._kept.append(event)
        self._last += 1
        self._appended.set()
        self._appended = trio.Event()
        return self._last

    def since(self, number: int, vm: str | None = None) -> list[tuple[int, Event]]:
        """Return kept events after ``number`` (0: all), oldest first; of one VM if given.

        A number from the future (a client that knew the daemon before this one) means all.
        """
        oldest = self._last - len(self._kept) + 1
        first = oldest if number > self._last else max(number + 1, oldest)
        wanted = enumerate(islice(self._kept, first - oldest, None), start=first)
        return [(n, event) for n, event in wanted if vm is None or event.vm == vm]

    async def follow(
        self, since: int, vm: str | None = None
    ) -> AsyncGenerator[tuple[int, Event], None]:
        """Yield kept events after ``since``, then new ones for ever."""
        position = 0 if since > self._last else since
        while True:
            appended = self._appended
            batch_end = self._last
            for number, event in self.since(position, vm):
                yield number, event
            # What came while the reader was busy is the next batch, as far as the ring kept it.
            position = batch_end
            await appended.wait()
