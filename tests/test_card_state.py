"""What a card says beside what the device tree shows of it."""

from collections import Counter
from pathlib import Path

import pytest

from arcsup.card_state import mark_cards
from arcsup.devices import Backend, Card, Function, Inventory
from arcsup.host import writer
from arcsup.host.owned import OwnedSlice
from arcsup.model import VmName
from tests.small_host import SmallHost

UUID = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001"
CARD = "0000:41:00.0"
VF = "0000:41:00.4"
INVENTORY = Inventory(
    cards=(
        Card(CARD, "/sys/x", "a card", vfs=(Function(VF, None, None, "/sys/y"),), why="odd"),
        Card("mbochs", "/sys/z", "mbochs"),
    )
)


@pytest.mark.parametrize(
    ("work", "card", "why"),
    [
        (
            f"/sys/bus/pci/devices/{CARD}/sriov_numvfs",
            0,
            f"stuck: the kernel does not answer at sriov_numvfs of {CARD}; odd",
        ),
        (
            f"/sys/bus/pci/devices/{VF}/driver/unbind",
            0,
            "stuck: the kernel does not answer at unbind of driver; odd",
        ),
        (
            f"/sys/bus/mdev/devices/{UUID}/remove",
            1,
            f"stuck: the kernel does not answer at remove of {UUID}",
        ),
        (f"sriov-manage {CARD}", 0, f"stuck: sriov-manage {CARD} has not come back; odd"),
    ],
)
def test_a_card_says_what_is_stuck_on_it_and_no_other_does(work: str, card: int, why: str) -> None:
    marked = mark_cards(INVENTORY, lost={}, stuck=[work], homes={UUID: "mbochs"})
    assert marked.cards[card].why == why
    assert marked.cards[card].usable, "what else it has can be had"
    assert marked.cards[1 - card] == INVENTORY.cards[1 - card]


def test_a_lost_card_is_not_usable_and_says_why_first() -> None:
    marked = mark_cards(INVENTORY, lost={CARD: "it fell off"}, stuck=[], homes={})
    assert [card.usable for card in marked.cards] == [False, True]
    assert marked.cards[0].why == "it is lost: it fell off; odd"


def test_where_nothing_is_known_the_look_is_as_it_was() -> None:
    assert mark_cards(INVENTORY, lost={}, stuck=[], homes={}) is INVENTORY


async def test_a_vm_whose_slice_is_stuck_waits_and_others_get_what_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = SmallHost(tmp_path)
    for name in ("web", "other"):
        host.drop(name, "memory: 64\ngpus: [{mdevType: mbochs-small}]\n")
    await host.plan()
    folder = f"{host.places.sysfs}/bus/mdev/devices/{UUID}"
    owned = OwnedSlice(Backend.MDEV, 0, UUID, "mbochs", "mbochs", "mbochs-small", folder)
    await host.fleet.vms[VmName("web")].save(host.fleet.workshop, slices=(owned,))
    host.fleet.allocation.look.homes = host.fleet.slice_homes
    monkeypatch.setattr(writer, "_unanswered", Counter([f"{folder}/remove"]))

    seen = host.fleet.look().seen
    assert f"{UUID} is stuck" in seen[VmName("web")].awaits
    assert seen[VmName("other")].awaits == ""
    assert next(host.fleet.findings()).startswith("stuck: ")
    [card] = (await host.operator.inventory()).cards
    assert card.why.startswith("stuck: ")

    monkeypatch.setattr(writer, "_unanswered", Counter())
    assert host.fleet.look().seen[VmName("web")].awaits == ""
