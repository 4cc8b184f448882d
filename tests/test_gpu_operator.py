"""Slices that an operator gives to VMs, takes from them, and has tried again."""

from pathlib import Path

import pytest
from attrs import evolve

from arcsup.devices import Backend, Inventory
from arcsup.errors import NoSuchObject, Refused
from arcsup.host.owned import SliceChoice
from arcsup.look import DeviceLook
from arcsup.model import VmName
from arcsup.plan.lifecycle import Phase
from arcsup.plan.plan import plan
from tests.small_host import SmallHost

MBOCHS = "devices/virtual/mbochs/mbochs"
UUID = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001"
WEB = VmName("web")
SMALL = "memory: 64\ngpus: [{mdevType: mbochs-small}]\n"


@pytest.fixture
def host(tmp_path: Path) -> SmallHost:
    host = SmallHost(tmp_path)
    host.tree.populate_mdev(MBOCHS, UUID, "mbochs-small")
    host.drop("web", SMALL)
    return host


async def test_an_adopted_slice_is_the_one_that_the_vm_gets_after_a_restart_of_the_daemon_too(
    host: SmallHost,
) -> None:
    await host.plan()
    assert [c.id for c in host.fleet.allocation.choices_for(WEB)] != [UUID]

    await host.operator.adopt(UUID, "web")

    assert host.told[-1] == "device-adopted"
    assert [owned.id for owned in host.fleet.vms[WEB].record.slices] == [UUID]
    host.open()
    await host.plan()
    (choice,) = host.fleet.allocation.choices_for(WEB)
    assert (choice.id, choice.slot, choice.parent) == (UUID, 0, "mbochs")
    (card,) = (await host.operator.inventory()).cards
    assert [(piece.vm, piece.ours) for piece in card.slices] == [("web", True)]


async def test_it_is_the_vms_even_before_the_next_look_at_the_devices(host: SmallHost) -> None:
    await host.plan()
    await host.operator.adopt(UUID, "web")

    host.fleet.allocation.assign(host.fleet.vms.values(), host.fleet.look().up)

    assert [choice.id for choice in host.fleet.allocation.choices_for(WEB)] == [UUID]


async def test_what_is_not_there_is_no_such_object(host: SmallHost) -> None:
    await host.plan()
    with pytest.raises(NoSuchObject, match="no slice"):
        await host.operator.adopt(UUID.replace("8", "9"), "web")
    with pytest.raises(NoSuchObject, match="no VM"):
        await host.operator.adopt(UUID, "nope")
    with pytest.raises(NoSuchObject, match="has no slice"):
        await host.operator.release(UUID)


async def test_a_slice_that_suits_no_request_is_refused(host: SmallHost) -> None:
    host.drop("web", "memory: 64\ngpus: [{mdevType: mbochs-large}]\n")
    await host.plan()
    with pytest.raises(Refused, match="nothing that web asks for"):
        await host.operator.adopt(UUID, "web")
    assert not host.fleet.vms[WEB].record.slices


async def test_a_vm_that_has_all_it_asks_for_is_given_no_more(host: SmallHost) -> None:
    await host.plan()
    await host.operator.adopt(UUID, "web")
    other = UUID.replace("8", "9")
    host.tree.populate_mdev(MBOCHS, other, "mbochs-small")

    with pytest.raises(Refused, match="already web's"):
        await host.operator.adopt(UUID, "web")
    with pytest.raises(Refused, match="nothing that web asks for and has not got"):
        await host.operator.adopt(other, "web")


async def test_a_vm_that_is_up_takes_and_loses_no_slice(host: SmallHost) -> None:
    await host.plan()
    host.fleet.vms[WEB].phase = Phase.RUNNING
    with pytest.raises(Refused, match="web is running"):
        await host.operator.adopt(UUID, "web")
    host.fleet.vms[WEB].phase = Phase.DOWN
    await host.operator.adopt(UUID, "web")
    host.fleet.vms[WEB].phase = Phase.RUNNING

    with pytest.raises(Refused, match="in use: web is running"):
        await host.operator.release(UUID)


async def test_a_slice_in_somebodys_hands_is_refused(
    host: SmallHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    await host.plan()
    inventory = await host.operator.inventory()
    (card,) = inventory.cards
    held = tuple(evolve(piece, holders=(77,)) for piece in card.slices)

    async def observe(_look: DeviceLook) -> Inventory:
        return evolve(inventory, cards=(evolve(card, slices=held),))

    monkeypatch.setattr(DeviceLook, "observe", observe)
    with pytest.raises(Refused, match="in use by process 77"):
        await host.operator.adopt(UUID, "web")


async def test_a_released_slice_is_left_and_the_vm_gets_another(host: SmallHost) -> None:
    await host.plan()
    await host.operator.adopt(UUID, "web")

    await host.operator.release(UUID)

    assert host.told[-1] == "device-released"
    assert (host.tree.root / "bus/mdev/devices" / UUID).is_symlink()
    host.open()
    await host.plan()
    (choice,) = host.fleet.allocation.choices_for(WEB)
    assert choice.id != UUID


async def test_an_adopted_slice_stays_with_a_vm_that_is_stopped(host: SmallHost) -> None:
    host.drop("web", f"{SMALL}autostart: false\n")
    await host.plan()
    await host.operator.adopt(UUID, "web")

    view = host.fleet.look()

    assert plan(view.wanted, view.seen, view.host, view.now) == ()
    assert host.fleet.vms[WEB].record.slices[0].adopted


async def test_a_quarantined_slice_is_tried_again(host: SmallHost) -> None:
    await host.plan()
    choice = SliceChoice(Backend.MDEV, 0, "mbochs", "mbochs", "mbochs-small", UUID)
    for _ in range(2):
        host.fleet.allocation.note_failure(choice)
    assert host.operator.quarantined() == ["mbochs/mbochs-small"]
    await host.plan()
    assert "unquarantine" in host.fleet.allocation.awaited_by(WEB)
    assert any("gpu unquarantine mbochs/mbochs-small" in it for it in host.fleet.findings())

    assert host.operator.unquarantine("mbochs") == ["mbochs/mbochs-small"]

    await host.plan()
    assert not host.fleet.allocation.awaited_by(WEB)
    with pytest.raises(NoSuchObject, match="not quarantined"):
        host.operator.unquarantine("mbochs/mbochs-small")


async def test_every_type_is_judged_for_a_vm_and_for_a_file_that_is_not_there_yet(
    host: SmallHost,
) -> None:
    await host.plan()

    ((slot, verdicts),) = await host.operator.explain("web")
    assert slot == 0
    assert {v.type: v.chosen for v in verdicts} == {
        "mbochs-small": True,
        "mbochs-medium": False,
        "mbochs-large": False,
    }
    ((_, verdicts),) = await host.operator.explain_file(
        Path("/nowhere/try.yaml"), "memory: 64\nautostart: false\ngpus: [{minVRam: 17}]\n"
    )
    assert [v.type for v in verdicts if v.chosen] == ["mbochs-large"]
    assert all(v.why for v in verdicts)


async def test_what_of_the_host_uses_a_card_is_told_with_it_and_kept_from_who_asks(
    host: SmallHost,
) -> None:
    card, usb = "0000:04:00.0", "0000:04:00.3"
    host.tree.populate_pci(card, driver="amdgpu", group=5)
    controller = host.tree.populate_pci(usb, pci_class="0x0c0330", driver="xhci_hcd", group=5)
    host.tree.write(f"{controller}/usb1/1-1/1-1:1.0/net/enx0/operstate", "up\n")
    host.drop(
        "whole", f"memory: 64\nautostart: false\ngpus: [{{kind: passthrough, address: '{card}'}}]\n"
    )
    await host.plan()
    host.fleet.allocation.used = {}
    use = f"{usb} (USB controller) has the host's network interface enx0"
    cards = (await host.operator.inventory()).cards
    assert [it.host_use for it in cards if it.address == card] == [(use,)]
    [(_, verdicts)] = await host.operator.explain("whole")
    assert [use in it.why for it in verdicts if it.card == card] == [True]
