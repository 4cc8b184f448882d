"""Virtual functions of network cards, from VM files to what a start takes."""

import json
from pathlib import Path

import pytest
from attrs import evolve

from arcsup.control.gpus import view_inventory
from arcsup.control.inventory_file import read_inventory
from arcsup.devices import Backend
from arcsup.host.inventory import observe_host
from arcsup.host.owned import OwnedSlice, SliceChoice
from arcsup.model import VmName
from arcsup.offline import plan_for_host
from arcsup.plan.lifecycle import Step
from arcsup.spec.config import Config
from arcsup.spec.identity import derive_mac
from arcsup.steps import list_steps
from arcsup.vm.slices import slice_devices
from arcsup.vm.supervise import begin
from tests.small_host import SmallHost
from tests.vm_samples import make_vm

CARD = "0000:05:00.0"
VFS = ["0000:05:10.0", "0000:05:10.2"]
ONE, TWO = VmName("one"), VmName("two")


@pytest.fixture
def host(tmp_path: Path) -> SmallHost:
    """A host with the sample parent mbochs and a network card with two virtual functions."""
    host = SmallHost(tmp_path)
    pf = host.tree.populate_pci(
        CARD, pci_class="0x020000", driver="igb", files={"sriov_totalvfs": "7\n"}
    )
    host.tree.populate_vfs(pf, VFS, pci_class="0x020000", first_group=5)
    return host


def vf_of(host: SmallHost, name: VmName) -> list[SliceChoice]:
    return [it for it in host.fleet.allocation.choices_for(name) if it.mac is not None]


async def test_a_vm_gets_a_virtual_function_with_its_address(host: SmallHost) -> None:
    host.drop("one", "networks: [{type: user}, {type: vf}]\n")
    host.drop("two", f"networks: [{{type: vf, mac: '52:54:00:00:00:09', parent: '{VFS[1]}'}}]\n")
    await host.plan()

    (first,), (second,) = vf_of(host, ONE), vf_of(host, TWO)
    assert (first.backend, first.card, first.slot) == (Backend.SRIOV, CARD, 1)
    assert first.mac == derive_mac(host.fleet.vms[ONE].vm.uuid, 1)
    assert first.asked_by == "networks[1]"
    assert second.mac == "52:54:00:00:00:09"
    assert {first.id, second.id} == set(VFS)
    steps = [(step.verb, step.object, step.because) for step in list_steps(host.fleet)]
    assert ("bind", first.id, "networks[1] of one") in steps


async def test_a_vm_without_a_network_waits_says_why_and_leaves_its_gpu_to_others(
    host: SmallHost,
) -> None:
    gpu = "gpus: [{mdevType: mbochs-large, count: 4}]\n"
    host.drop("one", f"{gpu}networks: [{{type: vf, parent: '0000:06:00.0'}}]\n")
    host.drop("two", gpu)
    await host.plan()

    assert host.fleet.allocation.awaited_by(ONE) == (
        "networks[0]: there is no network card 0000:06:00.0 with SR-IOV"
    )
    assert host.fleet.allocation.awaited_by(TWO) == ""
    assert len(host.fleet.allocation.choices_for(TWO)) == 4


async def test_a_vm_without_a_gpu_leaves_its_network_to_others(host: SmallHost) -> None:
    host.drop("one", f"gpus: [{{vendor: nvidia}}]\nnetworks: [{{type: vf, parent: '{VFS[0]}'}}]\n")
    host.drop("two", f"networks: [{{type: vf, parent: '{VFS[0]}'}}]\n")
    await host.plan()

    assert "gpus[0]" in host.fleet.allocation.awaited_by(ONE)
    assert vf_of(host, ONE) == []
    assert [it.id for it in vf_of(host, TWO)] == [VFS[0]]


async def test_a_vm_that_lacks_its_gpu_does_not_hoard_its_network(host: SmallHost) -> None:
    host.drop("one", "gpus: [{vendor: nvidia}]\nnetworks: [{type: vf}]\n")
    await host.plan()
    one = host.fleet.vms[ONE]
    assert not host.fleet.allocation.is_hoarding(one)
    await one.save(host.fleet.workshop, slices=(_owned(VFS[0], 0),))
    await host.plan()
    assert host.fleet.allocation.is_hoarding(one)


async def test_what_a_vm_had_stays_with_it(host: SmallHost) -> None:
    host.drop("two", "networks: [{type: vf}]\n")
    await host.plan()
    vm = host.fleet.vms[TWO]
    await vm.save(host.fleet.workshop, slices=(_owned(VFS[1], 0),))
    host.drop("one", "networks: [{type: vf}]\n")
    await host.plan()

    assert [it.id for it in vf_of(host, TWO)] == [VFS[1]]
    assert [it.id for it in vf_of(host, ONE)] == [VFS[0]]


async def test_what_a_start_is_about_to_take_is_kept_from_others_until_the_record_says_it(
    host: SmallHost,
) -> None:
    host.drop("two", "gpus: [{mdevType: mbochs-large}]\nnetworks: [{type: vf}]\n")
    await host.plan()
    two = host.fleet.vms[TWO]
    two.choices = host.fleet.allocation.choices_for(TWO)
    begin(two, "autostart")
    host.drop("one", "gpus: [{mdevType: mbochs-large, count: 4}]\nnetworks: [{type: vf}]\n")
    await host.plan()

    assert host.fleet.allocation.choices_for(TWO) == two.choices
    assert "gpus[3]" in host.fleet.allocation.awaited_by(ONE)

    two.step(Step.END)
    await host.plan()
    assert host.fleet.allocation.awaited_by(ONE) == ""


def _owned(address: str, slot: int, mac: str | None = "52:54:00:00:00:01") -> OwnedSlice:
    path = f"/sys/bus/pci/devices/{address}"
    return OwnedSlice(Backend.SRIOV, slot, address, CARD, address, None, path, mac=mac)


def test_a_further_gpu_moves_no_network_card() -> None:
    network, first = _owned(VFS[0], 1), _owned("0000:41:00.1", 0, None)
    second = _owned("0000:41:00.2", 1, None)
    before = slice_devices(make_vm("one"), (network, first))
    after = slice_devices(make_vm("one"), (network, first, second))

    assert [(device.id, device.port) for device in before] == [("nic1", 7), ("gpu0", 0)]
    assert [(d.id, d.port) for d in after] == [("nic1", 7), ("gpu0", 0), ("gpu1", 1)]


def test_more_devices_than_ports_are_too_many_and_not_on_one_port() -> None:
    slices = (_owned(VFS[0], 0), *(_owned(f"0000:41:00.{n}", n, None) for n in range(8)))
    ports = [device.port for device in slice_devices(make_vm("one"), slices)]
    assert len(set(ports)) == 9
    assert max(ports) == 8


def far_steps(host: SmallHost, **owners: str) -> list[tuple[str, str, str]]:
    """Plan by a file of the host's inventory; ``owners`` have functions."""
    inventory = observe_host(host.places.sysfs)
    (card,) = inventory.network_cards
    names = {vf: VmName(name) for name, vf in owners.items()}
    vfs = tuple(evolve(vf, vm=names.get(vf.address)) for vf in card.vfs)
    inventory = evolve(inventory, network_cards=(evolve(card, vfs=vfs),))
    far = read_inventory(json.dumps(view_inventory(inventory)))
    host.places.sysfs.rename(host.top / "elsewhere")
    steps = plan_for_host(host.places, Config(), far)
    return [(step.verb, step.object, step.because) for step in steps]


def test_an_inventory_tells_who_gets_a_network_and_who_waits(host: SmallHost) -> None:
    for name in ("one", "two", "wide"):
        host.drop(name, "memory: 64\nnetworks: [{type: vf}]\n")
    host.drop("wide", "memory: 64\nnetworks: [{type: vf}, {type: vf}]\n")

    steps = far_steps(host)

    assert [step[1] for step in steps if step[0] == "bind"] == VFS
    assert [step[1] for step in steps if step[0] == "start"] == ["one", "two"]
    ((_, waits, why),) = (step for step in steps if step[0] == "wait")
    assert (waits, why) == (
        "wide",
        "; ".join(
            f"networks[{number}]: no virtual function is free ({CARD}: all are taken)"
            for number in (0, 1)
        ),
    )


def test_a_function_that_an_inventory_says_is_a_vms_stays_with_it(host: SmallHost) -> None:
    host.drop("any", "memory: 64\nnetworks: [{type: vf}]\n")
    host.drop("late", f"memory: 64\nnetworks: [{{type: vf}}, {{type: vf, parent: '{VFS[0]}'}}]\n")

    steps = far_steps(host, late=VFS[0])

    assert [step[:2] for step in steps if step[0] == "bind"] == [("bind", VFS[1])]
    assert "any" in [step[1] for step in steps if step[0] == "start"]


def test_a_vm_waits_where_an_inventory_has_no_network_card(host: SmallHost) -> None:
    host.drop("one", "memory: 64\ngpus: [{mdevType: mbochs-large}]\nnetworks: [{type: vf}]\n")
    inventory = evolve(observe_host(host.places.sysfs), network_cards=())

    (step,) = plan_for_host(host.places, Config(), inventory)

    assert (step.verb, step.because) == (
        "wait",
        "networks[0]: the host has no network card with SR-IOV",
    )
