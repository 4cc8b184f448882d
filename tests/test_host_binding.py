"""What speaks against handing a function out; how binding goes is shown in tests/lab."""

from pathlib import Path

import pytest

from arcsup.devices import Backend
from arcsup.errors import Terminal, Transient
from arcsup.host.binding import bind_slice, binding_obstacle, observe_binding
from arcsup.host.owned import OwnedSlice, Rebinding
from arcsup.host.sysfs import Sysfs
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
    assert found == Rebinding(CARD, "amdgpu", override)


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
