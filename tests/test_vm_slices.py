"""A VM's slices in its record, while a device does not let go; the devices are in tests/lab."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path

import pytest
import trio
from attrs import evolve
from trio.testing import MockClock

from arcsup.control.metrics import Metrics
from arcsup.devices import Backend
from arcsup.errors import NotRecorded, Stuck
from arcsup.events.dirty import Dirty
from arcsup.host import binding
from arcsup.host import slices as host_slices
from arcsup.host.identity import boot_id
from arcsup.host.owned import OwnedSlice, Rebinding, SliceChoice
from arcsup.host.slices import is_ready
from arcsup.host.sysfs import Sysfs
from arcsup.model import ConditionType, VmName
from arcsup.plan.lifecycle import Phase
from arcsup.reconcile import Reconciler
from arcsup.vf_journal import VfJournal
from arcsup.virtual_functions import VfKeeper
from arcsup.vm import slices
from arcsup.vm.managed import ManagedVm
from arcsup.vm.record import Record
from arcsup.vm.slices import find_lost_slices, release_slices, take_slices
from tests.small_host import SmallHost

VF = "0000:41:00.4"
STUCK = Stuck(f"{VF} keeps its type nvidia-1148: input/output error")


@pytest.fixture
async def vm(tmp_path: Path) -> tuple[SmallHost, ManagedVm]:
    """A VM that has a vendor vGPU."""
    host = SmallHost(tmp_path)
    host.drop("one", "networks: []\n")
    await host.plan()
    vm = host.fleet.vms[VmName("one")]
    owned = OwnedSlice(Backend.VENDOR_VFIO, 0, VF, "0000:41:00.0", VF, "nvidia-1148", "")
    await vm.save(host.fleet.workshop, slices=(owned,))
    return host, vm


async def test_a_disk_that_takes_no_record_of_what_is_back_ends_nothing(
    vm: tuple[SmallHost, ManagedVm],
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: MockClock,
    tmp_path: Path,
) -> None:
    host, one = vm
    save, refusals = host.fleet.workshop.records.save, [NotRecorded("one.json: full", "make room")]

    async def save_later(record: Record) -> None:
        if refusals:
            raise refusals.pop()
        await save(record)

    async def remove_slice(owned: OwnedSlice, sysfs: Sysfs) -> str:
        return ""

    monkeypatch.setattr(slices, "remove_slice", remove_slice)
    monkeypatch.setattr(host.fleet.workshop.records, "save", save_later)
    dirty = Dirty()
    async with trio.open_nursery() as nursery:
        journal, ignore = VfJournal(tmp_path / "vfs", ""), lambda *_: None
        keeper = VfKeeper(tmp_path, journal, ignore, ignore, nursery)
        reconciler = Reconciler(host.fleet, dirty, Metrics("0"), nursery, 30.0, keeper)
        reconciler._release(one)
        assert "retry" in await dirty.wait(at_most=60)
    assert one.record.slices, "it is tried again"
    assert not one.releasing


async def test_what_does_not_come_back_is_kept_in_the_record_and_keeps_nobody_from_starting(
    vm: tuple[SmallHost, ManagedVm], monkeypatch: pytest.MonkeyPatch
) -> None:
    host, one = vm
    answers: list[Stuck | None] = [STUCK, STUCK, None]

    async def remove_slice(owned: OwnedSlice, sysfs: Sysfs) -> str:
        if (answer := answers.pop(0)) is not None:
            raise answer
        return ""

    monkeypatch.setattr(slices, "remove_slice", remove_slice)
    monkeypatch.setattr(slices, "RETRY_SECONDS", 0)

    assert await take_slices(one, host.fleet.workshop) == ()
    [left] = one.record.slices
    assert (left.id, left.left_over) == (VF, True)
    assert one.record.slices_in_use == ()
    assert one.conditions[ConditionType.DEVICES_RETURNED].message == f"{VF}: {STUCK.message}"

    assert not await release_slices(one, host.fleet.workshop)
    assert host.told.count("device-kept") == 1, "it is told once"
    assert await release_slices(one, host.fleet.workshop)
    assert one.record.slices == ()


async def test_a_vm_that_runs_has_lost_its_type_when_that_is_read_and_not_when_it_cannot_be(
    vm: tuple[SmallHost, ManagedVm], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    host, one = vm
    pf = host.tree.populate_pci("0000:41:00.0", driver="nvidia")
    [vf] = host.tree.populate_vfs(pf, [VF], driver="nvidia", first_group=40)
    host.tree.populate_vendor(vf, current="1148")
    for name in ("vfio", "40"):
        node = tmp_path / "dev/vfio" / name
        node.parent.mkdir(parents=True, exist_ok=True)
        node.touch()
    monkeypatch.setattr(slices, "is_ready", partial(is_ready, dev=tmp_path / "dev"))
    assert find_lost_slices(one, host.fleet.workshop) == []

    current = host.tree.root / vf / "nvidia/current_vgpu_type"
    current.unlink()
    current.mkdir()
    assert find_lost_slices(one, host.fleet.workshop) == []

    current.rmdir()
    current.write_text("0")
    lost = f"{VF} has type none, not nvidia-1148"
    assert find_lost_slices(one, host.fleet.workshop) == [lost]


async def test_a_slice_of_an_earlier_boot_is_struck_and_told_and_was_nobodys_meanwhile(
    vm: tuple[SmallHost, ManagedVm],
) -> None:
    host, one = vm
    [owned] = one.record.slices
    await one.save(host.fleet.workshop, slices=(evolve(owned, boot="an earlier one"),))
    assert host.fleet.slice_owners() == {}
    assert await release_slices(one, host.fleet.workshop)
    assert one.record.slices == ()
    assert host.told == ["device-left-alone"]


async def test_a_device_that_came_to_be_on_another_card_is_not_given_back_on_the_former_one(
    vm: tuple[SmallHost, ManagedVm], monkeypatch: pytest.MonkeyPatch
) -> None:
    host, one = vm
    [owned] = one.record.slices
    former = evolve(owned, parent="0000:99:00.0", left_over=True)
    await one.save(host.fleet.workshop, slices=(owned, former))
    one.phase = Phase.RUNNING

    async def remove_slice(owned: OwnedSlice, _sysfs: Sysfs) -> str:
        raise AssertionError(f"{owned.id} is what the VM runs with")

    monkeypatch.setattr(slices, "remove_slice", remove_slice)

    assert await release_slices(one, host.fleet.workshop)

    assert one.record.slices == (owned,)
    assert host.told == []


async def test_a_vm_that_has_its_card_again_after_a_reboot_remembers_what_this_boot_gave_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = SmallHost(tmp_path)
    host.drop("one", "networks: []\n")
    await host.plan()
    one = host.fleet.vms[VmName("one")]
    files = {"driver_override": "(null)\n"}
    host.tree.populate_pci(VF, driver="nouveau", files=files)
    choice = SliceChoice(Backend.PASSTHROUGH, 0, VF, VF, None, VF)
    had = OwnedSlice(
        Backend.PASSTHROUGH, 0, VF, VF, VF, None, "", (Rebinding(VF, "nvidia", None),), boot="old"
    )
    await one.save(host.fleet.workshop, slices=(had,))
    one.choices = (choice,)

    async def create_slice(
        owned: OwnedSlice, sysfs: Sysfs, *, beside: Iterable[OwnedSlice]
    ) -> None:
        pass

    monkeypatch.setattr(slices, "create_slice", create_slice)
    monkeypatch.setattr(slices, "is_ready", lambda *_, **__: "")
    [taken] = await take_slices(one, host.fleet.workshop)
    assert taken.rebindings[0].former_driver == "nouveau"
    assert taken.boot == boot_id()


async def test_two_cards_of_one_iommu_group_are_bound_for_a_vm_that_asks_for_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = SmallHost(tmp_path)
    pair = ("0000:43:00.0", "0000:44:00.0")
    for address in pair:
        files = {"driver_override": "(null)\n"}
        host.tree.populate_pci(address, driver="nouveau", group=7, files=files)
    host.tree.write("bus/pci/drivers/vfio-pci/bind", "")

    async def bind(sysfs: Sysfs, address: str) -> None:
        (sysfs.root / host.tree.pci(address) / "driver").unlink()
        host.tree.bind(f"devices/pci0000:00/{address}", "vfio-pci")

    monkeypatch.setattr(binding, "_bind", bind)
    monkeypatch.setattr(host_slices, "_node_obstacle", lambda *_: "")
    host.drop("one", "networks: []\nmemory: 64\ngpus: [{kind: passthrough, count: 2}]\n")
    await host.plan()
    one = host.fleet.vms[VmName("one")]
    assert host.fleet.allocation.awaited_by(one.name) == ""
    one.choices = host.fleet.allocation.choices_for(one.name)
    taken = await take_slices(one, host.fleet.workshop)
    assert sorted(owned.id for owned in taken) == list(pair)
    assert [is_ready(owned, Sysfs(host.tree.root)) for owned in taken] == ["", ""]
