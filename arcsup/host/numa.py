"""The host's NUMA nodes: which CPUs and how much memory are near each other.

Source: Documentation/ABI/stable/sysfs-devices-node in the kernel tree.
"""

import re
from pathlib import Path

from attrs import frozen

from arcsup.model import CpuSet, MiB

_NODE = re.compile(r"node(\d+)")
_TOTAL = re.compile(r"MemTotal:\s+(\d+) kB")


@frozen
class NumaNode:
    """One node; ``cpus`` is empty for memory without processors."""

    id: int
    cpus: CpuSet
    memory_mib: MiB


def observe_numa(sysfs: Path) -> tuple[NumaNode, ...]:
    """Return the nodes in order; none where the kernel knows nothing of NUMA."""
    folder = sysfs / "devices/system/node"
    if not folder.is_dir():
        return ()
    found = ((_NODE.fullmatch(entry.name), entry) for entry in folder.iterdir())
    nodes = (_observe_node(int(match[1]), entry) for match, entry in found if match)
    return tuple(sorted(nodes, key=lambda node: node.id))


def _observe_node(number: int, folder: Path) -> NumaNode:
    total = _TOTAL.search((folder / "meminfo").read_text(encoding="ascii"))
    return NumaNode(
        id=number,
        cpus=parse_cpu_list((folder / "cpulist").read_text(encoding="ascii")),
        memory_mib=MiB(int(total[1]) // 1024 if total else 0),
    )


def parse_cpu_list(text: str) -> CpuSet:
    """Return the CPUs of the kernel's list format (``0-3,8``; cpuset(7)). Raises ValueError."""
    cpus: set[int] = set()
    for part in text.strip().split(","):
        if not part:
            continue
        first, _, last = part.partition("-")
        cpus.update(range(int(first), int(last or first) + 1))
    return CpuSet(frozenset(cpus))
