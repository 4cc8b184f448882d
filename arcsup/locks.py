"""Files that one process at a time may hold (flock(2)): the lock goes with it, however it ends."""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from arcsup.errors import ArcsupError


@contextmanager
def locked(descriptor: int, refuse: Callable[[], ArcsupError]) -> Iterator[int]:
    """Hold the lock of an open file or folder for the block, and close it then.

    Raises what ``refuse`` returns when somebody else holds it.
    """
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise refuse() from None
        yield descriptor
    finally:
        os.close(descriptor)
