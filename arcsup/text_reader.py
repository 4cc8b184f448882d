"""Reading the text of VM files that clients send: beside the daemon's own work, one at a time."""

from pathlib import Path

import trio
from attrs import define, field

from arcsup.errors import Transient
from arcsup.model import Vm
from arcsup.spec.native import load_vm

TURN = 20.0
"""Seconds that a text may wait until those before it are read."""


@define(eq=False)
class TextReader:
    """Reads texts in a thread, so that the daemon goes on meanwhile.

    A thread cannot be interrupted. What bounds it are the limits of the text: its bytes, levels and
    values (``spec.nodes``), the unknown keys that are told (``spec.struct``) and the length of what
    a pattern is tried on; a text at all of them takes some tenths of a second.
    """

    machine_id: str
    _turns: trio.CapacityLimiter = field(factory=lambda: trio.CapacityLimiter(1))

    async def load(self, source: str, file: Path) -> Vm:
        """Return the VM that a text describes. Raises SpecError, Transient when many wait."""
        try:
            with trio.fail_after(TURN):
                # A cancelled request leaves the queue, and a thread that has begun is awaited: so
                # nobody can have more than one at work by asking and leaving.
                return await trio.to_thread.run_sync(
                    load_vm, source, file, self.machine_id, limiter=self._turns
                )
        except trio.TooSlowError:
            raise Transient(f"{file}: many other VM files are being read", "ask again") from None
