"""Cards of one IOMMU group: a VM that asks for all of them gets them all, and nobody else one."""

from uuid import UUID, uuid5

import pytest
from attrs import evolve

from arcsup.devices import Backend, Card, Inventory, IommuGroup, Slice
from arcsup.model import GpuKind, GpuRequest, PciAddress, VmName
from arcsup.plan.assignment import Choice, Held, Place, Policy, Refusal, VmRequests
from arcsup.plan.choose import assign
from arcsup.plan.survey import explain_types
from arcsup.spec.config import GpuPolicy

A, B = VmName("a"), VmName("b")
PAIR = ("0000:43:00.0", "0000:44:00.0")
OTHERS = ("0000:53:00.0", "0000:54:00.0")
ALONE = "0000:81:00.0"
WHOLE = GpuRequest(kind=GpuKind.PASSTHROUGH)


def card(address: str, number: int, *mates: str) -> Card:
    blockers = tuple(f"{mate} is in use by the host's driver nvidia" for mate in mates)
    group = IommuGroup(number, tuple(sorted((address, *mates))), blockers, mates)
    passthrough = (Backend.PASSTHROUGH,)
    return Card(
        address, "", "V100", "10de", "1db4", driver="nvidia", group=group, backends=passthrough
    )


def pair(one: str = PAIR[0], other: str = PAIR[1], number: int = 7) -> tuple[Card, Card]:
    return card(one, number, other), card(other, number, one)


def named(address: str) -> GpuRequest:
    return evolve(WHOLE, address=PciAddress(address))


def vm(name: VmName, *requests: GpuRequest) -> VmRequests:
    return VmRequests(name, uuid5(UUID(int=1), name), requests)


def choose(
    cards: tuple[Card, ...],
    *vms: VmRequests,
    policy: Policy | None = None,
    held: dict[Place, Held] | None = None,
) -> dict[Place, str]:
    """Return the card that each slot gets, or why none."""
    outcomes = assign(vms, Inventory(cards=cards), policy or Policy(), held or {}).outcomes
    return {place: it.id if isinstance(it, Choice) else str(it) for place, it in outcomes.items()}


@pytest.mark.parametrize(
    "requests",
    [
        (evolve(WHOLE, count=2),),
        (named(PAIR[0]), named(PAIR[1])),
        (WHOLE, named(PAIR[0])),
        (WHOLE, evolve(WHOLE, optional=True)),
    ],
    ids=["count", "both named", "one named", "one optional"],
)
def test_a_vm_that_asks_for_all_cards_of_a_group_gets_them(
    requests: tuple[GpuRequest, ...],
) -> None:
    found = choose(pair(), vm(A, *requests))
    assert sorted(found.values()) == list(PAIR)


def test_who_asks_for_one_of_them_is_told_what_to_ask_for() -> None:
    told = (
        f"{PAIR[0]}: {PAIR[1]} is in use by the host's driver nvidia (IOMMU group 7): it goes only "
        f"to a VM that gets {PAIR[1]} as a whole, too"
    )
    assert told in choose(pair(), vm(A, named(PAIR[0])))[A, 0]
    assert told in choose(pair(), vm(A, WHOLE))[A, 0]
    assert choose((*pair(), card(ALONE, 8)), vm(A, WHOLE)) == {(A, 0): ALONE}


def test_two_vms_get_no_half_of_a_group_each() -> None:
    found = choose(pair(), vm(A, named(PAIR[0])), vm(B, named(PAIR[1])))
    assert all("it goes only to a VM that gets" in why for why in found.values())
    both = evolve(WHOLE, count=2)
    found = choose((*pair(), card(ALONE, 8)), vm(A, both), vm(B, both))
    assert {found[A, 0], found[A, 1]} == set(PAIR)
    assert all(found[B, slot] not in (*PAIR, ALONE) for slot in (0, 1))


def test_a_vm_that_lacks_another_card_takes_no_group() -> None:
    asked = (evolve(WHOLE, count=2), evolve(WHOLE, vendor="1002"))
    found = choose(pair(), vm(A, *asked), vm(B, evolve(WHOLE, count=2)))
    assert "not taken, because the VM cannot start" in found[A, 0]
    assert {found[B, 0], found[B, 1]} == set(PAIR)


@pytest.mark.parametrize("count", [3, 4, 5])
def test_several_groups_and_single_cards_go_to_one_vm(count: int) -> None:
    cards = (*pair(), *pair(*OTHERS, 8), card(ALONE, 9))
    found = choose(cards, vm(A, evolve(WHOLE, count=count)))
    # Of a pair there is no half, so with four cards the single one stays.
    expected = {3: {*PAIR, ALONE}, 4: {*PAIR, *OTHERS}, 5: {*PAIR, *OTHERS, ALONE}}[count]
    assert set(found.values()) == expected
    found = choose(cards, vm(A, *(named(it) for it in (*PAIR, *OTHERS))))
    assert set(found.values()) == {*PAIR, *OTHERS}


@pytest.mark.parametrize(
    ("policy", "why"),
    [
        (Policy(used={PAIR[1]: "is used by process 9 (Xorg)"}), "is used by process 9 (Xorg)"),
        (Policy((GpuPolicy(PAIR[1], exclude=True),)), "excluded by"),
        (Policy(lost={PAIR[1]: "Xid 79"}), "it is lost: Xid 79"),
    ],
)
def test_of_a_group_of_which_one_cannot_be_had_nothing_is_taken(policy: Policy, why: str) -> None:
    for asked in ((evolve(WHOLE, count=2),), tuple(map(named, PAIR))):
        found = choose(pair(), vm(A, *asked), policy=policy)
        assert not set(found.values()) & set(PAIR)
        assert any(why in told for told in found.values())


def test_a_start_that_has_begun_keeps_its_group() -> None:
    held = {
        (B, slot): Held(Backend.PASSTHROUGH, it, it, None, it, in_use=True)
        for slot, it in enumerate(PAIR)
    }
    both = evolve(WHOLE, count=2)
    found = choose(pair(), vm(A, both), vm(B, both), held=held)
    assert (found[B, 0], found[B, 1]) == PAIR
    swapped = {(B, 1 - slot): before for (_, slot), before in held.items()}
    found = choose(pair(), vm(A, both), vm(B, both), held=swapped)
    assert (found[B, 1], found[B, 0]) == PAIR
    # One is bound by now, and so keeps nobody from the other.
    first, second = pair()
    mine = Slice(Backend.PASSTHROUGH, PAIR[0], None, PAIR[0], "", vm=B, ours=True, group=7)
    first = evolve(first, driver="vfio-pci", slices=(mine,))
    second = evolve(second, group=IommuGroup(7, PAIR))
    found = choose((first, second), vm(A, both), vm(B, both), held=swapped)
    assert (found[B, 1], found[B, 0]) == PAIR


def test_the_types_of_a_group_that_is_had_are_told_as_chosen() -> None:
    asking = [vm(A, evolve(WHOLE, count=2))]
    for slot in (0, 1):
        verdicts = explain_types((A, slot), asking, Inventory(cards=pair()), Policy(), {})
        assert sum(verdict.chosen for verdict in verdicts) == 1
        assert {verdict.card for verdict in verdicts if verdict.chosen} <= set(PAIR)
    alone = explain_types((A, 0), [vm(A, WHOLE)], Inventory(cards=pair()), Policy(), {})
    assert all("it goes only to a VM that gets" in verdict.why for verdict in alone)


def test_what_blocks_beside_the_other_card_blocks_for_everybody() -> None:
    first, second = pair()
    blockers = (*first.group.blockers, "0000:45:00.0 is in use by nvme") if first.group else ()
    blocked = evolve(first, group=IommuGroup(7, PAIR, blockers))
    outcome = assign([vm(A, *map(named, PAIR))], Inventory(cards=(blocked, second)), Policy(), {})
    assert all(isinstance(it, Refusal) for it in outcome.outcomes.values())
