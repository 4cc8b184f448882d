"""The inventory tells what a device tree has, and goes on where an entry is wrong."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import pytest
from attrs import evolve

from arcsup.devices import Backend, CapacityRule, Card, Inventory, NumaNodeSeen
from arcsup.host.holders import Holders
from arcsup.host.inventory import observe_host, observe_inventory
from arcsup.host.pci_ids import PciIds
from arcsup.host.surroundings import Surroundings, TypeSizes, find_mdevctl
from arcsup.host.sysfs import Sysfs
from arcsup.model import CpuSet, MiB, VmName
from tests.trees import (
    CAPTURES,
    MBOCHS,
    MTTY,
    P4,
    Tree,
    TypeFiles,
    nvidia,
    populate_listing,
)

UUID = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001"
OTHER = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1002"
CARD = "0000:41:00.0"
VFS = ("0000:41:00.4", "0000:41:00.5", "0000:41:00.6")


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path / "sys")


def nameless() -> Surroundings:
    return Surroundings(PciIds(()))


def look(tree: Tree, around: Surroundings | None = None) -> Inventory:
    return observe_inventory(Sysfs(tree.root), around or nameless())


def card_of(inventory: Inventory, address: str = CARD) -> Card:
    (card,) = (card for card in inventory.cards if card.address == address)
    return card


def offered(card: Card) -> dict[str, tuple[int | None, int | None]]:
    return {kind.id: (kind.vram_mib, kind.available) for kind in card.types}


# --- what a card is -----------------------------------------------------------------------------


def test_gpus_and_accelerators_are_cards_and_nothing_else_is(tree: Tree) -> None:
    for slot, pci_class in enumerate(["0x030000", "0x030200", "0x038000", "0x120000", "0x020000"]):
        tree.populate_pci(f"0000:0{slot}:00.0", pci_class=pci_class)
    assert [card.address for card in look(tree).cards] == [f"0000:0{n}:00.0" for n in range(4)]


def test_a_function_is_described_by_its_files(tree: Tree) -> None:
    tree.populate_pci(
        CARD,
        driver="nvidia",
        group=12,
        files={
            "numa_node": "1\n",
            "local_cpulist": "8-11,24\n",
            "reset_method": "flr bus\n",
            "boot_vga": "0\n",
            "sriov_totalvfs": "16\n",
        },
    )
    card = card_of(look(tree))
    assert (card.vendor, card.device, card.subsystem) == ("10de", "1bb3", "10de:11d8")
    assert card.pci_class == "030000"
    assert card.driver == "nvidia"
    assert card.numa_node == 1
    assert card.local_cpus == frozenset({8, 9, 10, 11, 24})
    assert card.reset_methods == ("flr", "bus")
    assert card.group is not None
    assert card.group.members == (CARD,)
    assert card.vfs_total == 16
    assert card.path == f"{tree.root}/bus/pci/devices/{CARD}"


def test_names_come_from_the_database(tree: Tree, tmp_path: Path) -> None:
    (tmp_path / "pci.ids").write_text(
        "10de  NVIDIA Corporation\n\t1bb3  GP104GL [Tesla P4]\n\t\t10de 11d8  Tesla P4 board\n"
    )
    tree.populate_pci(CARD)
    around = Surroundings(PciIds((tmp_path / "pci.ids",)))
    assert card_of(look(tree, around)).name == "NVIDIA Corporation GP104GL [Tesla P4]"
    assert card_of(look(tree, around)).subsystem_name == "Tesla P4 board"
    assert card_of(look(tree)).name == "10de device 1bb3"


def test_no_numa_node_is_none(tree: Tree) -> None:
    tree.populate_pci(CARD)
    assert card_of(look(tree)).numa_node is None


def test_parents_that_are_no_pci_go_by_their_name(tree: Tree) -> None:
    tree.populate_sample("mtty", MTTY)
    tree.populate_sample("mbochs", MBOCHS)
    inventory = look(tree)
    assert [card.address for card in inventory.cards] == ["mbochs", "mtty"]
    assert offered(card_of(inventory, "mbochs"))["mbochs-large"] == (64, 4)
    mtty = card_of(inventory, "mtty")
    assert offered(mtty) == {"mtty-1": (None, 24), "mtty-2": (None, 12)}
    assert (mtty.backends, mtty.usable, mtty.why) == ((Backend.MDEV,), True, "")


def test_numa_nodes_are_told(tree: Tree) -> None:
    tree.populate_node(1, "2-3", 2048 * 1024)
    tree.populate_node(0, "0-1", 1024 * 1024)
    assert look(tree).numa == (
        NumaNodeSeen(0, CpuSet(frozenset({0, 1})), MiB(1024)),
        NumaNodeSeen(1, CpuSet(frozenset({2, 3})), MiB(2048)),
    )


def test_an_empty_tree_has_nothing_and_no_faults(tree: Tree) -> None:
    assert look(tree) == Inventory()


def test_this_host_can_be_looked_at() -> None:
    inventory = observe_host(Path("/sys"))
    assert inventory.hostname
    assert inventory.faults == ()


# --- what is cut from it ------------------------------------------------------------------------


def test_mdevs_are_slices_of_their_parent(tree: Tree) -> None:
    path = tree.populate_pci(CARD, driver="nvidia", group=1)
    tree.populate_types(path, P4)
    tree.populate_mdev(path, UUID, "nvidia-64", group=20)
    holders = Holders({"20": (4711,)})
    owned = Surroundings(PciIds(()), holders, owners={UUID: VmName("web")})
    (piece,) = card_of(look(tree, owned)).slices
    assert (piece.backend, piece.id, piece.type) == (Backend.MDEV, UUID, "nvidia-64")
    assert (piece.vm, piece.ours, piece.owner) == ("web", True, "")
    assert (piece.group, piece.holders, piece.vram_mib) == (20, (4711,), 2048)
    assert piece.path == f"{tree.root}/bus/mdev/devices/{UUID}"


def test_what_mdevctl_defines_is_foreign_and_named(tree: Tree, tmp_path: Path) -> None:
    folder = tmp_path / "mdevctl.d"
    (folder / "mtty").mkdir(parents=True)
    (folder / "mtty" / UUID.upper()).write_text('{"mdev_type": "mtty-1", "start": "auto"}')
    defined = find_mdevctl((folder, tmp_path / "missing"))
    path = tree.populate_sample("mtty", MTTY)
    tree.populate_mdev(path, UUID, "mtty-1")
    tree.populate_mdev(path, OTHER, "mtty-2")
    around = evolve(nameless(), mdevctl=defined)
    slices = card_of(look(tree, around), "mtty").slices
    assert [(piece.id, piece.ours, piece.owner) for piece in slices] == [
        (UUID, False, "mdevctl"),
        (OTHER, False, ""),
    ]


def test_a_mdev_without_its_type_is_shown(tree: Tree) -> None:
    path = tree.populate_sample("mtty", MTTY)
    tree.populate_mdev(path, UUID, None)
    card = card_of(look(tree), "mtty")
    assert [piece.type for piece in card.slices] == [None]
    assert "mdev_type is not there" in look(tree).faults[0]


def test_a_mdev_whose_parent_offers_nothing_more_is_shown(tree: Tree) -> None:
    path = tree.populate_pci(CARD, pci_class="0x010802")
    tree.populate_mdev(path, UUID, "nvidia-64")
    assert [piece.id for piece in card_of(look(tree)).slices] == [UUID]


def test_types_of_vfs_are_gathered_under_the_card(tree: Tree) -> None:
    pf = tree.populate_pci(CARD, driver="nvidia", files={"sriov_totalvfs": "16\n"})
    vfs = tree.populate_vfs(pf, VFS, driver="nvidia", first_group=5)
    for vf, left in zip(vfs, ["0", "1", "1"], strict=True):
        tree.populate_types(vf, [TypeFiles("nvidia-692", "A100D-4C", nvidia(4096, 20), left)])
    tree.populate_mdev(vfs[0], UUID, "nvidia-692")
    inventory = look(tree)
    card = card_of(inventory)
    assert len(inventory.cards) == 1
    assert [(kind.parent, kind.available) for kind in card.types] == list(
        zip(VFS, [0, 1, 1], strict=True)
    )
    assert [vf.address for vf in card.vfs] == list(VFS)
    assert [(piece.parent, piece.vram_mib) for piece in card.slices] == [(VFS[0], 4096)]
    assert card.backends == (Backend.MDEV, Backend.PASSTHROUGH)
    assert card.usable


def test_vfs_are_counted_by_their_links_in_their_order(tree: Tree) -> None:
    pf = tree.populate_pci(CARD, files={"sriov_totalvfs": "64\n", "sriov_numvfs": "no number\n"})
    addresses = [f"0000:41:{slot:02x}.{number}" for slot in (1, 2) for number in range(6)]
    tree.populate_vfs(pf, addresses)
    inventory = look(tree)
    assert [vf.address for vf in card_of(inventory).vfs] == addresses
    assert inventory.faults == ()


def test_vendor_vgpus_are_slices_of_their_vf(tree: Tree) -> None:
    pf = tree.populate_pci(CARD, driver="nvidia", files={"sriov_totalvfs": "16\n"})
    first, second, third = tree.populate_vfs(pf, VFS, driver="nvidia", first_group=5)
    tree.populate_vendor(first, "ID    : vGPU Name\n", "1148")
    tree.populate_vendor(second)
    tree.populate_vendor(third)
    card = card_of(look(tree))
    assert card.backends == (Backend.VENDOR_VFIO, Backend.PASSTHROUGH)
    assert {(kind.id, kind.vram_mib, kind.available) for kind in card.types} == {
        ("nvidia-1147", 1024, 1),
        ("nvidia-1148", 2048, 1),
        ("nvidia-1156", 49152, 1),
    }
    assert {kind.parent for kind in card.types} == set(VFS[1:])
    (piece,) = card.slices
    assert (piece.backend, piece.id, piece.type) == (Backend.VENDOR_VFIO, VFS[0], "nvidia-1148")
    assert (piece.vram_mib, piece.group) == (2048, 5)


def test_a_full_vendor_card_is_known_from_earlier_looks(tree: Tree) -> None:
    pf = tree.populate_pci(CARD, driver="nvidia", files={"sriov_totalvfs": "1\n"})
    (vf,) = tree.populate_vfs(pf, VFS[:1], driver="nvidia")
    tree.populate_vendor(vf)
    sizes: TypeSizes = {}
    around = evolve(nameless(), sizes=sizes)
    look(tree, around)
    tree.populate_vendor(vf, "ID    : vGPU Name\n", "1156")
    card = card_of(look(tree, around))
    assert [piece.vram_mib for piece in card.slices] == [49152]
    assert [piece.vram_mib for piece in card_of(look(tree)).slices] == [None]
    assert (card.usable, card.rule) == (True, CapacityRule.SAME_SIZE)


def test_functions_that_vfio_has_are_slices(tree: Tree) -> None:
    pf = tree.populate_pci(CARD, driver="xe", group=1, files={"sriov_totalvfs": "7\n"})
    tree.populate_vfs(pf, VFS[:2], driver="vfio-pci", first_group=5)
    tree.populate_pci("0000:42:00.0", driver="vfio-pci", group=2)
    inventory = look(tree, evolve(nameless(), holders=Holders({"devices/vfio0": (9,)})))
    card, whole = card_of(inventory), card_of(inventory, "0000:42:00.0")
    assert card.backends == (Backend.SRIOV, Backend.PASSTHROUGH)
    assert [(piece.backend, piece.id) for piece in card.slices] == [
        (Backend.SRIOV, VFS[0]),
        (Backend.SRIOV, VFS[1]),
    ]
    assert [(piece.backend, piece.holders) for piece in whole.slices] == [
        (Backend.PASSTHROUGH, (9,))
    ]


def test_other_functions_are_looked_at_when_asked_for(tree: Tree) -> None:
    pf = tree.populate_pci(CARD, pci_class="0x0b4000", group=1, files={"sriov_totalvfs": "7\n"})
    tree.populate_vfs(pf, VFS, pci_class="0x0b4000", first_group=5)
    assert look(tree).cards == ()
    card = card_of(look(tree, evolve(nameless(), also=frozenset({CARD}))))
    assert (card.backends, len(card.vfs)) == ((Backend.SRIOV,), 3)


def test_a_network_card_is_no_gpu_even_when_it_is_named(tree: Tree) -> None:
    pf = tree.populate_pci(
        CARD, pci_class="0x020000", driver="igb", group=1, files={"sriov_totalvfs": "7\n"}
    )
    free, up, bound, ours = tree.populate_vfs(
        pf, [f"0000:41:10.{n}" for n in (0, 2, 4, 6)], pci_class="0x020000", first_group=5
    )
    tree.bind(free, "igbvf")
    tree.write(f"{up}/net/enp1/operstate", "up\n")
    tree.bind(bound, "vfio-pci")
    tree.bind(ours, "vfio-pci")
    tree.populate_pci("0000:42:00.0", pci_class="0x020000")
    mine = VmName("web")
    around = evolve(nameless(), also=frozenset({CARD}), owners={Path(ours).name: mine})

    found = look(tree, around)

    assert found.cards == ()
    (card,) = found.network_cards
    assert (card.address, card.driver, card.vfs_total) == (CARD, "igb", 7)
    assert [(vf.group, vf.vm, vf.obstacle) for vf in card.vfs] == [
        (5, None, ""),
        (6, None, "it is the host's network interface enp1"),
        (7, None, ""),
        (8, mine, ""),
    ]
    address = Path(bound).name
    way = f"`parent: {address}` in the request takes it"
    assert [vf.reserved for vf in card.vfs if vf.reserved] == [
        f"bound to vfio-pci, and not by arcsup; {way}"
    ]


def test_a_network_card_is_no_gpu_though_one_of_its_functions_is_named(tree: Tree) -> None:
    pf = tree.populate_pci(
        CARD, pci_class="0x020000", driver="igb", group=1, files={"sriov_totalvfs": "7\n"}
    )
    (vf,) = tree.populate_vfs(pf, ["0000:41:10.0"], pci_class="0x020000", first_group=5)
    found = look(tree, evolve(nameless(), also=frozenset({Path(vf).name})))
    assert found.cards == ()
    assert [card.address for card in found.network_cards] == [CARD]


def test_a_function_of_a_network_card_that_a_program_holds_is_not_free(tree: Tree) -> None:
    pf = tree.populate_pci(
        CARD, pci_class="0x020000", driver="igb", group=1, files={"sriov_totalvfs": "7\n"}
    )
    tree.populate_vfs(pf, ["0000:41:10.0"], pci_class="0x020000", driver="vfio-pci", first_group=5)
    (card,) = look(tree, evolve(nameless(), holders=Holders({"5": (4711,)}))).network_cards
    assert [(vf.obstacle, vf.reserved) for vf in card.vfs] == [("in use by somebody else", "")]


def test_a_vf_whose_interface_is_in_a_container_is_not_free(tree: Tree) -> None:
    pf = tree.populate_pci(
        CARD, pci_class="0x020000", driver="igb", group=1, files={"sriov_totalvfs": "7\n"}
    )
    addresses = [f"0000:41:10.{n}" for n in (0, 2, 4)]
    down, away, bare = tree.populate_vfs(
        pf, addresses, pci_class="0x020000", driver="igbvf", first_group=5
    )
    tree.write(f"{down}/net/enp1/operstate", "down\n")
    (tree.root / away / "net").mkdir()
    assert not (tree.root / bare / "net").exists()

    (card,) = look(tree).network_cards

    assert [vf.obstacle for vf in card.vfs] == [
        "",
        "it has its interface in another network namespace",
        "",
    ]


# --- whether it can be handed out ---------------------------------------------------------------


def test_companions_in_its_group_go_with_the_card(tree: Tree) -> None:
    tree.populate_pci(CARD, driver="nvidia", group=1)
    for number, pci_class in [(1, "0x040300"), (2, "0x0c0330"), (3, "0x0c8000"), (4, "0x010601")]:
        address = f"0000:41:00.{number}"
        tree.populate_pci(address, pci_class=pci_class, driver=f"driver{number}", group=1)
    sound = "0000:41:00.5"
    tree.populate_pci(sound, pci_class="0x040300", ids="1022:15e3", driver="snd", group=2)
    card = card_of(look(tree))
    assert card.staying == (), "the processor's own sound in the slot is none of the card's"
    assert [companion.address for companion in card.companions] == [
        "0000:41:00.1",
        "0000:41:00.2",
        "0000:41:00.3",
    ]
    assert card.group is not None
    assert card.group.blockers == ("0000:41:00.4 is in use by the host's driver driver4",)
    assert not card.usable
    assert "IOMMU group 1: 0000:41:00.4 is in use" in card.why


AUDIO = "0000:41:00.1"


@pytest.mark.parametrize(
    ("group", "other", "why"),
    [
        (2, None, ""),
        (2, ("0x060400", "pcieport"), ""),
        (
            2,
            ("0x010802", "nvme"),
            "IOMMU group 2: 0000:40:00.0 is in use by the host's driver nvme",
        ),
        (2, ("0x030000", None), "IOMMU group 2 has 0000:40:00.0 beside it"),
        (None, None, "it has no IOMMU group"),
    ],
)
def test_the_cards_sound_in_a_group_of_its_own_goes_along_or_is_told_to_stay(
    tree: Tree, group: int | None, other: tuple[str, str | None] | None, why: str
) -> None:
    tree.populate_pci(CARD, driver="nvidia", group=1)
    tree.populate_pci(AUDIO, pci_class="0x040300", driver="snd_hda_intel", group=group)
    if other is not None:
        tree.populate_pci("0000:40:00.0", pci_class=other[0], driver=other[1], group=2)
    card = card_of(look(tree))
    assert card.usable
    goes, stays = ([it.address for it in found] for found in (card.companions, card.staying))
    assert (goes, stays) == (([], [AUDIO]) if why else ([AUDIO], []))
    assert [it.blockers for it in card.staying] == ([(why,)] if why else [])


@pytest.mark.parametrize(
    ("pci_class", "driver"),
    [
        ("0x060400", "some_bridge"),
        ("0x010802", None),
        ("0x010802", "pci-stub"),
        ("0x010802", "vfio-pci"),
        ("0x020000", "mlx5_vfio_pci"),
    ],
)
def test_bridges_and_functions_without_a_host_driver_do_not_block(
    tree: Tree, pci_class: str, driver: str | None
) -> None:
    tree.populate_pci(CARD, group=1)
    tree.populate_pci("0000:40:00.0", pci_class=pci_class, driver=driver, group=1)
    card = card_of(look(tree))
    assert card.group is not None
    assert card.group.members == ("0000:40:00.0", CARD)
    assert (card.group.blockers, card.usable, card.why) == ((), True, "")


@pytest.mark.parametrize(
    ("methods", "has_reset", "can"),
    [("bus\n", True, True), ("\n", True, False), (None, True, True), (None, False, False)],
    ids=["a method", "emptied", "before Linux 5.15", "no way"],
)
def test_functions_that_cannot_be_reset_are_told(
    tree: Tree, methods: str | None, has_reset: bool, can: bool
) -> None:
    tree.populate_pci(CARD, group=1)
    sound = tree.populate_pci(AUDIO, pci_class="0x040300", group=1)
    (tree.root / sound / "reset_method").unlink()
    if methods is not None:
        tree.write(f"{sound}/reset_method", methods)
    if has_reset:
        tree.write(f"{sound}/reset", "")
    card = card_of(look(tree))
    assert card.usable
    assert card.without_reset == (() if can else (AUDIO,))


def test_cards_that_block_each_other_alone_go_only_together(tree: Tree) -> None:
    other, sound = "0000:42:00.0", "0000:42:00.1"
    for address in (CARD, other):
        tree.populate_pci(address, driver="nvidia", group=1)
    tree.populate_pci(sound, pci_class="0x040300", driver="snd_hda_intel", group=1)
    first, second = look(tree).cards
    assert first.group is not None
    assert second.group is not None
    assert (first.group.mates, second.group.mates) == ((other,), (CARD,))
    assert first.usable
    assert first.why == f"it goes only together with {other} (IOMMU group 1)"
    tree.populate_pci("0000:43:00.0", pci_class="0x010802", driver="nvme", group=1)
    for card in look(tree).cards:
        assert card.group is not None
        assert (card.group.mates, card.usable) == ((), False)
        assert "0000:43:00.0 is in use by the host's driver nvme" in card.why


def test_a_vf_in_its_cards_group_is_blocked_by_the_card(tree: Tree) -> None:
    pf = tree.populate_pci(CARD, driver="xe", group=1, files={"sriov_totalvfs": "7\n"})
    tree.populate_vfs(pf, VFS[:1], first_group=1)
    (vf,) = card_of(look(tree)).vfs
    assert vf.blockers == (f"{CARD} is in use by the host's driver xe",)


def test_without_an_iommu_a_whole_card_cannot_be_handed_out(tree: Tree) -> None:
    tree.populate_pci(CARD)
    inventory = look(tree)
    assert not inventory.iommu
    assert not card_of(inventory).usable
    assert "it has no IOMMU group: switch the IOMMU on" in card_of(inventory).why


def test_the_group_of_noiommu_mode_is_no_protection(tree: Tree) -> None:
    path = tree.populate_pci(CARD)
    tree.join_group(path, 3, "vfio-noiommu")
    assert "no IOMMU behind it" in card_of(look(tree)).why


def test_a_monitor_shows_that_the_host_uses_the_card(tree: Tree) -> None:
    path = tree.populate_pci(CARD, driver="i915", group=1, files={"boot_vga": "1\n"})
    for connector, status, enabled in [
        ("card0-DP-1", "disconnected", "disabled"),
        ("card0-HDMI-A-1", "connected", "enabled"),
    ]:
        tree.write(f"{path}/drm/card0/{connector}/status", f"{status}\n")
        tree.write(f"{path}/drm/card0/{connector}/enabled", f"{enabled}\n")
    card = card_of(look(tree))
    assert card.in_use_by_host == "a monitor at card0-HDMI-A-1"
    assert card.boot_vga
    assert card.why == "the host shows its picture on it (a monitor at card0-HDMI-A-1)"


@pytest.mark.parametrize("file", ["boot_vga", "boot_display", "drm/card1/boot_display"])
def test_the_boot_display_is_told_by_older_and_by_newer_kernels(tree: Tree, file: str) -> None:
    path = tree.populate_pci(CARD, pci_class="0x038000", driver="xe", group=1)
    assert not card_of(look(tree)).boot_vga
    tree.write(f"{path}/{file}", "1\n")
    card = card_of(look(tree))
    assert (card.boot_vga, card.why) == (True, "it is the host's boot display")


def test_the_screen_of_a_servers_controller_is_told_as_such(tree: Tree) -> None:
    tree.populate_pci(CARD, ids="1a03:2000", driver="ast", group=1)
    assert "management controller (ASPEED) and no GPU" in card_of(look(tree)).why


@pytest.mark.parametrize("device", ["", "/simple-framebuffer.0"])
def test_the_consoles_framebuffer_shows_that_the_host_uses_the_card(
    tree: Tree, device: str
) -> None:
    path = tree.populate_pci(CARD, group=1)
    tree.write(f"{path}{device}/uevent", "")
    tree.link("class/graphics/fb0/device", f"{path}{device}")
    assert card_of(look(tree)).in_use_by_host == "the console's framebuffer fb0"


def test_a_card_that_shows_the_hosts_picture_can_still_be_cut(tree: Tree) -> None:
    path = tree.populate_pci(CARD, driver="i915", files={"boot_vga": "1\n"})
    tree.populate_types(path, [TypeFiles("i915-GVTg_V5_8", available="2")])
    card = card_of(look(tree))
    assert (card.usable, card.why, card.types[0].name) == (True, "", "i915-GVTg_V5_8")


def test_a_full_card_is_not_an_unsupported_one(tree: Tree) -> None:
    path = tree.populate_pci(CARD, driver="nvidia")
    tree.populate_types(path, [TypeFiles("nvidia-64", "GRID P4-2Q", nvidia(2048, 4), "0")])
    card = card_of(look(tree))
    assert (card.usable, card.why) == (True, "it has types, but none of them can be made now")


def test_nvidias_vfs_that_are_not_there_are_told_with_the_way_to_them(tree: Tree) -> None:
    tree.populate_pci(CARD, driver="nvidia", group=1, files={"sriov_totalvfs": "16\n"})
    card = card_of(look(tree))
    assert card.backends == (Backend.PASSTHROUGH,)
    assert f"sriov-manage -e {CARD}" in card.why


# --- what is wrong or not yet there -------------------------------------------------------------


def test_types_whose_driver_is_still_binding_are_not_offered(tree: Tree) -> None:
    path = tree.populate_pci(CARD)
    tree.populate_types(path, [TypeFiles("pci-713", "GRID")])
    card = card_of(look(tree))
    assert (card.types, card.usable) == ((), False)
    assert "its driver is still making pci-713" in card.why


def test_vendor_files_that_are_not_there_yet_are_told(tree: Tree) -> None:
    pf = tree.populate_pci(CARD, driver="nvidia")
    (vf,) = tree.populate_vfs(pf, VFS[:1], driver="nvidia")
    (tree.root / vf / "nvidia").mkdir()
    card = card_of(look(tree))
    assert (card.usable, card.slices) == (False, ())
    assert f"still making the vGPU files of {VFS[0]}" in card.why


def test_one_broken_card_does_not_break_the_next(tree: Tree) -> None:
    bad = tree.populate_pci(
        CARD,
        files={
            "numa_node": "many\n",
            "local_cpulist": "0-99999999999\n",
            "vendor": "zz\n",
            "sriov_totalvfs": "-3\n",
            "mdev_supported_types/x-1/available_instances": "\xff\n",
            "mdev_supported_types/x-2/name/is_a_folder": "",
        },
    )
    tree.link(f"{bad}/virtfn0", "nowhere/0000:41:09.0")
    tree.link(f"{bad}/iommu_group", "kernel/iommu_groups/none")
    tree.link("bus/pci/devices/0000:43:00.0", "devices/pci0000:00/gone")
    tree.link("bus/mdev/devices/loose", "devices/virtual/gone")
    tree.link("class/mdev_bus/loose", "../../etc")
    tree.populate_pci("0000:42:00.0", group=1)
    inventory = look(tree)
    card = card_of(inventory)
    assert card_of(inventory, "0000:42:00.0").usable
    assert (card.numa_node, card.vendor, card.vfs_total, card.vfs) == (None, "", 0, ())
    assert [(kind.id, kind.available) for kind in card.types] == [("x-1", None), ("x-2", None)]
    assert "more)" in card.why
    assert not any("\n" in fault for fault in inventory.faults)
    for what in ("virtfn0", "numa_node", "local_cpulist", "iommu_group", "0000:43:00.0", "loose"):
        assert any(what in fault for fault in inventory.faults), what


def test_a_function_without_its_class_is_a_fault(tree: Tree) -> None:
    tree.write(f"devices/pci0000:00/{CARD}/vendor", "0x10de\n")
    tree.link(tree.pci(CARD), f"devices/pci0000:00/{CARD}")
    inventory = look(tree)
    assert inventory.cards == ()
    assert inventory.faults == (f"{tree.root}/bus/pci/devices/{CARD}: its class is not known",)


def count_calls(work: Callable[[], object]) -> int:
    """Return how many Python functions are called to do it."""
    calls = 0

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
    return calls


def test_the_work_of_reading_grows_no_faster_than_the_cards(tree: Tree) -> None:
    calls = []
    for bus in range(50):
        for function in range(8):
            path = tree.populate_pci(f"0000:{bus:02x}:00.{function}", group=8 * bus + function)
            tree.populate_types(path, P4)
        if bus + 1 in (10, 50):
            calls.append(count_calls(lambda: look(tree, Surroundings())))
            assert len(look(tree, Surroundings()).cards) == 8 * (bus + 1)
    few, many = calls
    assert many < 5.5 * few


# --- captures of real hosts ---------------------------------------------------------------------


@pytest.mark.skipif(not CAPTURES.is_dir(), reason="no captures beside the checkout")
@pytest.mark.parametrize(
    ("capture", "address", "count", "some"),
    [
        (
            "G01-gvtg-v5-uhd620-6.14.txt",
            "0000:00:02.0",
            2,
            {"i915-GVTg_V5_4": (512, 1), "i915-GVTg_V5_8": (384, 2)},
        ),
        (
            "N01-rtxa6000-525-one-2Q.txt",
            "0000:01:00.0",
            29,
            {"nvidia-525": (2048, 23), "nvidia-522": (1024, 0), "nvidia-554": (49152, 0)},
        ),
        ("N03-p4-525-all-zero.txt", "0000:01:00.0", 14, {"nvidia-214": (2048, 0)}),
        ("K01-lab-6.1-mdev-samples.txt", "mbochs", 3, {"mbochs-medium": (16, 16)}),
        ("K01-lab-6.1-mdev-samples.txt", "mdpy", 3, {"mdpy-hd": (None, 4)}),
        ("K01-lab-6.1-mdev-samples.txt", "mtty", 2, {"mtty-2": (None, 12)}),
    ],
)
def test_captured_hosts_have_their_types_and_sizes(
    tree: Tree,
    capture: str,
    address: str,
    count: int,
    some: dict[str, tuple[int | None, int | None]],
) -> None:
    populate_listing(tree, (CAPTURES / capture).read_text())
    inventory = look(tree)
    card = card_of(inventory, address)
    types = offered(card)
    assert len(types) == count
    assert {name: types[name] for name in some} == some
    assert inventory.faults == ()
    assert card.usable
    assert {kind.device_api for kind in card.types} == {"vfio-pci"}


@pytest.mark.skipif(not CAPTURES.is_dir(), reason="no captures beside the checkout")
def test_the_captured_a6000_with_one_vgpu_keeps_to_its_size(tree: Tree) -> None:
    populate_listing(tree, (CAPTURES / "N01-rtxa6000-525-one-2Q.txt").read_text())
    tree.populate_mdev("devices/pci0000:00/0000:01:00.0", UUID, "nvidia-525")
    card = card_of(look(tree), "0000:01:00.0")
    assert card.rule is CapacityRule.SAME_SIZE
    assert [kind.id for kind in card.types if kind.available] == [
        "nvidia-523",
        "nvidia-525",
        "nvidia-535",
    ]
    assert {kind.maximum for kind in card.types if kind.vram_mib == 2048} == {24}


@pytest.mark.skipif(not CAPTURES.is_dir(), reason="no captures beside the checkout")
@pytest.mark.parametrize(
    ("lists", "currents", "slices", "offers"),
    [
        (["V01-creatable-l40s.txt"], ["V07-current-none.txt"], [], 23),
        (
            ["V04-creatable-consumed-header-only.txt", "V03-creatable-h200-noheader.txt"],
            ["V08-current-set.txt", "V07-current-none.txt"],
            [("nvidia-1414", 18432)],
            2,
        ),
    ],
)
def test_captured_vendor_files_have_their_types_and_sizes(
    tree: Tree,
    lists: list[str],
    currents: list[str],
    slices: list[tuple[str, int]],
    offers: int,
) -> None:
    pf = tree.populate_pci("0001:c8:00.0", driver="nvidia")
    vfs = tree.populate_vfs(pf, [f"0001:c8:02.{n}" for n in range(len(lists))], driver="nvidia")
    for vf, creatable, current in zip(vfs, lists, currents, strict=True):
        texts = [(CAPTURES / name).read_text() for name in (creatable, current)]
        tree.populate_vendor(vf, texts[0], texts[1].strip())
    card = card_of(look(tree), "0001:c8:00.0")
    assert [(piece.type, piece.vram_mib) for piece in card.slices] == slices
    assert len([kind for kind in card.types if kind.available]) == offers


@pytest.mark.skipif(not CAPTURES.is_dir(), reason="no captures beside the checkout")
def test_the_captured_a100_offers_on_its_vfs(tree: Tree) -> None:
    lines = (CAPTURES / "N07-a100d-vf-timesliced-kata.txt").read_text().splitlines()
    rows = [line.split() for line in lines if not line.startswith("#")]
    pf = tree.populate_pci("0000:41:00.0", driver="nvidia")
    addresses = sorted({row[0] for row in rows})
    paths = dict(zip(addresses, tree.populate_vfs(pf, addresses, driver="nvidia"), strict=True))
    found: dict[str, dict[str, TypeFiles]] = {}
    for address, left, *name, type_id in rows:
        found.setdefault(address, {})[type_id] = TypeFiles(type_id, " ".join(name), None, left)
    for address, types in found.items():
        tree.populate_types(paths[address], types.values())
    card = card_of(look(tree))
    sizes = {kind.id: kind.vram_mib for kind in card.types}
    assert sizes["nvidia-692"] == 4096
    assert sizes["nvidia-698"] == 81920
    assert sizes["nvidia-699"] == 10240
    assert sum(kind.available or 0 for kind in card.types if kind.id == "nvidia-699") == 3


@pytest.mark.skipif(not CAPTURES.is_dir(), reason="no captures beside the checkout")
def test_the_captured_samples_take_from_one_another(tree: Tree) -> None:
    text = (CAPTURES / "K02-lab-6.1-mdev-rmmod-capacity.txt").read_text()
    after = text.partition("mbochs-large/create")[2].splitlines()[1:4]
    left = dict(line.split() for line in after)
    mbochs = [evolve(kind, available=left[kind.id]) for kind in MBOCHS]
    tree.populate_mdev(tree.populate_sample("mbochs", mbochs), UUID, "mbochs-large")
    card = card_of(look(tree), "mbochs")
    assert offered(card) == {
        "mbochs-large": (64, 3),
        "mbochs-medium": (16, 12),
        "mbochs-small": (4, 48),
    }
    assert [piece.vram_mib for piece in card.slices] == [64]
    assert card.rule is CapacityRule.ANY


@pytest.mark.skipif(not CAPTURES.is_dir(), reason="no captures beside the checkout")
def test_the_captured_physical_function_has_its_vfs(tree: Tree) -> None:
    text = (CAPTURES / "K03-lab-6.1-nvme-sriov.txt").read_text()
    section = text.partition("##### PF\n")[2].partition("\n\n")[0]
    files = dict(line.split("=", 1) for line in section.splitlines() if "=" in line)
    ids = f"{files['vendor'][2:]}:{files['device'][2:]}"
    pf = tree.populate_pci(
        "0000:01:00.0",
        pci_class=files["class"],
        ids=ids,
        subsystem=f"{files['subsystem_vendor'][2:]}:{files['subsystem_device'][2:]}",
        driver=files["DRIVER"],
        group=4,
        files=files,
    )
    vfs = [line.split()[1] for line in text.splitlines() if line.startswith("VF ")]
    tree.populate_vfs(pf, vfs, pci_class=files["class"], first_group=5)
    around = evolve(nameless(), also=frozenset({"0000:01:00.0"}))
    card = card_of(look(tree, around), "0000:01:00.0")
    assert (card.vfs_total, card.numa_node) == (4, None)
    assert (card.vendor, card.device, card.subsystem) == ("1b36", "0010", "1af4:1100")
    assert card.local_cpus == frozenset({0, 1})
    assert card.reset_methods == ("flr", "bus")
    assert [(vf.address, vf.group) for vf in card.vfs] == [
        ("0000:01:00.1", 5),
        ("0000:01:00.2", 6),
    ]
    assert card.backends == (Backend.SRIOV,)


@pytest.mark.skipif(not CAPTURES.is_dir(), reason="no captures beside the checkout")
def test_the_captured_group_with_one_function_bound_is_viable(tree: Tree) -> None:
    text = (CAPTURES / "K05-lab-6.1-busy-vf.txt").read_text()
    members = [line.split() for line in text.splitlines() if line.startswith("00:1f.")]
    for slot, arrow, *driver in members:
        assert arrow == "->"
        name = driver[0] if driver else None
        tree.populate_pci(f"0000:{slot}", pci_class="0x060100", driver=name, group=3)
    tree.populate_pci("0000:00:1f.4", group=3)
    card = card_of(look(tree), "0000:00:1f.4")
    assert "viable=1" in text
    assert card.group is not None
    assert len(card.group.members) == 4
    assert card.group.blockers == ()


def test_a_group_that_does_not_tell_its_members_is_not_viable(tree: Tree) -> None:
    path = tree.populate_pci(CARD)
    tree.link(f"{path}/iommu_group", "kernel/iommu_groups/3")
    assert "group 3 does not tell its members" in card_of(look(tree)).why


def test_vfs_of_nvidias_without_vgpus_are_told(tree: Tree) -> None:
    pf = tree.populate_pci(CARD, driver="nvidia", group=1, files={"sriov_totalvfs": "16\n"})
    tree.populate_vfs(pf, VFS, driver="nvidia", first_group=5)
    assert card_of(look(tree)).why == "its VFs offer no vGPU types"
