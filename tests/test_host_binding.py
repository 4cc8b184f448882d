"""What speaks against handing a function out; how binding goes is shown in tests/lab."""

from pathlib import Path

import pytest
from attrs import evolve

from arcsup.devices import Backend
from arcsup.errors import Terminal, Transient
from arcsup.host.binding import bind_slice, binding_obstacle, observe_binding, restore_slice
from arcsup.host.holders import Holders
from arcsup.host.identity import boot_id
from arcsup.host.owned import Identity, OwnedSlice, Rebinding
from arcsup.host.sysfs import Sysfs
from arcsup.host.vfio_drivers import find_vfio_driver
from tests.trees import Tree

CARD, AUDIO, OTHER = "0000:01:00.0", "0000:01:00.1", "0000:01:00.2"


def owned(*addresses: str, backend: Backend = Backend.PASSTHROUGH) -> OwnedSlice:
    rebindings = tuple(Rebinding(address, None, None) for address in addresses)
    return OwnedSlice(backend, 0, addresses[0], CARD, CARD, None, "", rebindings)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Build a card with its audio in one IOMMU group, and the VFIO driver."""
    tree = Tree(tmp_path)
    tree.write("bus/pci/drivers/vfio-pci/bind", "")
    for address, pci_class, driver in [
        (CARD, "0x030000", "amdgpu"),
        (AUDIO, "0x040300", "snd_hda_intel"),
    ]:
        files = {"driver_override": "(null)\n"}
        tree.populate_pci(address, pci_class=pci_class, driver=driver, group=7, files=files)
    return tree


@pytest.mark.parametrize(("text", "override"), [("(null)\n", None), ("vfio-pci\n", "vfio-pci")])
async def test_what_a_function_had_is_remembered(
    tree: Tree, text: str, override: str | None
) -> None:
    tree.write(f"{tree.pci(CARD)}/driver_override", text)
    found = await observe_binding(Sysfs(tree.root), CARD)
    identity = Identity("10de:1bb3", "10de:11d8")
    assert found == Rebinding(CARD, "amdgpu", override, identity)


async def test_a_group_with_a_device_of_the_hosts_is_refused_before_anything_is_written(
    tree: Tree,
) -> None:
    with pytest.raises(Terminal) as caught:
        await bind_slice(owned(CARD), Sysfs(tree.root))
    assert str(caught.value) == (
        f"IOMMU group 7 of {CARD} cannot be handed out: "
        f"{AUDIO} is in use by the host's driver snd_hda_intel"
    )
    assert (tree.root / tree.pci(CARD) / "driver_override").read_text() == "(null)\n"


async def test_a_function_without_an_iommu_is_refused_for_good(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    tree.populate_pci(CARD)
    with pytest.raises(Terminal, match=f"{CARD} has no IOMMU group") as caught:
        await bind_slice(owned(CARD), Sysfs(tmp_path))
    assert "intel_iommu=on" in caught.value.hint


async def test_a_driver_that_is_not_loaded_may_be_later(tree: Tree) -> None:
    (tree.root / "bus/pci/drivers/vfio-pci/bind").unlink()
    (tree.root / "bus/pci/drivers/vfio-pci").rmdir()
    with pytest.raises(Transient, match="driver vfio-pci is not there") as caught:
        await bind_slice(owned(CARD, AUDIO), Sysfs(tree.root))
    assert caught.value.hint == "load it: modprobe vfio-pci"


async def test_a_function_that_is_gone_may_come_back(tree: Tree) -> None:
    with pytest.raises(Transient, match=f"{OTHER} is not there"):
        await bind_slice(owned(CARD, AUDIO, OTHER), Sysfs(tree.root))
    with pytest.raises(Transient, match=f"{OTHER} is not there"):
        await observe_binding(Sysfs(tree.root), OTHER)


def test_a_slice_is_usable_once_all_its_functions_are_bound(tmp_path: Path) -> None:
    tree, sysfs = Tree(tmp_path), Sysfs(tmp_path)
    tree.populate_pci(CARD, driver="vfio-pci", group=7)
    audio = tree.populate_pci(AUDIO, pci_class="0x040300", group=7)
    both = owned(CARD, AUDIO)
    assert binding_obstacle(both, sysfs) == f"{AUDIO} is on no driver, not on vfio-pci"
    tree.bind(audio, "vfio-pci")
    assert binding_obstacle(both, sysfs) == ""
    tree.populate_pci(OTHER, pci_class="0x0c0330", driver="xhci_hcd", group=7)
    assert binding_obstacle(both, sysfs) == (
        f"IOMMU group 7: {OTHER} is in use by the host's driver xhci_hcd"
    )


def test_a_companion_in_a_group_of_its_own_is_usable_when_that_group_is(tmp_path: Path) -> None:
    tree, sysfs = Tree(tmp_path), Sysfs(tmp_path)
    tree.populate_pci(CARD, driver="vfio-pci", group=7)
    tree.populate_pci(AUDIO, pci_class="0x040300", driver="vfio-pci", group=8)
    assert binding_obstacle(owned(CARD, AUDIO), sysfs) == ""
    tree.populate_pci(OTHER, pci_class="0x0c0330", driver="xhci_hcd", group=8)
    assert binding_obstacle(owned(CARD, AUDIO), sysfs) == (
        f"IOMMU group 8: {OTHER} is in use by the host's driver xhci_hcd"
    )


@pytest.mark.parametrize(
    ("boot", "because"),
    [
        ("an earlier one", f"the host was started anew since: {CARD} is left as it is now"),
        ("", f"the journal tells no boot: {CARD} is left as it is now"),
    ],
)
async def test_what_an_earlier_boot_has_done_is_not_undone_on_whatever_has_the_address_now(
    tmp_path: Path, boot: str, because: str
) -> None:
    tree = Tree(tmp_path)
    disk = tree.populate_pci(CARD, pci_class="0x010802", ids="144d:a80a", driver="vfio-pci")
    tree.write(f"{disk}/driver_override", "vfio-pci\n")
    tree.write("bus/pci/drivers/vfio-pci/unbind", "")
    tree.write("bus/pci/drivers/nvidia/bind", "")
    had = evolve(owned(CARD), rebindings=(Rebinding(CARD, "nvidia", None),), boot=boot)
    assert await restore_slice(had, Sysfs(tmp_path), Holders) == because
    assert (tmp_path / disk / "driver_override").read_text() == "vfio-pci\n"
    assert (tmp_path / "bus/pci/drivers/vfio-pci/unbind").read_text() == ""


async def test_a_device_that_was_plugged_in_at_an_address_of_ours_is_left_alone(
    tmp_path: Path,
) -> None:
    tree = Tree(tmp_path)
    card = tree.populate_pci(CARD, ids="10de:2684", driver="vfio-pci")
    tree.write(f"{card}/driver_override", "vfio-pci\n")
    tree.write("bus/pci/drivers/vfio-pci/unbind", "")
    former = Rebinding(CARD, "nvidia", None, Identity("10de:1bb3", "10de:11d8"))
    had = evolve(owned(CARD), rebindings=(former,), boot=boot_id())
    assert await restore_slice(had, Sysfs(tmp_path), Holders) == (
        f"{CARD} is another device now: 10de:2684, 10de:11d8; it was 10de:1bb3, 10de:11d8"
    )
    assert (tmp_path / card / "driver_override").read_text() == "vfio-pci\n"
    assert (tmp_path / "bus/pci/drivers/vfio-pci/unbind").read_text() == ""


async def test_a_function_on_a_variant_of_vfio_pci_is_handed_out_as_it_is(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    driver = "nvgrace-gpu-vfio-pci"
    files = {"driver_override": "(null)\n"}
    card = tree.populate_pci(CARD, driver=driver, group=7, files=files)
    tree.write(f"bus/pci/drivers/{driver}/unbind", "")
    await bind_slice(owned(CARD), Sysfs(tmp_path))
    had = Rebinding(CARD, driver, None)
    assert binding_obstacle(owned(CARD), Sysfs(tmp_path)) == ""
    lent = evolve(owned(CARD), rebindings=(had,), boot=boot_id())
    assert await restore_slice(lent, Sysfs(tmp_path), Holders) == ""
    assert (tmp_path / card / "driver_override").read_text() == "(null)\n"
    assert (tmp_path / f"bus/pci/drivers/{driver}/unbind").read_text() == ""


def test_the_variant_that_knows_a_device_best_is_taken_where_it_is_loaded(tmp_path: Path) -> None:
    tree, aliases = Tree(tmp_path / "sys"), tmp_path / "modules.alias"
    modalias = "pci:v000010DEd00002941sv000010DEsd00001234bc03sc02i00\n"
    card = tree.populate_pci(CARD, files={"modalias": modalias})
    aliases.write_text(
        "alias pci:v000010DEd*sv*sd*bc03sc*i* nvidia\n"
        "alias vfio_pci:v*d*sv*sd*bc*sc*i* vfio_pci\n"
        "alias vfio_pci:v000010DEd*sv*sd*bc*sc*i* any_vfio_pci\n"
        "alias vfio_pci:v000010DEd00002941sv*sd*bc*sc*i* nvgrace_gpu_vfio_pci\n"
        "alias vfio_pci:v000015B3d0000101Esv*sd*bc*sc*i* mlx5_vfio_pci\n"
    )

    def find() -> str:
        return find_vfio_driver(Sysfs(tree.root), card, aliases=aliases)

    tree.write("bus/pci/drivers/mlx5_vfio_pci/bind", "")
    assert find() == "vfio-pci"
    tree.write("bus/pci/drivers/any-vfio-pci/bind", "")
    assert find() == "any-vfio-pci"
    tree.write("bus/pci/drivers/nvgrace-gpu-vfio-pci/bind", "")
    assert find() == "nvgrace-gpu-vfio-pci"
    aliases.unlink()
    assert find() == "vfio-pci"
