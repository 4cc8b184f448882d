"""The host's GPUs and what is cut from them: one look at the device tree as one value.

A GPU is a PCI function of class 03 (display) or 12 (accelerator), or whatever offers mediated
devices. Virtual functions belong to the entry of their physical function.
"""

import re
from collections.abc import Collection
from pathlib import Path

from arcsup.devices import Inventory, NumaNodeSeen
from arcsup.host.cards import (
    PCI,
    Look,
    is_gpu_class,
    observe_device,
    observe_function,
    offers_vgpus,
)
from arcsup.host.mdev_types import find_parents
from arcsup.host.network_cards import is_network_card, observe_network_cards
from arcsup.host.surroundings import Surroundings, look_around
from arcsup.host.sysfs import Sysfs
from arcsup.model import MiB

_NODE = re.compile(r"node(\d{1,5})")
_TOTAL = re.compile(r"MemTotal:\s+(\d{1,15}) kB")


def observe_host(sysfs: Path) -> Inventory:
    """Return the inventory of this host without a daemon: nothing is known to be ours."""
    return observe_inventory(Sysfs(sysfs), look_around(sysfs))


def observe_inventory(sysfs: Sysfs, around: Surroundings) -> Inventory:
    """Return all cards in the order of their addresses. Never raises for what the tree has.

    May block where the kernel does: call it from a thread.
    """
    look = Look(sysfs, around)
    functions, devices = _find_cards(look)
    cards = [observe_function(look, address) for address in functions]
    cards += [observe_device(look, real) for real in devices]
    network_cards = observe_network_cards(sysfs, look.groups, around.owners, around.holders)
    return Inventory(
        hostname=around.hostname,
        kernel=around.kernel,
        cards=tuple(cards),
        iommu=bool(sysfs.names("class/iommu")) or any(card.group for card in cards),
        numa=_observe_nodes(sysfs),
        faults=tuple(sysfs.faults),
        network_cards=network_cards,
    )


def _find_cards(look: Look) -> tuple[list[str], list[str]]:
    """Return the addresses of the PCI functions that are cards, and the paths of other parents."""
    addresses = frozenset(look.sysfs.names(PCI))
    functions = _find_gpus(look, addresses)
    mdevs = [mdev for group in look.mdevs.values() for mdev in group]
    devices = []
    for path in find_parents(look.sysfs, mdevs):
        name = path.rpartition("/")[2]
        if name in addresses:
            functions.add(_owner_of(look.sysfs, f"{PCI}/{name}") or name)
        else:
            devices.append(path)
    return sorted(functions), devices


def _find_gpus(look: Look, addresses: Collection[str]) -> set[str]:
    found: set[str] = set()
    for address in sorted(addresses):
        path = f"{PCI}/{address}"
        if not look.sysfs.is_folder(path):
            look.sysfs.fault(path, "is a link that leads nowhere")
            continue
        pci_class = look.sysfs.hex_digits(f"{path}/class", 6)
        if not pci_class:
            look.sysfs.fault(path, "its class is not known")
        owner = _owner_of(look.sysfs, path) or address
        named = address in look.around.also and not is_network_card(look.sysfs, f"{PCI}/{owner}")
        wanted = is_gpu_class(pci_class) or named
        if wanted or offers_vgpus(look.sysfs, path):
            found.add(owner)
    return found


def _owner_of(sysfs: Sysfs, path: str) -> str | None:
    """Return the physical function of a VF; None for a function that is none, or is alone."""
    if not sysfs.has(f"{path}/physfn"):
        return None
    owner = sysfs.link_name(f"{path}/physfn")
    return owner if owner is not None and sysfs.is_folder(f"{PCI}/{owner}") else None


def _observe_nodes(sysfs: Sysfs) -> tuple[NumaNodeSeen, ...]:
    folder = "devices/system/node"
    nodes = []
    for match in map(_NODE.fullmatch, sysfs.names(folder)):
        if match is None:
            continue
        total = _TOTAL.search(sysfs.text(f"{folder}/{match[0]}/meminfo") or "")
        memory = MiB(int(total[1]) // 1024 if total else 0)
        cpus = sysfs.cpus(f"{folder}/{match[0]}/cpulist")
        nodes.append(NumaNodeSeen(int(match[1]), cpus, memory))
    return tuple(sorted(nodes, key=lambda node: node.id))
