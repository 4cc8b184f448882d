"""One setup at a time: two of them would journal each other's steps."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from arcsup.errors import ArcsupError, Refused
from arcsup.locks import locked
from arcsup.setup.host import Host


@contextmanager
def hold_setup(host: Host) -> Iterator[None]:
    """Keep every other setup of this host out. Raises Refused while there is one.

    The file lies where the next boot begins
    without it; below a directory that has no such place, the directory itself is the lock.
    """
    folder = host.places.run.parent
    try:
        if folder.is_dir():
            path = folder / "arcsup-setup.lock"
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        else:
            lock = os.open(host.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ArcsupError(
            f"{error.filename}: {error.strerror}", "run it as root: sudo arcsup setup"
        ) from error
    refusal = Refused("another setup of this host runs", "wait until it has ended")
    with locked(lock, lambda: refusal):
        yield
