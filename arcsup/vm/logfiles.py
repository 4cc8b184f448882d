"""Keeping logs of VMs from growing without bound.

QEMU, swtpm and hooks hold their logs open for as long as they live, so a log cannot be moved away
under them. They were opened for appending: what is written after a truncation goes to the new end.
"""

import logging
import os
import shutil
import stat
from collections.abc import Iterable
from pathlib import Path

logger = logging.getLogger(__name__)

LARGEST_LOG = 16 * 2**20
"""Bytes from which on a log is begun anew; its old content is kept once, as NAME.log.1."""


def rotate_logs(folders: Iterable[Path], largest: int = LARGEST_LOG) -> None:
    """Copy each log that is too long to NAME.log.1 and empty it. Blocks; never raises OSError.

    A line that is written between the copy and the truncation is lost.
    """
    for folder in folders:
        for log in folder.glob("*.log"):
            try:
                status = log.lstat()
                if stat.S_ISREG(status.st_mode) and status.st_size > largest:
                    _rotate(log)
            except OSError as error:
                logger.warning("%s cannot be rotated: %s", log, error.strerror)


def _rotate(log: Path) -> None:
    old, half = log.with_name(f"{log.name}.1"), log.with_name(f".{log.name}.tmp")
    try:
        shutil.copyfile(log, half)
        shutil.copymode(log, half)
        half.replace(old)
    finally:
        half.unlink(missing_ok=True)
    os.truncate(log, 0)
    logger.info("rotated %s", log)
