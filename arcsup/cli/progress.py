"""How far long work is, on a terminal; nothing where nobody watches."""

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from arcsup.cli.output import plain


class StatusLine:
    """The last line of the terminal, written anew as things go on."""

    def __init__(self) -> None:
        self._shown = ""

    def show(self, text: str) -> None:
        """Write ``text`` in the place of what is there, as much of it as the line holds."""
        # A line that is wrapped could not be written over.
        text = plain(text)[: shutil.get_terminal_size().columns - 1]
        if text != self._shown:
            rest = " " * (len(self._shown) - len(text))
            print(f"\r{text}{rest}", end="", file=sys.stderr, flush=True)
            self._shown = text

    def wipe(self) -> None:
        """Leave an empty line to what comes next, be it an error."""
        if self._shown:
            print(f"\r{' ' * len(self._shown)}\r", end="", file=sys.stderr, flush=True)
            self._shown = ""


@contextmanager
def showing_progress(what: str) -> Iterator[Callable[[float], None]]:
    """Yield what takes the percentage that is done; the line is wiped away at the end."""
    if not sys.stderr.isatty():
        yield lambda _percent: None
        return
    line = StatusLine()
    try:
        yield lambda percent: line.show(f"{what}: {percent:.0f} %")
    finally:
        line.wipe()
