"""Which nodes QEMU opens for a slice: found in made-up device trees."""

from pathlib import Path

import pytest

from arcsup.devices import Backend
from arcsup.host.owned import OwnedSlice, Rebinding
from arcsup.host.slices import is_ready
from arcsup.host.sysfs import Sysfs
from arcsup.host.vfio_nodes import find_nodes, find_shared_node, has_cdevs, offers_iommufd
from tests.trees import Tree

CARD, SOUND = "0000:01:00.0", "0000:01:00.1"

WHOLE = OwnedSlice(
    Backend.PASSTHROUGH,
    0,
    CARD,
    CARD,
    CARD,
    None,
    "",
    (Rebinding(CARD, None, None), Rebinding(SOUND, None, None)),
)

DEV = Path("/dev")


def populate_card(root: Path, *, cdevs: tuple[str, ...] = (), groups: tuple[int, int]) -> Tree:
    """A card with its sound, both VFIO's; those of ``cdevs`` have a node of their own."""
    tree = Tree(root)
    for number, address in enumerate((CARD, SOUND)):
        path = tree.populate_pci(address, group=groups[number])
        tree.link(f"{path}/driver", "bus/pci/drivers/vfio-pci")
        tree.write(f"{path}/vfio-dev/vfio{number}/uevent", "")
        if address in cdevs:
            tree.write(f"{path}/vfio-dev/vfio{number}/dev", f"235:{number}\n")
    return tree


def test_every_function_of_a_card_has_a_node_of_its_own(tmp_path: Path) -> None:
    sysfs = Sysfs(populate_card(tmp_path, cdevs=(CARD, SOUND), groups=(7, 7)).root)
    assert find_nodes(WHOLE, sysfs, iommufd=True) == (
        DEV / "vfio/devices/vfio0",
        DEV / "vfio/devices/vfio1",
    )
    assert find_shared_node(WHOLE, sysfs, iommufd=True) == DEV / "iommu"


def test_a_qemu_without_iommufd_opens_the_groups(tmp_path: Path) -> None:
    sysfs = Sysfs(populate_card(tmp_path, cdevs=(CARD, SOUND), groups=(7, 8)).root)
    assert find_nodes(WHOLE, sysfs, iommufd=False) == (DEV / "vfio/7", DEV / "vfio/8")
    assert find_shared_node(WHOLE, sysfs, iommufd=False) == DEV / "vfio/vfio"


def test_a_card_goes_as_a_whole_by_its_group_when_one_function_has_no_node(tmp_path: Path) -> None:
    sysfs = Sysfs(populate_card(tmp_path, cdevs=(CARD,), groups=(7, 7)).root)
    assert not has_cdevs(WHOLE, sysfs)
    assert find_nodes(WHOLE, sysfs, iommufd=True) == (DEV / "vfio/7",)
    assert find_shared_node(WHOLE, sysfs, iommufd=True) == DEV / "vfio/vfio"


def test_what_is_not_made_yet_is_as_the_kernel_makes_it(tmp_path: Path) -> None:
    sysfs = Sysfs(Tree(tmp_path).root)
    assert has_cdevs(WHOLE, sysfs)
    assert find_nodes(WHOLE, sysfs, iommufd=True) == ()


def test_a_slice_is_ready_when_the_nodes_that_are_used_can_be_opened(tmp_path: Path) -> None:
    dev = tmp_path / "dev"
    sysfs = Sysfs(populate_card(tmp_path / "sys", cdevs=(CARD, SOUND), groups=(7, 7)).root)
    for name in ("vfio/vfio", "vfio/7"):
        (dev / name).parent.mkdir(parents=True, exist_ok=True)
        (dev / name).touch()
    assert is_ready(WHOLE, sysfs, dev=dev) == ""
    for name in ("iommu", "vfio/devices/vfio0", "vfio/devices/vfio1"):
        assert is_ready(WHOLE, sysfs, iommufd=True, dev=dev) == f"{dev / name} is not there yet"
        (dev / name).parent.mkdir(exist_ok=True)
        (dev / name).touch()
    assert is_ready(WHOLE, sysfs, iommufd=True, dev=dev) == ""


@pytest.mark.parametrize(
    ("regions", "offers"),
    [("10 misc\n235 vfio-dev\n236 vfio\n", True), ("10 misc\n236 vfio\n", False)],
)
def test_iommufd_takes_a_kernel_that_gives_devices_nodes(
    tmp_path: Path, regions: str, offers: bool
) -> None:
    iommu, devices = tmp_path / "iommu", tmp_path / "devices"
    devices.write_text(f"Character devices:\n{regions}\nBlock devices:\n  8 sd\n")
    assert not offers_iommufd(iommu, devices), "there is no /dev/iommu"
    iommu.touch()
    assert offers_iommufd(iommu, devices) == offers
