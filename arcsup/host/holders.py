"""Who has a VFIO device open, by looking at every process's open files (proc_pid_fd(5)).

The kernel has no question for it: opening the group ourselves would tell (EBUSY), and would also
take it from whoever is about to.
"""

import errno
import os
import re
from collections.abc import Mapping
from pathlib import Path

from attrs import field, frozen

_NODE = re.compile(r"/dev/vfio/((?:noiommu-)?\d+|devices/vfio\d+)(?: \(deleted\))?")


@frozen
class Holders:
    """Pids by node below /dev/vfio: ``12`` for a group, ``devices/vfio0`` for a device.

    ``complete`` is False when some process could not be looked into: then nothing is proven free.
    """

    by_node: Mapping[str, tuple[int, ...]] = field(factory=dict)
    complete: bool = True

    def of(self, group: int | None, device: str | None) -> tuple[int, ...]:
        """Return who holds a group or the device in it (``vfio0``), by pid."""
        pids = set(self.by_node.get(str(group), ()))
        pids.update(self.by_node.get(f"noiommu-{group}", ()))
        pids.update(self.by_node.get(f"devices/{device}", ()))
        return tuple(sorted(pids))


def find_holders(proc: Path = Path("/proc")) -> Holders:
    """Return who holds VFIO devices now. Needs root to see other people's processes."""
    by_node: dict[str, set[int]] = {}
    complete = True
    for name in os.listdir(proc):
        if not (name.isascii() and name.isdigit()):
            continue
        try:
            for node in _held_by(f"{proc}/{name}/fd"):
                by_node.setdefault(node, set()).add(int(name))
        except (FileNotFoundError, ProcessLookupError):
            continue  # It ended while we looked.
        except OSError:
            complete = False
    return Holders({node: tuple(sorted(pids)) for node, pids in by_node.items()}, complete)


def _held_by(folder: str) -> set[str]:
    nodes = set()
    for descriptor in os.listdir(folder):
        try:
            target = os.readlink(f"{folder}/{descriptor}")
        except FileNotFoundError:
            continue  # It was closed while we looked.
        except OSError as error:
            # A guest can make such paths in what it shares; VFIO's are short.
            if error.errno == errno.ENAMETOOLONG:
                continue
            raise
        if match := _NODE.fullmatch(target):
            nodes.add(match[1])
    return nodes
