"""The inventory of real devices: what the kernel has is what `gpu list --offline` shows."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from arcsup.devices import Backend, CapacityRule, Card, Inventory
from arcsup.host.holders import find_holders
from arcsup.host.inventory import observe_host, observe_inventory
from arcsup.host.surroundings import Surroundings
from arcsup.host.sysfs import Sysfs
from tests.lab.kernel import MDEVS, bind, create, open_device, types_of, unbind, write

Nvidia = Callable[..., Path]
VendorVfs = Callable[..., list[Path]]

UUID = "00000000-0000-4000-8000-000000000001"
SYS = Path("/sys")


def card_of(inventory: Inventory, address: str) -> Card:
    (card,) = (card for card in inventory.cards if card.address == address)
    return card


def listed() -> dict[str, Any]:
    result = subprocess.run(
        [sys.executable, "-m", "arcsup", "gpu", "list", "--offline", "-o", "json"],
        check=True,
        capture_output=True,
        text=True,
    )
    return {card["address"]: card for card in json.loads(result.stdout)}


def test_the_list_shows_all_there_is(nvidia: Nvidia, gvtg: Path, mbochs: Path) -> None:
    card = nvidia(card="p4")
    shown = listed()
    assert {"mtty", "mdpy", "mbochs", card.name, gvtg.name} <= set(shown)
    sizes = {kind["id"]: kind["vramMiB"] for kind in shown["mbochs"]["types"]}
    assert sizes == {"mbochs-large": 64, "mbochs-medium": 16, "mbochs-small": 4}
    assert {kind["id"]: kind["available"] for kind in shown["mbochs"]["types"]} == types_of(mbochs)
    types = {kind["id"]: kind for kind in shown[card.name]["types"]}
    assert (types["nvidia-64"]["name"], types["nvidia-64"]["vramMiB"]) == ("GRID P4-2Q", 2048)
    assert types["nvidia-64"]["max"] == 4
    gvtg_sizes = {kind["id"]: kind["vramMiB"] for kind in shown[gvtg.name]["types"]}
    assert gvtg_sizes == {"i915-GVTg_V5_4": 512, "i915-GVTg_V5_8": 384}


def test_the_host_is_seen_with_its_iommu_and_nodes() -> None:
    inventory = observe_host(SYS)
    assert inventory.iommu
    assert [node.id for node in inventory.numa] == [0, 1]
    assert inventory.faults == ()


def test_a_mdev_is_a_slice_with_its_type_and_its_holder(mbochs: Path) -> None:
    mdev = create(mbochs, "mbochs-medium", UUID)
    (piece,) = card_of(observe_host(SYS), "mbochs").slices
    assert (piece.id, piece.type, piece.vram_mib) == (UUID, "mbochs-medium", 16)
    assert (piece.path, piece.holders, piece.ours) == (str(MDEVS / UUID), (), False)
    with open_device(mdev):
        (piece,) = card_of(observe_host(SYS), "mbochs").slices
        assert piece.holders == (os.getpid(),)
        assert piece.group is not None
        assert find_holders().of(piece.group, None) == (os.getpid(),)


def test_what_fits_beside_a_vgpu_tells_the_rule(nvidia: Nvidia) -> None:
    card = nvidia(card="p4", rule="same-type")
    create(card, "nvidia-64", UUID)
    assert card_of(observe_host(SYS), card.name).rule is CapacityRule.SAME_TYPE


def test_other_sizes_beside_a_vgpu_are_the_mixed_mode(nvidia: Nvidia) -> None:
    card = nvidia(card="p4", rule="mixed")
    create(card, "nvidia-64", UUID)
    assert card_of(observe_host(SYS), card.name).rule is CapacityRule.MIXED


def test_vendor_vgpus_are_under_their_physical_function(vendor_vfs: VendorVfs, pf: Path) -> None:
    vf, *others = vendor_vfs()
    write(vf / "nvidia/current_vgpu_type", "1148")
    try:
        card = card_of(observe_host(SYS), pf.name)
    finally:
        write(vf / "nvidia/current_vgpu_type", "0")
    assert card.backends == (Backend.VENDOR_VFIO,)
    assert len(card.vfs) == card.vfs_total == 4
    (piece,) = card.slices
    assert (piece.id, piece.type, piece.vram_mib) == (vf.name, "nvidia-1148", 2048)
    assert {kind.parent for kind in card.types} == {other.name for other in others}
    assert card.rule is CapacityRule.SAME_SIZE
    assert card.numa_node == 1


def test_types_of_vfs_are_summed_under_their_physical_function(
    vendor_vfs: VendorVfs, pf: Path
) -> None:
    vfs = vendor_vfs(vf_interface="mdev")
    create(vfs[0], "nvidia-1148", UUID)
    shown = listed()
    assert not {vf.name for vf in vfs} & set(shown)
    types = {kind["id"]: kind["available"] for kind in shown[pf.name]["types"]}
    assert types["nvidia-1148"] == 3
    assert types["nvidia-1156"] == 0
    assert [piece["parent"] for piece in shown[pf.name]["slices"]] == [vfs[0].name]


def test_a_vf_that_vfio_has_is_a_slice(pf: Path) -> None:
    write(pf / "sriov_drivers_autoprobe", "0")
    write(pf / "sriov_numvfs", "2")
    vf = (pf / "virtfn1").resolve().name
    bind(Path("/sys/bus/pci/devices") / vf, "vfio-pci")
    around = Surroundings(also=frozenset({pf.name}))
    card = card_of(observe_inventory(Sysfs(SYS), around), pf.name)
    assert card.backends == (Backend.SRIOV,)
    assert [piece.id for piece in card.slices] == [vf]
    assert all(function.blockers == () for function in card.vfs)


def test_a_whole_card_can_be_handed_out_and_is_seen_when_it_is(cards: list[Path]) -> None:
    card = card_of(observe_host(SYS), cards[0].name)
    assert (card.usable, card.backends) == (True, (Backend.PASSTHROUGH,))
    bind(cards[0], "vfio-pci")
    try:
        (piece,) = card_of(observe_host(SYS), cards[0].name).slices
    finally:
        unbind(cards[0])
    assert (piece.backend, piece.id) == (Backend.PASSTHROUGH, cards[0].name)
