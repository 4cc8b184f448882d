"""What the files say; how the kernel behaves is shown in tests/lab/test_backends.py."""

from pathlib import Path

import pytest

from arcsup.devices import Backend
from arcsup.errors import Refused, Terminal, Transient
from arcsup.host.holders import Holders
from arcsup.host.mdev import create_mdev, mdev_obstacle, remove_mdev
from arcsup.host.owned import OwnedSlice
from arcsup.host.sysfs import Sysfs
from tests.trees import MBOCHS, P4, Tree, TypeFiles

UUID = "00000000-0000-4000-8000-000000000001"


def owned(parent: str, type_id: str) -> OwnedSlice:
    return OwnedSlice(Backend.MDEV, 0, UUID, parent, parent, type_id, "")


async def test_a_parent_that_is_not_there_may_come(tmp_path: Path) -> None:
    with pytest.raises(Transient, match=r"^0000:01:00\.0 is not there$"):
        await create_mdev(owned("0000:01:00.0", "nvidia-64"), Sysfs(tmp_path))


@pytest.mark.parametrize("types", [(), (TypeFiles("pci-63"), TypeFiles("pci-64"))])
async def test_types_that_are_still_made_are_waited_for(
    tmp_path: Path, types: tuple[TypeFiles, ...]
) -> None:
    tree = Tree(tmp_path)
    tree.populate_types(tree.populate_pci("0000:01:00.0"), types)
    with pytest.raises(Transient, match="has not made its types yet"):
        await create_mdev(owned("0000:01:00.0", "nvidia-64"), Sysfs(tmp_path))


async def test_a_type_that_is_not_among_those_made_never_comes(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    tree.populate_types(tree.populate_pci("0000:01:00.0"), P4)
    with pytest.raises(Terminal, match=r"0000:01:00\.0 has no type nvidia-9") as caught:
        await create_mdev(owned("0000:01:00.0", "nvidia-9"), Sysfs(tmp_path))
    assert caught.value.hint == "it offers nvidia-157, nvidia-63, nvidia-64, nvidia-65"


def test_a_device_is_usable_once_its_type_and_driver_are_there(tmp_path: Path) -> None:
    tree, sysfs = Tree(tmp_path), Sysfs(tmp_path)
    parent = tree.populate_sample("mbochs", MBOCHS)
    wanted = owned("mbochs", "mbochs-small")
    assert mdev_obstacle(wanted, sysfs) == f"{UUID} is not there"
    device = tree.populate_mdev(parent, UUID, None)
    assert mdev_obstacle(wanted, sysfs) == f"the type of {UUID} is not there yet"
    tree.link(f"{device}/mdev_type", f"{parent}/mdev_supported_types/mbochs-small")
    assert mdev_obstacle(wanted, sysfs) == f"{UUID} has no driver"
    tree.link(f"{device}/driver", "bus/mdev/drivers/mbochs")
    assert mdev_obstacle(wanted, sysfs) == ""
    other = owned("mbochs", "mbochs-large")
    assert mdev_obstacle(other, sysfs) == f"{UUID} is of type mbochs-small on mbochs"


@pytest.mark.parametrize(
    ("holders", "why"),
    [
        (Holders({"5": (41, 42)}), f"{UUID} is in use by process 41, 42"),
        (Holders(unseen=(9999999,)), f"who uses {UUID} cannot be told"),
    ],
)
async def test_nothing_is_written_unless_it_is_proven_free(
    tmp_path: Path, holders: Holders, why: str
) -> None:
    tree = Tree(tmp_path)
    device = tree.populate_mdev(
        tree.populate_sample("mbochs", MBOCHS), UUID, "mbochs-small", group=5
    )
    with pytest.raises(Refused, match=why):
        await remove_mdev(owned("mbochs", "mbochs-small"), Sysfs(tmp_path), lambda: holders)
    assert (tmp_path / device / "remove").read_text() == ""
