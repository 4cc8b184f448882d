"""An inventory goes through JSON and comes back the same; what is wrong in a file is told."""

import contextlib
import json
from typing import Any

import pytest
from attrs import fields
from hypothesis import given
from hypothesis import strategies as st

from arcsup.control.gpus import gather_types, view_card, view_inventory
from arcsup.control.inventory_file import read_inventory
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

texts = st.text(max_size=12)
counts = st.integers(0, 1 << 20)
sizes = st.none() | counts.map(MiB)
cpu_sets = st.frozensets(st.integers(0, 64), max_size=8).map(CpuSet)
backends = st.sampled_from(Backend)


def tuples(of: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(of, max_size=3).map(tuple)


types = st.builds(
    SliceType,
    id=st.sampled_from(["nvidia-1", "nvidia-2", "mbochs-small"]),
    name=texts,
    vram_mib=sizes,
    available=st.none() | counts,
    maximum=st.none() | counts,
    device_api=texts,
    parent=texts,
    backend=backends,
)
slices = st.builds(
    Slice,
    backend=backends,
    id=texts,
    type=st.none() | texts,
    parent=texts,
    path=texts,
    vm=st.none() | texts.map(VmName),
    ours=st.booleans(),
    holders=tuples(counts),
    group=st.none() | counts,
    vram_mib=sizes,
    owner=texts,
)
functions = st.builds(
    Function, texts, st.none() | texts, st.none() | counts, texts, tuples(texts), sizes, texts
)
cards = st.builds(
    Card,
    address=texts,
    path=texts,
    name=texts,
    vendor=texts,
    device=texts,
    subsystem=texts,
    pci_class=texts,
    driver=st.none() | texts,
    numa_node=st.none() | counts,
    local_cpus=cpu_sets,
    group=st.none() | st.builds(IommuGroup, counts, tuples(texts), tuples(texts), tuples(texts)),
    backends=tuples(backends),
    vfs_total=counts,
    vf_type=texts,
    vfs=tuples(functions),
    companions=tuples(functions),
    staying=tuples(functions),
    reset_methods=tuples(texts),
    host_use=tuples(texts),
    without_reset=tuples(texts),
    boot_vga=st.booleans(),
    in_use_by_host=texts,
    types=tuples(types),
    slices=tuples(slices),
    rule=st.sampled_from(CapacityRule),
    usable=st.booleans(),
    why=texts,
    subsystem_name=texts,
)
network_vfs = st.builds(
    NetworkVf, texts, st.none() | counts, st.none() | texts.map(VmName), obstacle=texts
)
network_cards = st.builds(
    NetworkCard,
    address=texts,
    vendor=texts,
    device=texts,
    driver=st.none() | texts,
    numa_node=st.none() | counts,
    vfs_total=counts,
    vfs=tuples(network_vfs),
)
inventories = st.builds(
    Inventory,
    hostname=texts,
    kernel=texts,
    cards=tuples(cards),
    iommu=st.booleans(),
    numa=tuples(st.builds(NumaNodeSeen, counts, cpu_sets, counts.map(MiB))),
    faults=tuples(texts),
    network_cards=tuples(network_cards),
)

MINIMAL: dict[str, Any] = {
    "version": 1,
    "host": "far",
    "iommu": True,
    "numa": [{"id": 0, "cpus": "0-3", "memoryMiB": 1024}],
    "gpus": [
        {
            "address": "0000:41:00.0",
            "vendor": "10de",
            "device": "26b9",
            "subsystem": "10de:1851",
            "name": "L40S",
            "class": "030200",
            "driver": "nvidia",
            "numaNode": None,
            "iommuGroup": 4,
            "backends": ["vendor-vfio", "passthrough"],
            "vfs": {"total": 32, "enabled": 32},
            "types": [
                {
                    "id": "nvidia-1148",
                    "name": "NVIDIA L40S-2Q",
                    "vramMiB": 2048,
                    "available": 24,
                    "max": None,
                    "deviceApi": "vfio-pci",
                    "parent": "0000:41:00.0",
                }
            ],
            "slices": [
                {"kind": "vgpu", "id": "0000:41:00.4", "type": None, "vm": None, "ours": False}
            ],
            "usable": True,
            "why": "",
        }
    ],
}


@given(inventories)
def test_an_inventory_comes_back_the_same(inventory: Inventory) -> None:
    assert read_inventory(json.dumps(view_inventory(inventory))) == inventory


def test_every_field_is_tried() -> None:
    # A field with a default that the strategies leave out would come back the same by chance.
    assert len(fields(Card)) == 28
    assert len(fields(Slice)) == 11
    assert len(fields(Function)) == 7


def test_what_only_the_contract_names_is_enough() -> None:
    (card,) = read_inventory(json.dumps(MINIMAL)).cards
    assert card.types[0].backend is Backend.VENDOR_VFIO
    assert card.slices[0].backend is Backend.VENDOR_VFIO
    assert card.slices[0].parent == card.address
    assert card.group == IommuGroup(4, ("0000:41:00.0",))


def change(path: str, value: object) -> str:
    data = json.loads(json.dumps(MINIMAL))
    *folders, key = path.split(".")
    place = data
    for folder in folders:
        place = place[int(folder)] if folder.isdigit() else place[folder]
    if value is None:
        del place[key]
    else:
        place[key] = value
    return json.dumps(data)


@pytest.mark.parametrize(
    ("path", "value", "fault"),
    [
        ("iommu", "yes", "far.json: iommu: expected true or false, found 'yes'"),
        ("numa.0.id", "0", "far.json: numa[0].id: expected a whole number, found '0'"),
        ("numa.0.id", True, "far.json: numa[0].id: expected a whole number, found True"),
        ("gpus.0.usable", None, "far.json: gpus[0].usable: is missing"),
        ("gpus.0.vfs.total", 1.5, "far.json: gpus[0].vfs.total: expected a whole number"),
        ("numa.0.cpus", "lots", "far.json: numa[0].cpus: expected host CPUs such as 0-3,8"),
        ("gpus.0.backends", ["magic"], "far.json: gpus[0].backends: expected one of mdev, "),
        ("gpus.0.rule", "none", "far.json: gpus[0].rule: expected one of any, "),
        ("gpus.0.slices.0.kind", "x", "far.json: gpus[0].slices.kind: expected vgpu, "),
        ("gpus", 5, "far.json: gpus: expected"),
        ("version", 2, "far.json:1:1: expected what `arcsup inventory -o json` writes"),
    ],
)
def test_a_fault_is_told_with_its_place(path: str, value: object, fault: str) -> None:
    with pytest.raises(SpecError) as caught:
        read_inventory(change(path, value), "far.json")
    assert caught.value.message.startswith(fault)
    assert "\n" not in caught.value.message


def test_all_faults_of_the_shape_are_told_at_once() -> None:
    text = change("gpus.0.why", 4).replace('"far"', "7")
    with pytest.raises(SpecError) as caught:
        read_inventory(text)
    assert len(caught.value.message.splitlines()) == 2


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100000, '{"version": true}'])
def test_what_is_no_inventory_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match=r"^inventory:1:"):
        read_inventory(text)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from(["gpus", "numa", "iommu", "gpus.0.types", "gpus.0.vfs"]), json_values)
def test_no_value_raises_anything_else(path: str, value: object) -> None:
    with contextlib.suppress(SpecError):
        read_inventory(change(path, value))


@given(json_values)
def test_no_card_raises_anything_else(value: object) -> None:
    with contextlib.suppress(SpecError):
        read_inventory(json.dumps({**MINIMAL, "gpus": [value]}))


def test_a_type_is_shown_once_with_what_all_parents_have() -> None:
    def kind(parent: str, available: int | None) -> SliceType:
        return SliceType(
            "nvidia-1", "A", MiB(4096), available, 20, "vfio-pci", parent, Backend.MDEV
        )

    card = Card("0000:41:00.0", "", "", types=(kind("vf1", 1), kind("vf2", None), kind("vf3", 1)))
    (shown,) = gather_types(card)
    assert (shown.available, shown.parent, shown.maximum) == (2, "0000:41:00.0", 20)
    assert len(view_card(card)["offers"]) == 3
    alone = Card("0000:41:00.0", "", "", types=(kind("vf1", None),))
    assert view_card(alone)["types"][0]["parent"] == "vf1"
    assert view_card(alone)["offers"] == []
