"""Which virtual function of a network card a VM gets; a property test is the specification."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcsup.devices import Inventory, NetworkCard, NetworkVf
from arcsup.model import MacAddress, PciAddress, VmName
from arcsup.plan.assignment import Place, Policy
from arcsup.plan.network_vfs import NetworkChoice, NetworkRequest, assign_network_vfs
from arcsup.spec.config import GpuPolicy

NAMES = tuple(VmName(name) for name in "abcd")
MAC = MacAddress("52:54:00:00:00:01")
CARDS = ("0000:01:00.0", "0000:c1:00.0")


def card(address: str, *vfs: NetworkVf, node: int | None = None) -> NetworkCard:
    return NetworkCard(address, "8086", "10c9", "igb", node, 7, vfs)


def vf(address: str, group: int = 0, *, vm: VmName | None = None, obstacle: str = "") -> NetworkVf:
    return NetworkVf(address, group or int(address[-1]) + 1, vm, obstacle)


def one(
    *cards: NetworkCard,
    policy: Policy | None = None,
    parent: str | None = None,
    node: int | None = None,
) -> str:
    """Return what a single VM gets: the function's address, or why none."""
    place = (NAMES[0], 0)
    request = NetworkRequest(place, MAC, PciAddress(parent) if parent else None, node)
    found = assign_network_vfs([request], Inventory(network_cards=cards), policy or Policy(), {})
    outcome = found[place]
    return outcome.vf if isinstance(outcome, NetworkChoice) else outcome


FREE = card(CARDS[0], vf("0000:01:10.0"), vf("0000:01:10.2"), node=0)
FAR = card(CARDS[1], *(vf(f"0000:c1:10.{n}", 20 + n) for n in (0, 2, 4)), node=1)


def test_the_card_with_most_room_is_taken_unless_one_is_near_or_named() -> None:
    assert one(FREE, FAR) == "0000:c1:10.0"
    assert one(FREE, FAR, node=0) == "0000:01:10.0"
    assert one(FREE, FAR, parent=CARDS[0]) == "0000:01:10.0"
    assert one(FREE, FAR, parent="0000:01:10.2") == "0000:01:10.2"


def test_why_there_is_none_is_said() -> None:
    assert one() == "the host has no network card with SR-IOV"
    assert one(FREE, parent=CARDS[1]) == f"there is no network card {CARDS[1]} with SR-IOV"
    none = f"no virtual function is free ({CARDS[0]}: "
    hint = "its virtual functions are not enabled (`vfs` in arcsup.yaml enables them))"
    assert one(card(CARDS[0])) == none + hint
    up = "it is the host's network interface enp1"
    assert one(card(CARDS[0], vf("0000:01:10.0", obstacle=up))) == f"{none}{up})"
    assert one(card(CARDS[0], vf("0000:01:10.0", vm=NAMES[1]))) == f"{none}all are taken)"
    excluded = Policy((GpuPolicy(CARDS[0], exclude=True),))
    assert one(FREE, policy=excluded) == f"{none}excluded by `gpus` in arcsup.yaml)"
    busy = Policy(busy={CARDS[0]: "its virtual functions are being changed from 0 to 2"})
    assert one(FREE, policy=busy).endswith("being changed from 0 to 2)")
    lost = Policy(lost={CARDS[0]: "Xid 79"})
    assert one(FREE, policy=lost) == f"{none}it is lost: Xid 79)"
    assert one(FREE, policy=Policy(lost={"0000:01:10.0": "AER"})) == "0000:01:10.2"
    bad = Policy(quarantined=frozenset({"0000:01:10.0"}))
    assert one(FREE, policy=bad) == "0000:01:10.2"


def test_a_function_that_the_operator_excludes_goes_to_nobody_named_or_not() -> None:
    policy = Policy((GpuPolicy("0000:01:10.0", exclude=True),))
    assert one(FREE, policy=policy) == "0000:01:10.2"
    refusal = one(FREE, policy=policy, parent="0000:01:10.0")
    assert "0000:01:10.0 is excluded by `gpus` in arcsup.yaml" in refusal


@pytest.mark.parametrize(
    ("policy", "why"),
    [
        (Policy((GpuPolicy("0000:01:10.0", exclude=True),)), "0000:01:10.0 is excluded"),
        (Policy((GpuPolicy(CARDS[0], exclude=True),)), "excluded by"),
        (Policy(lost={"0000:01:10.0": "AER"}), "it is lost: AER"),
        (Policy(quarantined=frozenset({"0000:01:10.0"})), "quarantined"),
    ],
    ids=["excluded", "card excluded", "lost", "quarantined"],
)
def test_what_is_barred_since_stays_with_who_runs_and_does_not_come_back_to_who_does_not(
    policy: Policy, why: str
) -> None:
    place = (NAMES[0], 0)
    had = card(CARDS[0], vf("0000:01:10.0", vm=NAMES[0]))
    outcomes = [
        assign_network_vfs(
            [NetworkRequest(place, MAC, in_use=in_use)],
            Inventory(network_cards=(had,)),
            policy,
            {place: "0000:01:10.0"},
        )[place]
        for in_use in (True, False)
    ]
    assert isinstance(outcomes[0], NetworkChoice)
    assert outcomes[0].kept
    assert isinstance(outcomes[1], str)
    assert why in outcomes[1]


def test_a_function_bound_to_vfio_at_boot_goes_only_to_who_names_it() -> None:
    bound = NetworkVf("0000:01:10.0", 1, reserved="bound to vfio-pci")
    assert one(card(CARDS[0], bound)).endswith("bound to vfio-pci)")
    assert "bound to vfio-pci" in one(card(CARDS[0], bound), parent=CARDS[0])
    assert one(card(CARDS[0], bound), parent=bound.address) == bound.address
    assert one(card(CARDS[0], bound, vf("0000:01:10.2"))) == "0000:01:10.2"


def test_of_one_iommu_group_only_one_is_given() -> None:
    together = card(CARDS[0], vf("0000:01:10.0", 7), vf("0000:01:10.2", 7, vm=NAMES[1]))
    assert "all are taken" in one(together)


def test_a_vm_gets_all_or_leaves_all_to_the_next() -> None:
    requests = [NetworkRequest((NAMES[0], number), MAC) for number in range(3)]
    requests += [NetworkRequest((NAMES[1], number), MAC) for number in range(2)]
    found = assign_network_vfs(requests, Inventory(network_cards=(FREE,)), Policy(), {})
    assert [isinstance(found[NAMES[0], number], str) for number in range(3)] == [True] * 3
    assert all(isinstance(found[NAMES[1], number], NetworkChoice) for number in range(2))


@st.composite
def cards(draw: st.DrawFn, address: str) -> NetworkCard:
    vfs = tuple(
        NetworkVf(
            f"{address[:-4]}10.{number}",
            draw(st.integers(1, 4)),
            draw(st.none() | st.sampled_from(NAMES)),
            draw(st.sampled_from(["", "", "in use"])),
        )
        for number in range(draw(st.integers(0, 5)))
    )
    return card(address, *vfs, node=draw(st.sampled_from([None, 0, 1])))


PLACES = st.tuples(st.sampled_from(NAMES), st.integers(0, 2))
REQUESTS = st.builds(
    NetworkRequest,
    PLACES,
    st.just(MAC),
    st.none() | st.sampled_from([PciAddress(address) for address in CARDS]),
    st.sampled_from([None, 0, 1]),
)


@given(
    st.tuples(*(cards(address) for address in CARDS)),
    st.lists(REQUESTS, unique_by=lambda request: request.place),
)
def test_nothing_is_given_twice_nor_taken_from_anybody(
    found: tuple[NetworkCard, ...], requests: list[NetworkRequest]
) -> None:
    every = {vf.address: vf for card in found for vf in card.vfs}
    held: dict[Place, str] = {}
    for request in requests:
        theirs = [vf.address for vf in every.values() if vf.vm == request.place[0]]
        left = [address for address in theirs if address not in held.values()]
        if left:
            held[request.place] = left[0]

    outcomes = assign_network_vfs(requests, Inventory(network_cards=found), Policy(), held)

    assert set(outcomes) == {request.place for request in requests}
    assert all(isinstance(it, NetworkChoice) or it for it in outcomes.values())
    got = {place: it.vf for place, it in outcomes.items() if isinstance(it, NetworkChoice)}
    assert len(set(got.values())) == len(got)
    for (vm, number), address in got.items():
        function = every[address]
        is_kept = held.get((vm, number)) == address
        assert function.vm == vm if is_kept else function.vm is None and not function.obstacle
    kept = {place for place, address in got.items() if held.get(place) == address}
    new = [every[address] for place, address in got.items() if place not in kept]
    taken = [(vf.address[:7], vf.group) for vf in every.values() if vf.vm is not None]
    groups = [(vf.address[:7], vf.group) for vf in new]
    assert len(groups) == len(set(groups)), "a group has one owner"
    assert not set(groups) & set(taken)
    for vm in {place[0] for place in outcomes}:
        fresh = [it for place, it in outcomes.items() if place[0] == vm and place not in kept]
        assert len({isinstance(it, NetworkChoice) for it in fresh}) <= 1
