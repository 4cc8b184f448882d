"""The few ways in which arcsup says no, split by what one can do about it.

Every error is one line of what went wrong, and at most one line of what to do now (``hint``).
The exit codes are those of the command line; control/ turns the same classes into HTTP statuses.
"""

import errno
from enum import IntEnum


class ExitCode(IntEnum):
    """What a verb of the command line ends with."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_AS_DESIRED = 3
    NO_SUCH_OBJECT = 4
    NO_PERMISSION = 5
    REFUSED = 6
    NO_DAEMON = 69
    TIMED_OUT = 124


class ArcsupError(Exception):
    """Base of all errors that are meant for people. ``code`` is a word for programs."""

    exit_code = ExitCode.FAILED
    code = "failed"

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class SpecError(ArcsupError):
    """A file is wrong; the file must be changed. The message starts with FILE:LINE:COL."""

    code = "invalid"


class UsageError(ArcsupError):
    """The call itself makes no sense."""

    exit_code = ExitCode.USAGE
    code = "usage"


class NoSuchObject(ArcsupError):
    """There is no VM, GPU or file of that name."""

    exit_code = ExitCode.NO_SUCH_OBJECT
    code = "not-found"


class NotPermitted(ArcsupError):
    """The caller may not do that."""

    exit_code = ExitCode.NO_PERMISSION
    code = "forbidden"


class Refused(ArcsupError):
    """It could be done, but something holds it, or it would harm something that runs."""

    exit_code = ExitCode.REFUSED
    code = "refused"


class DaemonUnreachable(ArcsupError):
    """Nothing answers at the control socket."""

    exit_code = ExitCode.NO_DAEMON
    code = "no-daemon"


class TimedOut(ArcsupError):
    """It was asked for and did not happen in time; it may still happen."""

    exit_code = ExitCode.TIMED_OUT
    code = "timed-out"


class Transient(ArcsupError):
    """Not now (busy, not there yet): the same attempt may succeed later and is made again."""

    code = "transient"


class Terminal(ArcsupError):
    """Trying again is useless until a file, a device or the host changes."""

    code = "terminal"


class NotRecorded(Terminal):
    """The disk took no record of a deed, so the deed was left undone.

    Whoever asked for it hears of it; what the daemon does by itself is tried again.
    """


class Stuck(Transient):
    """The kernel has not answered within the deadline; it may still do what was asked of it."""

    code = "stuck"


def describe_os_error(error: OSError) -> str:
    """Return what went wrong and where, as far as the system call had a name for it."""
    reason = error.strerror or str(error)
    return f"{error.filename}: {reason}" if error.filename else reason


_SHORTAGES = frozenset(
    {
        errno.EAGAIN,
        errno.EDQUOT,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOBUFS,
        errno.ENOMEM,
        errno.ENOSPC,
    }
)


def is_shortage(error: BaseException) -> bool:
    """Tell whether the host has run out of something, so that the same may work a moment later.

    That is file descriptors, memory, threads or room on a disk. Of a group: whether all are that.
    """
    if isinstance(error, BaseExceptionGroup):
        return all(map(is_shortage, error.exceptions))
    if isinstance(error, OSError):
        return error.errno in _SHORTAGES
    # CPython's words when clone(2) fails; it is no OSError there.
    no_thread = isinstance(error, RuntimeError) and "can't start new thread" in str(error)
    return no_thread or isinstance(error, MemoryError)
