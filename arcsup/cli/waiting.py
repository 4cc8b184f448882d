"""What VMs wait for, told to whoever waits for them: once, or kept true on a terminal."""

import sys
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from arcsup.cli.output import plain
from arcsup.cli.progress import StatusLine
from arcsup.cli.session import Session
from arcsup.errors import ArcsupError

NOTICE_AFTER = 3.0
"""Seconds of waiting after which one is told what for."""

AGAIN_AFTER = 1.0
"""Seconds between two looks at it, where somebody watches."""


@contextmanager
def telling_what_for(session: Session, targets: Collection[str]) -> Iterator[None]:
    """Tell, while the block takes long, the reasons of the VMs with these names or files.

    On a terminal one line says it and changes with it: what an ephemeral disk took is saved with
    a percentage. Elsewhere it is told once.
    """
    notice = _Notice(session, frozenset(targets))
    thread = threading.Thread(target=notice.run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        notice.end()


class _Notice:
    def __init__(self, session: Session, targets: frozenset[str]) -> None:
        self._session = session
        self._targets = targets
        self._over = threading.Event()
        self._writing = threading.Lock()
        self._line = StatusLine()

    def run(self) -> None:
        pause = NOTICE_AFTER
        while not self._over.wait(pause):
            pause = AGAIN_AFTER
            try:
                told = self._look()
            except ArcsupError:
                # Whoever waits for the daemon's answer is about to hear the same.
                return
            with self._writing:
                if self._over.is_set():
                    return
                if not sys.stderr.isatty():
                    for line in told:
                        print(plain(line), file=sys.stderr)
                    return
                self._line.show("; ".join(told))

    def _look(self) -> list[str]:
        return [
            f"{vm['name']} is {vm['state']}: {vm['reason']}"
            for vm in self._session.list_vms()
            if {vm["name"], vm["file"]} & self._targets and vm["reason"]
        ]

    def end(self) -> None:
        self._over.set()
        with self._writing:
            self._line.wipe()
