"""The kernel log: what it says, and of which processes that it killed.

Source: Documentation/ABI/testing/dev-kmsg. Records read
``priority,sequence,microseconds,flags;text``. Reading needs CAP_SYSLOG (or
kernel.dmesg_restrict=0); where it is not allowed, nothing is known.
"""

import os
import re
from pathlib import Path

from attrs import frozen

_OOM_KILL = re.compile(r"[Oo]ut of memory: Killed process (\d+) ")
"""mm/oom_kill.c, both for the whole host and for a memory cgroup."""

_LIMIT_KILL = re.compile(
    r"oom-kill:constraint=CONSTRAINT_MEMCG,.*,oom_memcg=([^,\n]*),task_memcg=.*,pid=(\d+),uid=\d+"
)
"""mm/oom_kill.c, dump_oom_victim(): whose limit it was, and which process was killed."""


@frozen
class LogRecord:
    """One record. ``at`` is in seconds on the monotonic clock, as near as the kernel keeps it.

    Only the kernel itself is facility 0 (printk.c): a program that writes /dev/kmsg, or one whose
    log is passed on to there, is never believed in its name.
    """

    facility: int
    at: float
    text: str


def parse_record(record: bytes) -> LogRecord | None:
    """Return a record of /dev/kmsg without the lines of its dictionary; None: it is malformed."""
    head, _, body = record.decode(errors="replace").partition(";")
    try:
        priority, _sequence, microseconds, *_ = head.split(",")
        return LogRecord(int(priority) >> 3, int(microseconds) / 1e6, body.partition("\n")[0])
    except ValueError:
        return None


def parse_oom_kills(text: str) -> frozenset[int]:
    """Return the pids that the kernel log says were killed for want of memory."""
    return frozenset(int(match) for match in _OOM_KILL.findall(text))


def parse_limit_kills(text: str, group: str) -> frozenset[int]:
    """Return the pids that were killed because control group ``group`` was at its limit.

    The log names groups from the root of all, this process perhaps from a namespace's.
    """
    found = _LIMIT_KILL.findall(text)
    return frozenset(int(pid) for limited, pid in found if limited.endswith(group))


def read_kernel_log(device: Path = Path("/dev/kmsg")) -> str:
    """Return all kept records of the kernel log, oldest first; "" where it may not be read."""
    try:
        descriptor = os.open(device, os.O_RDONLY | os.O_NONBLOCK)
    except (FileNotFoundError, PermissionError):
        return ""
    records = []
    try:
        while record := next_record(descriptor):
            records.append(record)
    finally:
        os.close(descriptor)
    return b"".join(records).decode(errors="replace")


def next_record(descriptor: int) -> bytes:
    """Return the next record of a non-blocking descriptor; b"" where there is none yet."""
    while True:
        try:
            return os.read(descriptor, 8192)
        except BrokenPipeError:
            continue  # The record was overwritten while we read; the next read is past it.
        except BlockingIOError:
            return b""
