"""The kernel log as it is written: the one place where NVIDIA's driver tells of a card's end."""

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

import trio
from attrs import define, evolve

from arcsup.errors import is_shortage
from arcsup.host.kmsg import LogRecord, next_record, parse_record
from arcsup.keep_going import keep_going

logger = logging.getLogger(__name__)

AT_ONCE = 200
"""Records read before other tasks have a turn: a log that floods must not hold up everything."""


async def watch_kernel_log(
    heard: Callable[[LogRecord], None], device: Path = Path("/dev/kmsg")
) -> None:
    """Hand on every record of the kernel's own, first those that are kept, for ever.

    What comes while we listen is of now: over months the log's clock drifts away from ours.
    Where the log may not be read this ends at once: then nothing is heard. Raises the OSError of a
    host that has no descriptor left for it.
    """
    try:
        descriptor = os.open(device, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if is_shortage(error):
            raise
        logger.info("the kernel log cannot be read: %s", error)
        return
    reader = _Reader(heard, descriptor)
    try:
        # Not opened anew: each record is to be heard once.
        await keep_going("reading the kernel log", reader.run)
    except OSError as error:
        # In a container /dev/kmsg may be anything.
        logger.info("the kernel log cannot be followed: %s", error)
    finally:
        os.close(descriptor)


@define
class _Reader:
    """Hands on what it reads. What could not be heard for want of something is heard later."""

    heard: Callable[[LogRecord], None]
    descriptor: int
    _kept: bool = True
    """Whether it still reads what was there before we listened."""
    _unheard: LogRecord | None = None

    async def run(self) -> None:
        while True:
            for _ in range(AT_ONCE):
                self._hand_on()
                raw = next_record(self.descriptor)
                record = parse_record(raw)
                if record is not None and record.facility == 0:
                    self._unheard = record if self._kept else evolve(record, at=time.monotonic())
                elif not raw:
                    self._kept = False
                    await trio.lowlevel.wait_readable(self.descriptor)
            self._hand_on()
            await trio.lowlevel.checkpoint()

    def _hand_on(self) -> None:
        if self._unheard is not None:
            self.heard(self._unheard)
            self._unheard = None
