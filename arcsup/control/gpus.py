"""Cards and inventories as the JSON of the control socket. Pure."""

from collections.abc import Iterable, Sequence

from arcsup.control.shapes import (
    FunctionJson,
    GpuJson,
    GpuSliceJson,
    GpuTypeJson,
    GroupJson,
    InventoryJson,
    NetworkCardJson,
    TypeVerdictJson,
)
from arcsup.devices import (
    Backend,
    Card,
    Function,
    Inventory,
    IommuGroup,
    NetworkCard,
    Slice,
    SliceType,
)
from arcsup.model import GpuKind
from arcsup.plan.survey import TypeVerdict
from arcsup.spec.units import show_cpus

INVENTORY_VERSION = 1
"""Of the format of ``inventory -o json``; higher when an older arcsup would misread it."""

KINDS = {
    Backend.MDEV: GpuKind.VGPU,
    Backend.VENDOR_VFIO: GpuKind.VGPU,
    Backend.SRIOV: GpuKind.VF,
    Backend.PASSTHROUGH: GpuKind.PASSTHROUGH,
}
"""What a VM file calls what each back end makes."""

_NO_GPU = TypeVerdict("", "", "", None, False, "the host has no GPU")


def view_inventory(inventory: Inventory) -> InventoryJson:
    """Return a host's inventory; ``read_inventory`` reads it back as the same value."""
    return {
        "version": INVENTORY_VERSION,
        "host": inventory.hostname,
        "kernel": inventory.kernel,
        "gpus": [view_card(card) for card in inventory.cards],
        "iommu": inventory.iommu,
        "numa": [
            {"id": node.id, "cpus": show_cpus(node.cpus), "memoryMiB": node.memory_mib}
            for node in inventory.numa
        ],
        "faults": list(inventory.faults),
        "networkCards": [_view_network_card(card) for card in inventory.network_cards],
    }


def view_card(card: Card) -> GpuJson:
    """Return one entry of ``gpu list``."""
    gathered = [_view_type(kind) for kind in gather_types(card)]
    each = [_view_type(kind) for kind in card.types]
    return {
        "address": card.address,
        "vendor": card.vendor,
        "device": card.device,
        "subsystem": card.subsystem,
        "name": card.name,
        "subsystemName": card.subsystem_name,
        "class": card.pci_class,
        "driver": card.driver,
        "numaNode": card.numa_node,
        "localCpus": show_cpus(card.local_cpus),
        "iommuGroup": None if card.group is None else card.group.number,
        "group": None if card.group is None else _view_group(card.group),
        "backends": [backend.value for backend in card.backends],
        "vfs": {
            "total": card.vfs_total,
            "enabled": len(card.vfs),
            "type": card.vf_type,
            "functions": [_view_function(function) for function in card.vfs],
        },
        "companions": [_view_function(function) for function in card.companions],
        "staying": [_view_function(function) for function in card.staying],
        "resetMethods": list(card.reset_methods),
        "withoutReset": list(card.without_reset),
        "bootVga": card.boot_vga,
        "inUseByHost": card.in_use_by_host,
        "hostUse": list(card.host_use),
        "rule": card.rule.value,
        "types": gathered,
        "offers": [] if each == gathered else each,
        "slices": [_view_slice(piece) for piece in card.slices],
        "usable": card.usable,
        "why": card.why,
        "path": card.path,
    }


def view_verdicts(
    slots: Iterable[tuple[int, Sequence[TypeVerdict]]],
) -> list[TypeVerdictJson]:
    """Return what ``gpu types --for`` shows."""
    return [
        {
            "slot": slot,
            "card": verdict.card,
            "type": verdict.type,
            "name": verdict.name,
            "vramMiB": verdict.vram_mib,
            "chosen": verdict.chosen,
            "why": verdict.why,
        }
        for slot, verdicts in slots
        for verdict in verdicts or (_NO_GPU,)
    ]


def gather_types(card: Card) -> list[SliceType]:
    """Return each type once, ``available`` summed over the card's parents.

    The sum is what the parents say; the card's own limit (``maximum``) may allow fewer.
    """
    by_id: dict[str, list[SliceType]] = {}
    for kind in card.types:
        by_id.setdefault(kind.id, []).append(kind)
    return [_merge(card.address, kinds) for kinds in by_id.values()]


def _merge(address: str, kinds: Sequence[SliceType]) -> SliceType:
    first = kinds[0]
    if len(kinds) == 1:
        return first
    return SliceType(
        id=first.id,
        name=first.name,
        vram_mib=first.vram_mib,
        available=_sum(kind.available for kind in kinds),
        maximum=first.maximum,
        device_api=first.device_api,
        parent=address,
        backend=first.backend,
    )


def _sum(numbers: Iterable[int | None]) -> int | None:
    known = [number for number in numbers if number is not None]
    return sum(known) if known else None


def _view_type(kind: SliceType) -> GpuTypeJson:
    return {
        "id": kind.id,
        "name": kind.name,
        "vramMiB": kind.vram_mib,
        "available": kind.available,
        "max": kind.maximum,
        "deviceApi": kind.device_api,
        "parent": kind.parent,
        "backend": kind.backend.value,
    }


def _view_slice(piece: Slice) -> GpuSliceJson:
    return {
        "kind": KINDS[piece.backend].value,
        "id": piece.id,
        "type": piece.type,
        "vm": piece.vm,
        "ours": piece.ours,
        "backend": piece.backend.value,
        "parent": piece.parent,
        "path": piece.path,
        "owner": piece.owner,
        "holders": list(piece.holders),
        "iommuGroup": piece.group,
        "vramMiB": piece.vram_mib,
    }


def _view_function(function: Function) -> FunctionJson:
    return {
        "address": function.address,
        "driver": function.driver,
        "iommuGroup": function.group,
        "path": function.path,
        "blockers": list(function.blockers),
        "vramMiB": function.vram_mib,
        "class": function.pci_class,
    }


def _view_group(group: IommuGroup) -> GroupJson:
    return {
        "number": group.number,
        "members": list(group.members),
        "viable": not group.blockers,
        "blockers": list(group.blockers),
        "mates": list(group.mates),
    }


def _view_network_card(card: NetworkCard) -> NetworkCardJson:
    return {
        "address": card.address,
        "vendor": card.vendor,
        "device": card.device,
        "driver": card.driver,
        "numaNode": card.numa_node,
        "vfsTotal": card.vfs_total,
        "functions": [
            {
                "address": vf.address,
                "iommuGroup": vf.group,
                "vm": vf.vm,
                "why": vf.obstacle,
                "reserved": vf.reserved,
            }
            for vf in card.vfs
        ],
    }
