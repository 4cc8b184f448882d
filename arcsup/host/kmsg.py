"""What the kernel log says of processes that it killed. Source: Documentation/ABI/testing/dev-kmsg.

Records read ``priority,sequence,microseconds,flags;text``. Reading needs CAP_SYSLOG (or
kernel.dmesg_restrict=0); where it is not allowed, nothing is known.
"""

import os
import re
from pathlib import Path

_OOM_KILL = re.compile(r"[Oo]ut of memory: Killed process (\d+) ")
"""mm/oom_kill.c, both for the whole host and for a memory cgroup."""


def parse_oom_kills(text: str) -> frozenset[int]:
    """Return the pids that the kernel log says were killed for want of memory."""
    return frozenset(int(match) for match in _OOM_KILL.findall(text))


def read_kernel_log(device: Path = Path("/dev/kmsg")) -> str:
    """Return all kept records of the kernel log, oldest first; "" where it may not be read."""
    try:
        descriptor = os.open(device, os.O_RDONLY | os.O_NONBLOCK)
    except (FileNotFoundError, PermissionError):
        return ""
    records = []
    try:
        while record := _next_record(descriptor):
            records.append(record)
    finally:
        os.close(descriptor)
    return b"".join(records).decode(errors="replace")


def _next_record(descriptor: int) -> bytes:
    while True:
        try:
            return os.read(descriptor, 8192)
        except BrokenPipeError:
            continue  # The record was overwritten while we read; the next read is past it.
        except BlockingIOError:
            return b""
