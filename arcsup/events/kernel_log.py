"""The kernel log as it is written: the one place where NVIDIA's driver tells of a card's end."""

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

import trio
from attrs import evolve

from arcsup.host.kmsg import LogRecord, next_record, parse_record

logger = logging.getLogger(__name__)

AT_ONCE = 200
"""Records read before other tasks have a turn: a log that floods must not hold up everything."""


async def watch_kernel_log(
    heard: Callable[[LogRecord], None], device: Path = Path("/dev/kmsg")
) -> None:
    """Hand on every record of the kernel's own, first those that are kept, for ever.

    What comes while we listen is of now: over months the log's clock drifts away from ours.
    Where the log may not be read this ends at once: then nothing is heard.
    """
    try:
        descriptor = os.open(device, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        logger.info("the kernel log cannot be read: %s", error)
        return
    kept = True
    try:
        while True:
            for _ in range(AT_ONCE):
                raw = next_record(descriptor)
                record = parse_record(raw)
                if record is not None and record.facility == 0:
                    heard(record if kept else evolve(record, at=time.monotonic()))
                if not raw:
                    kept = False
                    await trio.lowlevel.wait_readable(descriptor)
            await trio.lowlevel.checkpoint()
    except OSError as error:
        # In a container /dev/kmsg may be anything.
        logger.info("the kernel log cannot be followed: %s", error)
    finally:
        os.close(descriptor)
