"""VM files changed: look.

watchfiles (inotify) tells of changes inside a directory. What it cannot tell is made up for:

* A watched directory that is removed and made again goes silent for ever, so its parent is
  watched too, and the watch is opened anew whenever the directory itself changes.
* An edit of a symlink's target elsewhere is not seen, and a queue overflow is dropped: the
  daemon's resync finds both.
"""

from collections.abc import Callable
from pathlib import Path

import trio
from watchfiles import Change, awatch

STEP_MS = 30
"""Quiet time that ends a batch: a file is seen 30 to 60 ms after it was written, for about
0.2 % of a core (measured: 10 ms costs 0.5 %, 50 ms is seen after 65 to 100 ms)."""

REOPEN_SECONDS = 1.0
"""How often a missing directory is looked for when not even its parent is there to be watched."""


async def watch_files(directory: Path, changed: Callable[[], None]) -> None:
    """Call ``changed`` after every change in ``directory``, for ever."""
    while True:
        watched = [path for path in (directory, directory.parent) if path.is_dir()]
        if directory.is_dir():
            changed()
        if not watched:
            await trio.sleep(REOPEN_SECONDS)
            continue
        await _watch_until_replaced(directory, watched, changed)


async def _watch_until_replaced(
    directory: Path, watched: list[Path], changed: Callable[[], None]
) -> None:
    inside = f"{directory}/"

    def concerns_us(_change: Change, path: str) -> bool:
        return path == str(directory) or path.startswith(inside)

    async with trio.open_nursery() as nursery:
        # A cancelled awatch waits for its thread, which looks at stop_event only: without this
        # sibling, cancelling takes up to its time-out of 5 s.
        stop = trio.Event()
        nursery.start_soon(_set_when_cancelled, stop)
        try:
            async for changes in awatch(
                *watched,
                watch_filter=concerns_us,
                step=STEP_MS,
                debounce=2 * STEP_MS,
                recursive=False,
                stop_event=stop,
            ):
                changed()
                if any(path == str(directory) for _, path in changes):
                    break
        except FileNotFoundError:
            # It went away between our look and inotify's; the parent or the next round tells.
            await trio.sleep(REOPEN_SECONDS)
        nursery.cancel_scope.cancel()


async def _set_when_cancelled(event: trio.Event) -> None:
    try:
        await trio.sleep_forever()
    finally:
        event.set()
