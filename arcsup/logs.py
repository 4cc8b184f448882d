"""Logging: to systemd's journal with fields when started by it, else lines on standard error.

Source of the journal's format: https://systemd.io/JOURNAL_NATIVE_PROTOCOL. Fields are what is
passed as ``extra`` with an upper-case name: ``logger.info("…", extra={"VM": name})``.
"""

import logging
import os
import socket
import struct
import sys
from pathlib import Path

JOURNAL_SOCKET = Path("/run/systemd/journal/socket")

_PRIORITIES = {
    logging.DEBUG: 7,
    logging.INFO: 6,
    logging.WARNING: 4,
    logging.ERROR: 3,
    logging.CRITICAL: 2,
}


def set_up_logging(level: str) -> None:
    """Send everything of ``level`` and above where people will look for it."""
    handler = JournalHandler() if _started_by_systemd() else logging.StreamHandler(sys.stderr)
    handler.setFormatter(FieldFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # One line for every batch of changed files says nothing that our own lines do not.
    logging.getLogger("watchfiles").setLevel(logging.WARNING)


def _started_by_systemd() -> bool:
    """JOURNAL_STREAM names the device and inode of the stream that systemd gave us (exec(5))."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    stream = os.fstat(sys.stderr.fileno())
    return (device, inode) == (str(stream.st_dev), str(stream.st_ino)) and JOURNAL_SOCKET.exists()


class FieldFormatter(logging.Formatter):
    """``time level message KEY=value …`` for people without a journal."""

    def format(self, record: logging.LogRecord) -> str:
        """Append the record's own fields to its message."""
        when = self.formatTime(record, "%H:%M:%S")
        fields = "".join(f" {key}={value}" for key, value in fields_of(record).items())
        line = f"{when}.{int(record.msecs):03d} {record.levelname.lower():7} {record.getMessage()}"
        return line + fields + (f"\n{_traceback(record)}" if record.exc_info else "")


class JournalHandler(logging.Handler):
    """Sends each record as one datagram with its fields."""

    def __init__(self) -> None:
        super().__init__()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)

    def emit(self, record: logging.LogRecord) -> None:
        """Send, or hand the failure to logging's own last resort."""
        try:
            self._socket.sendto(encode(record), os.fspath(JOURNAL_SOCKET))
        except OSError:
            self.handleError(record)


def encode(record: logging.LogRecord) -> bytes:
    """Return the datagram of a record: values with a newline carry their length in front."""
    message = record.getMessage()
    if record.exc_info:
        message = f"{message}\n{_traceback(record)}"
    fields = {
        "MESSAGE": message,
        "PRIORITY": str(_PRIORITIES.get(record.levelno, 6)),
        "SYSLOG_IDENTIFIER": "arcsup",
        "LOGGER": record.name,
        **fields_of(record),
    }
    parts = []
    for key, value in fields.items():
        # A file name that is not UTF-8 must not cost the line.
        data = value.encode(errors="backslashreplace")
        if b"\n" in data:
            parts.append(b"%s\n%s%s\n" % (key.encode(), struct.pack("<Q", len(data)), data))
        else:
            parts.append(b"%s=%s\n" % (key.encode(), data))
    return b"".join(parts)


def fields_of(record: logging.LogRecord) -> dict[str, str]:
    """Return what was passed as ``extra``: the attributes with upper-case names."""
    return {key: str(value) for key, value in vars(record).items() if key.isupper()}


def _traceback(record: logging.LogRecord) -> str:
    return logging.Formatter().formatException(record.exc_info) if record.exc_info else ""
