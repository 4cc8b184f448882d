"""What is known of a slice before it is made; its making is shown in tests/lab."""

import os
from pathlib import Path

import pytest
from attrs import evolve
from cattrs.preconf.json import make_converter

from arcsup.devices import Backend
from arcsup.errors import Terminal
from arcsup.host.accounts import Account
from arcsup.host.holders import Holders
from arcsup.host.identity import boot_id
from arcsup.host.owned import Identity
from arcsup.host.slices import (
    OwnedSlice,
    Rebinding,
    SliceChoice,
    is_ready,
    prepare_slice,
    remove_slice,
)
from arcsup.host.sysfs import Sysfs
from arcsup.host.vfio_nodes import find_nodes
from tests.trees import MBOCHS, Tree

CARD, AUDIO = "0000:01:00.0", "0000:01:00.1"
UUID = "0000ABCD-0000-4000-8000-000000000001"
WHOLE = SliceChoice(Backend.PASSTHROUGH, 0, CARD, CARD, None, CARD, companions=(AUDIO,))


def add_card(tree: Tree, **files: str) -> str:
    files = {"driver_override": "(null)\n", **files}
    tree.populate_pci(AUDIO, pci_class="0x040300", driver="snd_hda_intel", files=files)
    return tree.populate_pci(CARD, driver="amdgpu", files=files)


async def test_a_whole_card_is_remembered_with_its_companions(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    add_card(tree)
    owned = await prepare_slice(WHOLE, Sysfs(tmp_path))
    identity = Identity("10de:1bb3", "10de:11d8")
    assert owned.rebindings == (
        Rebinding(CARD, "amdgpu", None, identity),
        Rebinding(AUDIO, "snd_hda_intel", None, identity),
    )
    assert owned.boot == boot_id()
    assert owned.path == f"{tmp_path}/bus/pci/devices/{CARD}"


async def test_an_mdevs_uuid_is_in_lower_case_as_the_kernel_writes_it(tmp_path: Path) -> None:
    choice = SliceChoice(Backend.MDEV, 1, "mbochs", "mbochs", "mbochs-small", UUID)
    owned = await prepare_slice(choice, Sysfs(Path("/sys")))
    assert owned.id == UUID.lower()
    assert owned.path == f"/sys/bus/mdev/devices/{UUID.lower()}"


@pytest.mark.parametrize("file", ["boot_vga", "boot_display"])
async def test_the_boot_display_is_refused_unless_it_is_told(tmp_path: Path, file: str) -> None:
    tree = Tree(tmp_path)
    add_card(tree, **{file: "1\n"})
    with pytest.raises(Terminal, match="host's own picture: it is the boot display"):
        await prepare_slice(WHOLE, Sysfs(tmp_path))
    await prepare_slice(evolve(WHOLE, forced=True), Sysfs(tmp_path))


async def test_a_card_with_a_lit_monitor_is_refused_unless_it_is_told(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    card = add_card(tree)
    tree.write(f"{card}/drm/card0/card0-DP-1/status", "connected\n")
    tree.write(f"{card}/drm/card0/card0-DP-1/enabled", "enabled\n")
    with pytest.raises(Terminal, match="a monitor at card0-DP-1"):
        await prepare_slice(WHOLE, Sysfs(tmp_path))


def test_what_is_owned_survives_the_journal() -> None:
    owned = OwnedSlice(
        Backend.PASSTHROUGH,
        0,
        CARD,
        CARD,
        CARD,
        None,
        f"/sys/bus/pci/devices/{CARD}",
        (Rebinding(CARD, "amdgpu", None), Rebinding(AUDIO, None, "vfio-pci")),
    )
    converter = make_converter(forbid_extra_keys=True)
    assert converter.loads(converter.dumps(owned), OwnedSlice) == owned


def test_a_slice_is_ready_once_its_node_is_there_and_open_to_qemu(tmp_path: Path) -> None:
    tree, sysfs, dev = Tree(tmp_path / "sys"), Sysfs(tmp_path / "sys"), tmp_path / "dev"
    parent = tree.populate_sample("mbochs", MBOCHS)
    uuid = UUID.lower()
    owned = OwnedSlice(Backend.MDEV, 0, uuid, "mbochs", "mbochs", "mbochs-small", "")
    assert is_ready(owned, sysfs, dev=dev) == f"{uuid} is not there"
    device = tree.populate_mdev(parent, uuid, "mbochs-small")
    tree.link(f"{device}/driver", "bus/mdev/drivers/mbochs")
    assert is_ready(owned, sysfs, dev=dev) == f"{uuid} has no IOMMU group"
    tree.join_group(device, 9, "vfio-noiommu")
    assert is_ready(owned, sysfs, dev=dev) == f"{dev}/vfio/vfio is not there yet"
    (dev / "vfio").mkdir(parents=True)
    (dev / "vfio/vfio").touch()
    (dev / "vfio/vfio").chmod(0o666)
    assert is_ready(owned, sysfs, dev=dev) == f"{dev}/vfio/9 is not there yet"
    node = dev / "vfio/9"
    assert find_nodes(owned, sysfs, iommufd=False, dev=dev) == (node,)
    node.touch()
    node.chmod(0o600)
    assert is_ready(owned, sysfs, dev=dev) == ""


@pytest.mark.parametrize(
    ("mode", "uid", "gid", "is_open"),
    [
        (0o600, 0, 1, True),
        (0o600, 1, 0, False),
        (0o660, 1, 0, True),
        (0o666, 1, 1, True),
        (0o606, 1, 0, False),
    ],
)
def test_a_node_is_open_to_qemus_user_as_its_mode_says(
    tmp_path: Path, mode: int, uid: int, gid: int, is_open: bool
) -> None:
    tree, dev = Tree(tmp_path / "sys"), tmp_path / "dev"
    tree.populate_pci(CARD, driver="vfio-pci", group=7)
    owned = OwnedSlice(Backend.SRIOV, 0, CARD, CARD, CARD, None, "", (Rebinding(CARD, None, None),))
    for name in ("vfio", "7"):
        node = dev / "vfio" / name
        node.parent.mkdir(parents=True, exist_ok=True)
        node.touch()
        node.chmod(0o666 if name == "vfio" else mode)
    # Counted from our own, so that it holds whoever runs the test.
    account = Account(os.getuid() + uid, os.getgid() + gid)
    missing = is_ready(owned, Sysfs(tree.root), account=account, dev=dev)
    assert (missing == "") == is_open


async def test_a_type_and_a_mac_of_an_earlier_boot_are_not_taken_from_whoever_has_them_now(
    tmp_path: Path,
) -> None:
    tree, boot = Tree(tmp_path), "an earlier one"
    card = tree.populate_pci(CARD, driver="nvidia")
    [vf] = tree.populate_vfs(card, [AUDIO], driver="nvidia")
    tree.populate_vendor(vf, current="1148")
    vgpu = OwnedSlice(Backend.VENDOR_VFIO, 0, AUDIO, CARD, AUDIO, "nvidia-1148", "", boot=boot)
    mac = OwnedSlice(
        Backend.SRIOV, 0, AUDIO, CARD, AUDIO, None, "", (Rebinding(AUDIO, None, None),),
        mac="52:54:00:00:00:01", former_mac="00:00:00:00:00:00", boot=boot,
    )  # fmt: skip
    for owned in (vgpu, mac):
        why = await remove_slice(owned, Sysfs(tmp_path), holders=Holders)
        assert why == f"the host was started anew since: {AUDIO} is left as it is now"
    assert (tmp_path / vf / "nvidia/current_vgpu_type").read_text() == "1148\n"
