"""Devices go to QEMU by iommufd where kernel, QEMU and device have it (SUITE=trixie)."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from arcsup.devices import Backend
from arcsup.errors import Refused
from arcsup.host.holders import find_holders
from arcsup.host.slices import SliceChoice, create_slice, is_ready, prepare_slice, remove_slice
from arcsup.host.sysfs import Sysfs
from arcsup.host.vfio_nodes import offers_iommufd
from tests.lab.inner import StartQemu
from tests.lab.kernel import PCI, driver_of, mdevs, vfio_group, wait_until
from tests.lab.vms import TINY
from tests.qemu.daemon import Daemon

pytestmark = pytest.mark.skipif(
    not offers_iommufd(), reason="this kernel has no iommufd: make lab SUITE=trixie"
)

NODES = Path("/dev/vfio/devices")
SYSFS = Sysfs(Path("/sys"))
MDEVS = Path("/sys/bus/mdev/devices")
SMALL = "{mdevType: mbochs-small}"


def node_of(device: Path) -> Path:
    """A device's own node."""
    (name,) = os.listdir(device / "vfio-dev")
    return NODES / name


def opened_by(pid: int) -> set[str]:
    """What a process has open of VFIO and iommufd."""
    found = {os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()}
    return {path for path in found if path.startswith(("/dev/vfio", "/dev/iommu"))}


def check_by_iommufd(status: dict[str, Any], devices: list[Path]) -> None:
    """A VM's QEMU, which is not root, has these devices by one iommufd, and no group."""
    nodes = [node_of(device) for device in devices]
    assert opened_by(status["pid"]) == {"/dev/iommu", *map(str, nodes)}
    user = Path(f"/proc/{status['pid']}").stat().st_uid
    assert user != 0
    assert [(node.stat().st_uid, node.stat().st_mode & 0o777) for node in nodes] == [
        (user, 0o600) for _ in nodes
    ]
    assert [vfio_group(device).stat().st_uid for device in devices] == [0 for _ in devices]
    assert Path("/dev/iommu").stat().st_uid == 0
    objects = [word for word in status["argv"] if word.startswith("iommufd,")]
    assert len(objects) == 1
    assert sum(",iommufd=iommufd0" in word for word in status["argv"]) == len(devices)


async def test_an_mdev_that_is_held_by_its_own_node_is_not_removed(
    mbochs: Path, uuid: str, inner_qemu: StartQemu
) -> None:
    choice = SliceChoice(Backend.MDEV, 0, mbochs.name, mbochs.name, "mbochs-small", uuid)
    owned = await prepare_slice(choice, SYSFS)
    await create_slice(owned, SYSFS)
    wait_until(lambda: is_ready(owned, SYSFS, iommufd=True) == "")

    device = f"vfio-pci,sysfsdev={owned.path},iommufd=iommufd0"
    qemu = inner_qemu([device], objects=["iommufd,id=iommufd0"])

    assert 0x0380 in qemu.classes()
    node = node_of(Path(owned.path))
    assert find_holders().of(None, node.name) == (qemu.process.pid,)
    with pytest.raises(Refused, match=f"in use by process {qemu.process.pid}"):
        await remove_slice(owned, SYSFS)
    assert 0x0380 in qemu.classes(), "it was left alone"
    qemu.end()
    await remove_slice(owned, SYSFS)
    assert not mdevs()


def test_mdev_vendor_vgpu_and_whole_card_of_one_vm_share_one_iommufd(
    daemon: Daemon, cards: list[Path], vendor_vfs: Callable[..., list[Path]]
) -> None:
    vfs, card = vendor_vfs(), cards[1].name
    whole, vgpu = f"{{kind: passthrough, address: '{card}'}}", "{mdevType: nvidia-1148}"
    daemon.drop("one", f"{TINY}gpus: [{SMALL}, {whole}, {vgpu}]\n")

    status = daemon.wait_for("one", "running")

    mdev, function, vf = (gpu["id"] for gpu in status["gpus"])
    assert (function, driver_of(PCI / card)) == (card, "vfio-pci")
    devices = [MDEVS / mdev, PCI / function, PCI / vf]
    check_by_iommufd(status, devices)

    daemon.kill()
    daemon.start()

    adopted = daemon.wait_for("one", "running")
    assert (adopted["pid"], adopted["adopted"]) == (status["pid"], True)

    os.kill(status["pid"], signal.SIGKILL)

    again = daemon.wait_for_another_qemu("one", status["pid"])
    assert again["gpus"] == status["gpus"]
    check_by_iommufd(again, devices)

    node = node_of(PCI / vf)
    daemon.call("kill", "one", wait="240")
    daemon.until(lambda: not daemon.records()["one"]["slices"], "the devices are given back")
    daemon.until(lambda: not daemon.records()["one"]["loans"], "the nodes are given back")
    assert node.stat().st_uid == 0, "the VF stays on its driver, and its node is root's again"
    assert not mdevs()
    assert {driver_of(it) for it in vfs} == {"nvidia"}

    # None of the three is made now.
    printed = daemon.arcsup("qemu", "one", "-o", "argv")
    assert printed.returncode == 0, printed.stderr
    lines = printed.stdout.splitlines()
    assert "iommufd,id=iommufd0" in lines
    assert sum(",iommufd=iommufd0" in line for line in lines) == 3


def test_a_gpu_that_comes_to_a_running_vm_comes_by_iommufd(daemon: Daemon) -> None:
    daemon.drop("one", f"{TINY}gpus: []\n")
    first = daemon.wait_for("one", "running")
    assert opened_by(first["pid"]) == {"/dev/iommu"}

    daemon.drop("one", f"{TINY}gpus: [{SMALL}]\n")

    daemon.until(lambda: len(daemon.status("one")["gpus"]) == 1, "it has come")
    status = daemon.status("one")
    assert (status["pid"], status["pending"]) == (first["pid"], False)
    device = MDEVS / status["gpus"][0]["id"]
    assert opened_by(status["pid"]) == {"/dev/iommu", str(node_of(device))}
