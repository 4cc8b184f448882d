"""What the files say; how the driver behaves is shown in tests/lab/test_backends.py."""

import errno
from pathlib import Path

import pytest
import trio

from arcsup.devices import Backend
from arcsup.errors import Stuck, Transient
from arcsup.host import vendor_slices
from arcsup.host.holders import Holders
from arcsup.host.owned import OwnedSlice
from arcsup.host.sysfs import Sysfs
from arcsup.host.vendor_slices import (
    create_vendor,
    find_type_id,
    remove_vendor,
    vendor_obstacle,
)
from tests.trees import L40S, Tree

VF, SIBLING = "0000:41:00.4", "0000:41:00.5"
FULL = "ID    : vGPU Name\n"
OWNED = OwnedSlice(Backend.VENDOR_VFIO, 0, VF, "0000:41:00.0", VF, "nvidia-1148", "")


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Build a card with two VFs, of which the first has no types to list."""
    tree = Tree(tmp_path)
    pf = tree.populate_pci("0000:41:00.0", driver="nvidia")
    first, second = tree.populate_vfs(pf, [VF, SIBLING], driver="nvidia", first_group=40)
    tree.populate_vendor(first, FULL)
    tree.populate_vendor(second, L40S)
    return tree


def current(tree: Tree) -> Path:
    return tree.root / tree.pci(VF) / "nvidia/current_vgpu_type"


def nobody() -> Holders:
    return Holders()


@pytest.mark.parametrize("wanted", ["nvidia-1148", "1148", "NVIDIA L40S-2Q"])
def test_a_type_is_known_by_number_and_by_a_siblings_name(tree: Tree, wanted: str) -> None:
    assert find_type_id(Sysfs(tree.root), VF, wanted) == "nvidia-1148"


def test_a_name_that_nobody_lists_may_be_listed_later(tree: Tree) -> None:
    with pytest.raises(Transient, match="can be made a NVIDIA L40S-7Q now"):
        find_type_id(Sysfs(tree.root), VF, "NVIDIA L40S-7Q")


async def test_a_type_that_is_given_already_is_found(tree: Tree) -> None:
    current(tree).write_text("1148\n")
    await create_vendor(OWNED, Sysfs(tree.root))
    assert current(tree).read_text() == "1148\n"


async def test_a_type_is_given_by_its_number(tree: Tree) -> None:
    assert vendor_obstacle(OWNED, Sysfs(tree.root)) == f"{VF} has type none, not nvidia-1148"
    await create_vendor(OWNED, Sysfs(tree.root))
    assert current(tree).read_text() == "1148"


async def test_a_vf_whose_files_are_not_there_yet_is_waited_for(tree: Tree) -> None:
    current(tree).unlink()
    with pytest.raises(Transient, match="has not made its vGPU files yet"):
        await create_vendor(OWNED, Sysfs(tree.root))


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let a driver answer each write of a type by these errnos first."""
    errnos: list[int] = []

    async def write(path: str, text: str, *, seconds: float) -> None:
        await trio.lowlevel.checkpoint()
        if errnos:
            raise OSError(errnos.pop(0), "no")
        await trio.Path(path).write_text(text)

    monkeypatch.setattr(vendor_slices, "write_sysfs", write)
    return errnos


async def test_a_driver_that_is_still_busy_is_asked_again_each_second(
    tree: Tree, answers: list[int], autojump_clock: trio.testing.MockClock
) -> None:
    current(tree).write_text("1148")
    answers += [errno.EBUSY, errno.EPERM, errno.EBUSY]
    await remove_vendor(OWNED, Sysfs(tree.root), nobody)
    assert current(tree).read_text() == "0"
    assert 3 <= trio.current_time() < 3.5


async def test_a_type_that_stays_for_ten_tries_is_stuck(
    tree: Tree, answers: list[int], autojump_clock: trio.testing.MockClock
) -> None:
    current(tree).write_text("1148")
    answers += [errno.EBUSY] * 10
    with pytest.raises(Stuck, match="keeps its type nvidia-1148"):
        await remove_vendor(OWNED, Sysfs(tree.root), nobody)
    assert 9 <= trio.current_time() < 9.5
    assert answers == []


async def test_another_type_is_left_alone(tree: Tree) -> None:
    current(tree).write_text("1156")
    await remove_vendor(OWNED, Sysfs(tree.root), nobody)
    assert current(tree).read_text() == "1156"


async def test_a_type_that_cannot_be_read_is_not_taken_for_none(tree: Tree) -> None:
    current(tree).unlink()
    current(tree).mkdir()
    with pytest.raises(Transient, match=f"which vGPU type {VF} has cannot be read now"):
        await remove_vendor(OWNED, Sysfs(tree.root), nobody)


async def test_a_vf_that_is_gone_has_nothing_to_take_back(tmp_path: Path) -> None:
    await remove_vendor(OWNED, Sysfs(tmp_path), nobody)
