"""What is wrong with the host and not with the VM that happens to need it: no room, no resources.

Such trouble passes by itself or by what an operator does to the host, so nobody pays for it.
"""

import errno
import os

from arcsup.errors import ArcsupError

_ERRORS = frozenset(
    {
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EROFS,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOMEM,
        errno.EAGAIN,
    }
)
"""Numbers of a system call that found no room, or too few of the host's resources."""

_NO_THREAD = "can't start new thread"
"""What Python says where the kernel refuses a thread (_thread.start_new_thread)."""

_WORDS = (
    *map(os.strerror, (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE)),
    f"qemu_thread_create: {os.strerror(errno.EAGAIN)}",
    f"pthread_create: {os.strerror(errno.EAGAIN)}",
    "Cannot fork",
)
"""What a program says of such trouble: strerror(3), QEMU's and GLib's threads, dash's fork.

No memory is not among it: a VM may ask for too much. EAGAIN alone is not either: it is what QEMU
says of a lock that somebody else has. Source: util/qemu-thread-posix.c in QEMU, error_exit.
"""


def is_host_trouble(error: BaseException) -> bool:
    """Tell whether the host's lack of something is what ``error`` was raised for."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in _ERRORS):
        return True
    if isinstance(error, RuntimeError) and _NO_THREAD in str(error):
        return True
    if isinstance(error, ArcsupError) and tells_host_trouble(error.message):
        return True
    return error.__cause__ is not None and is_host_trouble(error.__cause__)


def tells_host_trouble(words: str) -> bool:
    """Tell whether a program that ended says that the host lacked something."""
    return any(it in words for it in _WORDS)
