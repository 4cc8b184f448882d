"""Who has a VFIO device open, by looking at every process's open files (proc_pid_fd(5)).

The kernel has no question for it: opening the group ourselves would tell (EBUSY), and would also
take it from whoever is about to.
"""

import errno
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from attrs import field, frozen

_NODE = re.compile(r"/dev/vfio/((?:noiommu-)?\d+|devices/vfio\d+)(?: \(deleted\))?")


PROC = Path("/proc")


@frozen
class Holders:
    """Pids by node below /dev/vfio: ``12`` for a group, ``devices/vfio0`` for a device.

    ``unseen`` are processes that could not be looked into: they may hold anything.
    """

    by_node: Mapping[str, tuple[int, ...]] = field(factory=dict)
    unseen: tuple[int, ...] = ()

    @property
    def complete(self) -> bool:
        """Tell whether every process was looked into: else nothing is proven free."""
        return not self.unseen

    def of(self, group: int | None, device: str | None) -> tuple[int, ...]:
        """Return who holds a group or the device in it (``vfio0``), by pid."""
        pids = set(self.by_node.get(str(group), ()))
        pids.update(self.by_node.get(f"noiommu-{group}", ()))
        pids.update(self.by_node.get(f"devices/{device}", ()))
        return tuple(sorted(pids))


def find_holders(proc: Path = PROC) -> Holders:
    """Return who holds VFIO devices now. Needs root to see other people's processes."""
    by_node: dict[str, set[int]] = {}

    def visit(pid: int, target: str) -> None:
        if match := _NODE.fullmatch(target):
            by_node.setdefault(match[1], set()).add(pid)

    unseen = visit_open_files(proc, visit)
    return Holders({node: tuple(sorted(pids)) for node, pids in by_node.items()}, unseen)


def visit_open_files(proc: Path, visit: Callable[[int, str], None]) -> tuple[int, ...]:
    """Call ``visit`` with the pid and the path of each open file of each process.

    Returns the processes that could not be looked into (to the end).
    """
    unseen = []
    for name in os.listdir(proc):
        if not (name.isascii() and name.isdigit()):
            continue
        try:
            _visit_process(f"{proc}/{name}/fd", int(name), visit)
        except (FileNotFoundError, ProcessLookupError):
            continue  # It ended while we looked.
        except OSError:
            unseen.append(int(name))
    return tuple(sorted(unseen))


def describe_process(pid: int, proc: Path = PROC) -> str:
    """Return a process and its program in words: ``process 4711 (Xorg)``.

    A program chooses its name itself (prctl(2), PR_SET_NAME): what is no text of it is left out.
    """
    try:
        told = (proc / str(pid) / "comm").read_text(errors="replace")
    except OSError:
        return f"process {pid}"
    program = "".join(letter for letter in told if letter.isprintable())
    return f"process {pid} ({program})" if program else f"process {pid}"


def _visit_process(folder: str, pid: int, visit: Callable[[int, str], None]) -> None:
    for descriptor in os.listdir(folder):
        try:
            target = os.readlink(f"{folder}/{descriptor}")
        except FileNotFoundError:
            continue  # It was closed while we looked.
        except OSError as error:
            # A guest can make such paths in what it shares; device nodes' are short.
            if error.errno == errno.ENAMETOOLONG:
                continue
            raise
        visit(pid, target)
