"""What VFs may use, in the files of Intel's drivers, which are played by files."""

import errno
import os
from pathlib import Path

import pytest

from arcsup.devices import VfQuota
from arcsup.errors import Stuck, Terminal
from arcsup.host import vf_quotas
from arcsup.host.inventory import observe_host
from arcsup.host.sysfs import Sysfs
from arcsup.host.vf_quotas import observe_vf_quotas, set_vf_quotas
from arcsup.model import MiB
from tests.trees import Tree

CARD = "0000:41:00.0"
VFS = ["0000:41:00.1", "0000:41:00.2"]
QUOTA = VfQuota(MiB(2048), 20, 1000)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path / "sys")


def add_card(tree: Tree, driver: str = "xe") -> str:
    files = {"sriov_totalvfs": "4\n"}
    pf = tree.populate_pci(CARD, pci_class="0x030000", driver=driver, group=1, files=files)
    tree.populate_vfs(pf, VFS, first_group=2)
    return pf


def add_files(tree: Tree, folder: str, **values: int) -> None:
    for name, value in values.items():
        tree.write(f"{folder}/{name}", f"{value}\n")


def add_xe(tree: Tree) -> str:
    pf = add_card(tree)
    for number in range(1, 5):
        folder = f"{pf}/sriov_admin/vf{number}/profile"
        add_files(tree, folder, vram_quota=3 << 30, exec_quantum_ms=0, preempt_timeout_us=0)
    return pf


async def test_xes_files_get_what_is_asked_for_and_nothing_else(tree: Tree) -> None:
    pf, sysfs = add_xe(tree), Sysfs(tree.root)
    assert await observe_vf_quotas(sysfs, CARD) == {n: VfQuota(MiB(3072), 0, 0) for n in (0, 1)}

    await set_vf_quotas(sysfs, CARD, {0: QUOTA, 1: VfQuota(exec_quantum_ms=5)})

    assert await observe_vf_quotas(sysfs, CARD) == {0: QUOTA, 1: VfQuota(MiB(3072), 5, 0)}
    assert (tree.root / f"{pf}/sriov_admin/vf1/profile/vram_quota").read_text() == str(2 << 30)


async def test_i915s_files_are_another_place_for_the_same(tree: Tree) -> None:
    pf, sysfs = add_card(tree, "i915"), Sysfs(tree.root)
    for number in (1, 2):
        folder = f"{pf}/drm/card0/prelim_iov/vf{number}/gt0"
        add_files(tree, folder, exec_quantum_ms=0, preempt_timeout_us=0)

    await set_vf_quotas(sysfs, CARD, {1: VfQuota(exec_quantum_ms=20, preempt_timeout_us=1000)})

    expected = {0: VfQuota(None, 0, 0), 1: VfQuota(None, 20, 1000)}
    assert await observe_vf_quotas(sysfs, CARD) == expected


async def test_a_driver_without_the_file_is_told(tree: Tree) -> None:
    pf = add_card(tree)
    add_files(tree, f"{pf}/sriov_admin/vf1/profile", exec_quantum_ms=0)

    with pytest.raises(Terminal, match="has no vram_quota for virtual function 0"):
        await set_vf_quotas(Sysfs(tree.root), CARD, {0: VfQuota(MiB(512))})


async def test_what_the_firmware_refuses_is_told(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_xe(tree)

    async def write(path: str, text: str, *, seconds: float) -> None:
        raise OSError(errno.ENOSPC, "", path)

    monkeypatch.setattr(vf_quotas, "write_sysfs", write)

    with pytest.raises(Terminal, match="not so much"):
        await set_vf_quotas(Sysfs(tree.root), CARD, {0: QUOTA})


async def test_what_the_firmware_does_not_take_is_told(tree: Tree) -> None:
    pf = add_xe(tree)
    quota = tree.root / f"{pf}/sriov_admin/vf1/profile/vram_quota"
    quota.unlink()
    quota.symlink_to("/dev/null")

    with pytest.raises(Terminal, match="is None, not"):
        await set_vf_quotas(Sysfs(tree.root), CARD, {0: QUOTA})


async def test_a_read_that_the_driver_does_not_answer_is_told_in_time(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vf_quotas, "_READ_SECONDS", 0.05)
    pf, sysfs = add_xe(tree), Sysfs(tree.root)
    quota = tree.root / f"{pf}/sriov_admin/vf1/profile/vram_quota"
    quota.unlink()
    os.mkfifo(quota)

    with pytest.raises(Stuck, match="vram_quota"):
        await observe_vf_quotas(sysfs, CARD)
    with pytest.raises(Stuck, match="vram_quota"):
        await set_vf_quotas(sysfs, CARD, {0: QUOTA})


@pytest.mark.parametrize("rounded", [2 << 30, 3 << 29])
async def test_what_the_firmware_rounds_is_taken(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, rounded: int
) -> None:
    add_xe(tree)

    async def write(path: str, text: str, *, seconds: float) -> None:
        Path(path).write_text(f"{rounded}\n")

    monkeypatch.setattr(vf_quotas, "write_sysfs", write)

    await set_vf_quotas(Sysfs(tree.root), CARD, {0: VfQuota(MiB(2000))})

    seen = await observe_vf_quotas(Sysfs(tree.root), CARD)
    assert seen[0].vram_mib == rounded >> 20


def test_the_inventory_tells_the_memory_of_each_vf(tree: Tree) -> None:
    pf = add_xe(tree)
    tree.write(f"{pf}/sriov_admin/vf2/profile/vram_quota", "0\n")
    tree.link(f"bus/pci/devices/{VFS[0]}/driver", "bus/pci/drivers/vfio-pci")

    (card,) = observe_host(tree.root).cards

    assert [vf.vram_mib for vf in card.vfs] == [3072, None]
    assert [(piece.id, piece.vram_mib) for piece in card.slices] == [(VFS[0], 3072)]
