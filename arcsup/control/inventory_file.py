"""``inventory -o json`` read back: what ``plan --inventory FILE`` plans for. Pure.

The shapes of the control socket say what a file may have; keys that the contract does not name may
be left out, and keys that nobody knows are passed over.
"""

import json
from typing import Any

import cattrs
from cattrs.errors import BaseValidationError

from arcsup.control.gpus import INVENTORY_VERSION, KINDS
from arcsup.control.shapes import (
    FunctionJson,
    GpuJson,
    GpuSliceJson,
    GpuTypeJson,
    InventoryJson,
    NetworkCardJson,
    NumaNodeJson,
)
from arcsup.devices import (
    Backend,
    CapacityRule,
    Card,
    Function,
    Inventory,
    IommuGroup,
    NetworkCard,
    NetworkVf,
    NumaNodeSeen,
    Slice,
    SliceType,
)
from arcsup.errors import SpecError
from arcsup.model import CpuSet, MiB, VmName
from arcsup.spec.units import parse_cpus


def read_inventory(text: str, file: str = "inventory") -> Inventory:
    """Return the inventory in ``text``. Raises SpecError, one line for each fault."""
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise SpecError(f"{file}:{error.lineno}:{error.colno}: {error.msg}") from None
    except RecursionError:
        raise SpecError(f"{file}:1:1: is nested too deeply for an inventory") from None
    version = data.get("version") if isinstance(data, dict) else None
    if version != INVENTORY_VERSION or isinstance(version, bool):
        raise SpecError(
            f"{file}:1:1: expected what `arcsup inventory -o json` writes, version "
            f"{INVENTORY_VERSION}"
        )
    try:
        return _to_inventory(_converter.structure(data, InventoryJson))
    except BaseValidationError as error:
        faults = cattrs.transform_error(error, "", _describe)
    except _Wrong as error:
        faults = [str(error)]
    # "expected a whole number @ .gpus[0].numaNode"
    lines = (fault.partition(" @ ")[::2] for fault in faults)
    raise SpecError("\n".join(f"{file}: {where.lstrip('.')}: {what}" for what, where in lines))


class _Wrong(Exception):
    """A value that no shape forbids: ``what @ .where``."""


class _Unexpected(Exception):
    """A value of another type than its key has."""


def _describe(error: BaseException, _kind: type[Any] | None) -> str:
    if isinstance(error, _Unexpected):
        return str(error)
    if isinstance(error, KeyError):
        return "is missing"
    return f"expected something else ({error})"


def _take_exactly(kind: type[Any], words: str) -> Any:
    """Return a hook that takes a value as it is: cattrs would make an int of "5"."""

    def take(value: object, _type: object) -> object:
        if type(value) is not kind:
            shown = repr(value)
            raise _Unexpected(f"expected {words}, found {shown[:40]}")
        return value

    return take


def _make_converter() -> cattrs.Converter:
    converter = cattrs.Converter()
    for kind, words in ((str, "text"), (int, "a whole number"), (bool, "true or false")):
        converter.register_structure_hook(kind, _take_exactly(kind, words))
    return converter


_converter = _make_converter()


def _to_inventory(data: InventoryJson) -> Inventory:
    return Inventory(
        hostname=data["host"],
        kernel=data.get("kernel", ""),
        cards=tuple(_to_card(gpu, f".gpus[{n}]") for n, gpu in enumerate(data["gpus"])),
        iommu=data["iommu"],
        numa=tuple(_to_node(node, f".numa[{n}]") for n, node in enumerate(data["numa"])),
        faults=tuple(data.get("faults", ())),
        network_cards=tuple(map(_to_network_card, data.get("networkCards", ()))),
    )


def _to_network_card(data: NetworkCardJson) -> NetworkCard:
    return NetworkCard(
        address=data["address"],
        vendor=data["vendor"],
        device=data["device"],
        driver=data["driver"],
        numa_node=data["numaNode"],
        vfs_total=data["vfsTotal"],
        vfs=tuple(
            NetworkVf(
                address=vf["address"],
                group=vf["iommuGroup"],
                vm=None if vf["vm"] is None else VmName(vf["vm"]),
                obstacle=vf["why"],
                reserved=vf.get("reserved", ""),
            )
            for vf in data["functions"]
        ),
    )


def _to_node(data: NumaNodeJson, where: str) -> NumaNodeSeen:
    cpus = _to_cpus(data["cpus"], f"{where}.cpus")
    return NumaNodeSeen(data["id"], cpus, MiB(data["memoryMiB"]))


def _to_card(data: GpuJson, where: str) -> Card:
    address, number = data["address"], data["iommuGroup"]
    backends = tuple(_to_backend(word, f"{where}.backends") for word in data["backends"])
    group = None if number is None else IommuGroup(number, (address,))
    if told := data.get("group"):
        lists = (told["members"], told["blockers"], told.get("mates", ()))
        group = IommuGroup(told["number"], *map(tuple, lists))
    vgpu = Backend.VENDOR_VFIO if Backend.VENDOR_VFIO in backends else Backend.MDEV
    return Card(
        address=address,
        path=data.get("path", ""),
        name=data["name"],
        vendor=data["vendor"],
        device=data["device"],
        subsystem=data["subsystem"],
        pci_class=data["class"],
        driver=data["driver"],
        numa_node=data["numaNode"],
        local_cpus=_to_cpus(data.get("localCpus", ""), f"{where}.localCpus"),
        group=group,
        backends=backends,
        vfs_total=data["vfs"]["total"],
        vfs=tuple(_to_function(function) for function in data["vfs"].get("functions", ())),
        vf_type=data["vfs"].get("type", ""),
        companions=tuple(_to_function(function) for function in data.get("companions", ())),
        staying=tuple(_to_function(function) for function in data.get("staying", ())),
        host_use=tuple(data.get("hostUse", ())),
        without_reset=tuple(data.get("withoutReset", ())),
        reset_methods=tuple(data.get("resetMethods", ())),
        boot_vga=data.get("bootVga", False),
        in_use_by_host=data.get("inUseByHost", ""),
        types=tuple(
            _to_type(kind, vgpu, f"{where}.types") for kind in data.get("offers") or data["types"]
        ),
        slices=tuple(_to_slice(piece, vgpu, address, where) for piece in data["slices"]),
        rule=_to_rule(data.get("rule", CapacityRule.ANY.value), f"{where}.rule"),
        usable=data["usable"],
        why=data["why"],
        subsystem_name=data.get("subsystemName", ""),
    )


def _to_type(data: GpuTypeJson, vgpu: Backend, where: str) -> SliceType:
    return SliceType(
        id=data["id"],
        name=data["name"],
        vram_mib=_to_mib(data["vramMiB"]),
        available=data["available"],
        maximum=data["max"],
        device_api=data["deviceApi"],
        parent=data["parent"],
        backend=_to_backend(data.get("backend", vgpu.value), f"{where}.backend"),
    )


def _to_slice(data: GpuSliceJson, vgpu: Backend, address: str, where: str) -> Slice:
    made_by = {kind.value: backend for backend, kind in KINDS.items()} | {"vgpu": vgpu}
    if data["kind"] not in made_by:
        raise _Wrong(f"expected {', '.join(made_by)} @ {where}.slices.kind")
    backend = data.get("backend", made_by[data["kind"]].value)
    return Slice(
        backend=_to_backend(backend, f"{where}.slices.backend"),
        id=data["id"],
        type=data["type"],
        parent=data.get("parent", address),
        path=data.get("path", ""),
        vm=None if data["vm"] is None else VmName(data["vm"]),
        ours=data["ours"],
        holders=tuple(data.get("holders", ())),
        group=data.get("iommuGroup"),
        vram_mib=_to_mib(data.get("vramMiB")),
        owner=data.get("owner", ""),
    )


def _to_function(data: FunctionJson) -> Function:
    return Function(
        address=data["address"],
        driver=data["driver"],
        group=data["iommuGroup"],
        path=data["path"],
        blockers=tuple(data["blockers"]),
        vram_mib=_to_mib(data.get("vramMiB")),
        pci_class=data.get("class", ""),
    )


def _to_backend(word: str, where: str) -> Backend:
    if word not in set(Backend):
        raise _Wrong(f"expected one of {', '.join(Backend)} @ {where}")
    return Backend(word)


def _to_rule(word: str, where: str) -> CapacityRule:
    if word not in set(CapacityRule):
        raise _Wrong(f"expected one of {', '.join(CapacityRule)} @ {where}")
    return CapacityRule(word)


def _to_cpus(text: str, where: str) -> CpuSet:
    if not text:
        return CpuSet(frozenset())
    try:
        return parse_cpus(text)
    except ValueError as error:
        raise _Wrong(f"{error} @ {where}") from None


def _to_mib(number: int | None) -> MiB | None:
    return None if number is None else MiB(number)
