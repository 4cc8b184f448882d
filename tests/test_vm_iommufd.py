"""The iommufd object of a QEMU: whether it gets one, and how /dev/iommu comes to it."""

import os
from contextlib import ExitStack
from pathlib import Path

import pytest
from attrs import evolve

from arcsup.devices import Backend
from arcsup.host.accounts import Account
from arcsup.host.owned import OwnedSlice
from arcsup.model import MiB, Vm
from arcsup.places import Places
from arcsup.vm import iommufd, preview
from arcsup.vm.capabilities import Capabilities
from arcsup.vm.commandline import build_command_line
from arcsup.vm.iommufd import (
    Iommufd,
    can_use_iommufd,
    iommufd_args,
    open_iommufd,
    was_launched_with_iommufd,
)
from arcsup.vm.privileges import lockable_bytes
from arcsup.vm.record import Launch
from tests.small_host import SmallHost
from tests.vm_samples import capabilities_of, find_resources, make_vm

PLAIN = make_vm("plain")


@pytest.mark.parametrize(
    ("version", "kernel", "can"),
    [("7.2", True, False), ("10.0", True, True), ("10.0", False, False)],
)
async def test_it_takes_both_the_qemu_and_the_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, kernel: bool, can: bool
) -> None:
    async def probe(_binary: Path, _cache: Path) -> Capabilities:
        return capabilities_of(version)

    monkeypatch.setattr(iommufd, "probe_capabilities", probe)
    monkeypatch.setattr(iommufd, "offers_iommufd", lambda: kernel)
    assert await can_use_iommufd(PLAIN, SmallHost(tmp_path).places) == can


@pytest.mark.parametrize("asked", [True, False])
async def test_iommufd_false_has_devices_go_by_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: bool
) -> None:
    async def can(_vm: Vm, _places: Places) -> bool:
        return True

    monkeypatch.setattr(preview, "can_use_iommufd", can)
    card = OwnedSlice(Backend.SRIOV, 0, "ff:1f.7", "ff:1f.0", "ff:1f.0", None, "/sys/ff:1f.7")
    places = SmallHost(tmp_path).places

    shown = await preview.preview_command(PLAIN, places, (card,), by_iommufd=asked)

    assert ("iommufd,id=iommufd0" in shown.argv) == asked
    assert any(word.endswith(",iommufd=iommufd0") for word in shown.argv) == asked


def test_a_qemu_without_rights_inherits_the_open_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = tmp_path / "iommu"
    node.touch()
    monkeypatch.setattr(iommufd, "IOMMU", node)
    with ExitStack() as opened:
        given = open_iommufd(Account(65534, 65534), opened)
        (descriptor,) = given.descriptors
        assert os.fstat(descriptor).st_ino == node.stat().st_ino
        assert not os.get_inheritable(descriptor), "only the QEMU it is for gets it"
        assert iommufd_args(given) == ("-object", f"iommufd,id=iommufd0,fd={descriptor}")
        assert open_iommufd(None, opened) == Iommufd(), "the daemon's own user opens it by name"
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


@pytest.mark.parametrize("given", [None, Iommufd(), Iommufd(20)])
def test_a_running_qemu_is_known_by_its_command_line(given: Iommufd | None) -> None:
    argv = build_command_line(PLAIN, evolve(find_resources(PLAIN), iommufd=given))
    launch = Launch("boot", "{}", argv=argv)
    assert was_launched_with_iommufd(launch) == (given is not None)
    assert not was_launched_with_iommufd(None)


def test_vms_that_are_charged_together_are_limited_by_the_host() -> None:
    vm = evolve(PLAIN, memory_mib=MiB(2048))
    alone = lockable_bytes(vm, charged_together=False)
    assert alone == 3072 * 2**20
    pages = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    assert lockable_bytes(vm, charged_together=True) == pytest.approx(pages, rel=0.01)
