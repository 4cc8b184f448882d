"""How far long work is, on a terminal; nothing where nobody watches."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def showing_progress(what: str) -> Iterator[Callable[[float], None]]:
    """Yield what takes the percentage that is done; the line is wiped away at the end."""
    if not sys.stderr.isatty():
        yield lambda _percent: None
        return
    shown = ""

    def show(percent: float) -> None:
        nonlocal shown
        text = f"{what}: {percent:.0f} %"
        if text != shown:
            shown = text
            print(f"\r{text}", end="", file=sys.stderr, flush=True)

    try:
        yield show
    finally:
        # What comes next begins on an empty line, be it an error.
        print(f"\r{' ' * len(shown)}\r", end="", file=sys.stderr, flush=True)
