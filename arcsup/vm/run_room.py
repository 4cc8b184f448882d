"""Whether there is room in the runtime directory, and which VM's QEMU has taken it.

QEMU's own folder there holds sockets and, for a moment, a screenshot. But its user can write to it,
most hosts have it on the tmpfs of all of /run, and what a QEMU writes is bounded by no more than
the memory limit of its VM (tmpfs counts as that: Documentation/admin-guide/cgroup-v2.rst).
"""

import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from arcsup.model import VmName
from arcsup.places import Places

LEAST_ROOM = 0.05
"""Part of the file system below which that is told: no VM starts without room for its sockets."""

MUCH = 1 << 20
"""Bytes of a QEMU's files there that are worth a word; as a rule it has none."""

MOST_ENTRIES = 1000
"""Files of a QEMU that are looked at: it may have made any number of them."""


def tell_lack_of_room(places: Places, names: Iterable[VmName]) -> Iterator[str]:
    """Yield, in a sentence, that the runtime directory is nearly full, and by whom."""
    try:
        room = os.statvfs(places.run)
    except OSError:
        return  # It is gone, which is told elsewhere.
    if room.f_bavail >= LEAST_ROOM * room.f_blocks:
        return
    sizes = {name: _measure(places.qemu_run_of(name)) for name in names}
    much = [
        f"QEMU of VM {name} has {size >> 20} MiB there, which it does not need: arcsup kill {name}"
        for name, size in sorted(sizes.items())
        if size >= MUCH
    ]
    left = (room.f_bavail * room.f_frsize) >> 20
    yield "; ".join((f"{places.run} is nearly full ({left} MiB left): no VM can be started", *much))


def _measure(folder: Path) -> int:
    """Return how many bytes the first of the files in a folder have on their file system."""
    size = 0
    try:
        with os.scandir(folder) as entries:
            for entry in islice(entries, MOST_ENTRIES):
                size += entry.stat(follow_symlinks=False).st_blocks * 512
    except OSError:
        return size  # It has none, or what was there goes meanwhile.
    return size
