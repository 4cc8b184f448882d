"""VM files changed: look.

watchfiles (inotify) tells of changes inside a directory. What it cannot tell is made up for:

* A watched directory that is removed and made again goes silent for ever, so its parent is
  watched too, and the watch is opened anew whenever the directory itself changes.
* An edit of a symlink's target elsewhere is not seen, and a queue overflow is dropped: the
  daemon's resync finds both.
"""

import logging
import os
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path

import trio
from watchfiles import Change, awatch

from arcsup.alongside import leaves

logger = logging.getLogger(__name__)

STEP_MS = 30
"""Quiet time that ends a batch: a file is seen 30 to 60 ms after it was written, for about
0.2 % of a core (measured: 10 ms costs 0.5 %, 50 ms is seen after 65 to 100 ms)."""

REOPEN_SECONDS = 1.0
"""How long to wait before a watch that could not be opened, or broke, is tried again."""


async def watch_files(directory: Path, changed: Callable[[], None]) -> None:
    """Call ``changed`` after every change in ``directory``, for ever."""
    told = ""
    while True:
        if directory.is_dir():
            changed()
        # inotify wants to read what it watches; a parent need only be passable.
        places = (directory, directory.parent)
        watched = [path for path in places if path.is_dir() and os.access(path, os.R_OK)]
        if watched:
            trouble = await _watch_until_replaced(directory, watched, changed)
            if not trouble:
                continue
            if trouble != told:
                logger.warning("watching VM files: %s; looking again", trouble)
            told = trouble
        await trio.sleep(REOPEN_SECONDS)


async def _watch_until_replaced(
    directory: Path, watched: list[Path], changed: Callable[[], None]
) -> str:
    """Return why the watch has to be opened anew: what went wrong, "" when nothing did.

    A directory can go away between our look and inotify's, the kernel's limits of inotify can be
    reached, and watchfiles gives up on a file name that is not UTF-8.
    """
    inside = f"{directory}/"
    trouble = ""

    def concerns_us(_change: Change, path: str) -> bool:
        return path == str(directory) or path.startswith(inside)

    try:
        async with trio.open_nursery() as nursery:
            # A cancelled awatch waits for its thread, which looks at stop_event only: without
            # this sibling, cancelling takes up to its time-out of 5 s.
            stop = trio.Event()
            nursery.start_soon(_set_when_cancelled, stop)
            batches = awatch(
                *watched,
                watch_filter=concerns_us,
                step=STEP_MS,
                debounce=2 * STEP_MS,
                recursive=False,
                stop_event=stop,
            )
            async with aclosing(batches):
                async for changes in batches:
                    changed()
                    if any(path == str(directory) for _, path in changes):
                        break
            nursery.cancel_scope.cancel()
    except* (OSError, RuntimeError) as group:  # The latter is WatchfilesRustInternalError.
        trouble = "; ".join(map(str, leaves(group)))
    return trouble


async def _set_when_cancelled(event: trio.Event) -> None:
    try:
        await trio.sleep_forever()
    finally:
        event.set()
