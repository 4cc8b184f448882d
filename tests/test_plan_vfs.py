"""Which cards get virtual functions: never more than asked for, nothing that is somebody else's."""

from collections.abc import Mapping

import pytest
from attrs import evolve

from arcsup.devices import (
    Backend,
    CapacityRule,
    Card,
    Function,
    Inventory,
    NetworkCard,
    NetworkVf,
    Slice,
    SliceType,
    VfQuota,
)
from arcsup.model import MiB
from arcsup.plan.obstacles import make_policy_table
from arcsup.plan.vfs import LeaveVfs, SetMixed, SetQuota, SetVfs, VfStep, plan_vfs
from arcsup.spec.config import GpuPolicy

GPU, NIC = "0000:41:00.0", "0000:01:00.0"


def card(vfs: int = 0, *, driver: str | None = "xe", total: int = 16) -> Card:
    functions = tuple(Function(f"0000:41:00.{n + 1}", None, n, "") for n in range(vfs))
    return Card(GPU, "", "a card", "8086", "56c0", driver=driver, vfs_total=total, vfs=functions)


def nic(vfs: int = 0) -> NetworkCard:
    functions = tuple(NetworkVf(f"0000:01:10.{n}", n) for n in range(vfs))
    return NetworkCard(NIC, "8086", "10c9", "igb", None, 7, functions)


def plan(
    *cards: Card | NetworkCard,
    policy: GpuPolicy,
    ours: Mapping[str, tuple[int, ...]] | None = None,
    users: Mapping[str, str] | None = None,
    mixed: frozenset[str] = frozenset(),
    quotas: Mapping[str, VfQuota | None] | None = None,
) -> tuple[VfStep, ...]:
    inventory = Inventory(
        cards=tuple(it for it in cards if isinstance(it, Card)),
        network_cards=tuple(it for it in cards if isinstance(it, NetworkCard)),
    )
    table = make_policy_table([policy])
    return plan_vfs(inventory, table, ours or {}, users or {}, mixed, quotas or {})


@pytest.mark.parametrize("match", [GPU, "8086", "8086:56c0", "*"])
def test_a_card_gets_what_the_first_entry_that_matches_says(match: str) -> None:
    assert plan(card(), policy=GpuPolicy(match, vfs=4)) == (SetVfs(GPU, 0, 4, 16),)


@pytest.mark.parametrize(
    ("seen", "policy"),
    [
        (card(4), GpuPolicy(GPU, vfs=4)),
        (card(2), GpuPolicy(GPU)),
        (card(), GpuPolicy(GPU, vfs=0)),
        (card(), GpuPolicy(GPU, vfs=4, exclude=True)),
        (card(), GpuPolicy("10de", vfs=4)),
        (card(16, driver="nvidia"), GpuPolicy(GPU, vfs=4)),
        (card(total=0), GpuPolicy("*", vfs=4)),
    ],
    ids=["has them", "leave", "none", "excluded", "another", "nvidia has more", "has no SR-IOV"],
)
def test_a_card_that_is_as_it_should_be_is_left(seen: Card, policy: GpuPolicy) -> None:
    assert plan(seen, policy=policy) == ()


def test_a_card_that_is_named_and_has_no_sriov_is_told_of_when_it_is_tried() -> None:
    assert plan(card(total=0), policy=GpuPolicy(GPU, vfs=4)) == (SetVfs(GPU, 0, 4, 0),)


@pytest.mark.parametrize("wanted", [0, 2])
def test_what_somebody_else_enabled_is_left(wanted: int) -> None:
    (step,) = plan(card(4), policy=GpuPolicy(GPU, vfs=wanted), ours={GPU: (3,)})
    because = f"it has 4 virtual functions, not {wanted}, and not by arcsup"
    assert step == LeaveVfs(GPU, because)


@pytest.mark.parametrize("wanted", [0, 2])
def test_what_is_ours_is_changed_when_no_vm_uses_it(wanted: int) -> None:
    policy, ours = GpuPolicy(GPU, vfs=wanted), {GPU: (4,)}
    assert plan(card(4), policy=policy, ours=ours) == (SetVfs(GPU, 4, wanted, 16),)
    (step,) = plan(card(4), policy=policy, ours=ours, users={GPU: "VM web"})
    assert isinstance(step, LeaveVfs)
    assert step.because.startswith("VM web uses it")


def test_the_number_stays_while_one_of_the_functions_is_excluded() -> None:
    seen, ours = card(4), {GPU: (4,)}
    table = make_policy_table([GpuPolicy(GPU, vfs=2), GpuPolicy(seen.vfs[1].address, exclude=True)])
    (step,) = plan_vfs(Inventory(cards=(seen,)), table, ours, {}, frozenset(), {})
    assert isinstance(step, LeaveVfs)
    assert step.because == f"{seen.vfs[1].address} is excluded: it keeps its 4 virtual functions"


@pytest.mark.parametrize("driver", [None, "vfio-pci"])
def test_a_card_whose_driver_makes_none_is_waited_for(driver: str | None) -> None:
    (step,) = plan(card(driver=driver), policy=GpuPolicy(GPU, vfs=4))
    assert isinstance(step, LeaveVfs)


@pytest.mark.parametrize(
    ("match", "is_meant"), [(NIC, True), ("8086:10c9", True), ("8086", False), ("*", False)]
)
def test_a_network_card_is_meant_only_when_it_is_named(match: str, is_meant: bool) -> None:
    steps = plan(nic(), policy=GpuPolicy(match, vfs=4))
    assert steps == ((SetVfs(NIC, 0, 4, 7),) if is_meant else ())


def nvidia(*slices: Slice, rule: CapacityRule = CapacityRule.SAME_SIZE) -> Card:
    kind = SliceType("nvidia-1", "X-2Q", MiB(2048), 1, 4, "vfio-pci", GPU, Backend.MDEV)
    return Card(
        GPU,
        "",
        "a card",
        "10de",
        "2230",
        driver="nvidia",
        backends=(Backend.MDEV,),
        types=(kind,),
        slices=slices,
        rule=rule,
    )


def test_mixed_sizes_are_set_on_an_uncut_card_once() -> None:
    policy = GpuPolicy(GPU, mixed_sizes=True)
    assert plan(nvidia(), policy=policy) == (SetMixed(GPU),)
    assert plan(nvidia(), policy=policy, mixed=frozenset({GPU})) == ()
    assert plan(nvidia(), policy=GpuPolicy(GPU)) == ()
    piece = Slice(Backend.MDEV, "u", "nvidia-1", GPU, "")
    assert plan(nvidia(piece), policy=policy) == ()
    assert plan(nvidia(rule=CapacityRule.MIXED), policy=policy) == ()


def test_virtual_functions_come_before_mixed_sizes() -> None:
    policy = GpuPolicy(GPU, mixed_sizes=True, vfs=4)
    (step,) = plan(card(driver="nvidia"), policy=policy)
    assert isinstance(step, SetVfs)


QUOTA, OTHER_QUOTA = VfQuota(MiB(2048)), VfQuota(MiB(1024))


def test_virtual_functions_get_their_quotas_once_they_are_there() -> None:
    policy = GpuPolicy("*", vfs=4, vf_quota=QUOTA)

    assert plan(card(), policy=policy) == (SetVfs(GPU, 0, 4, 16),)
    assert plan(card(4), policy=policy) == (SetQuota(GPU, QUOTA),)
    assert plan(card(4), policy=policy, quotas={GPU: QUOTA}) == ()
    assert plan(card(4), policy=policy, quotas={GPU: OTHER_QUOTA}) == (SetQuota(GPU, QUOTA),)
    assert plan(card(4), policy=policy, quotas={GPU: None}) == (SetQuota(GPU, QUOTA),)


def test_quotas_of_a_card_in_use_stay_as_they_are_until_then() -> None:
    (step,) = plan(card(4), policy=GpuPolicy(GPU, vf_quota=QUOTA), users={GPU: "VM web"})

    assert isinstance(step, LeaveVfs)
    assert step.because == "VM web uses it: its quotas stay as they are until then"


@pytest.mark.parametrize("policy", [GpuPolicy(GPU), GpuPolicy("10de", vf_quota=QUOTA)])
def test_quotas_that_are_asked_for_no_more_are_put_back(policy: GpuPolicy) -> None:
    assert plan(card(4), policy=policy, quotas={GPU: QUOTA}) == (SetQuota(GPU, None),)
    assert plan(card(4), policy=policy) == ()
    assert plan(card(), policy=policy, quotas={GPU: QUOTA}) == ()


def test_an_entry_for_all_cards_means_those_that_can_have_quotas() -> None:
    amd = evolve(card(4), driver="gim")

    assert plan(amd, policy=GpuPolicy("*", vf_quota=QUOTA)) == ()
    assert plan(amd, policy=GpuPolicy(GPU, vf_quota=QUOTA)) == (SetQuota(GPU, QUOTA),)
    assert plan(nic(4), policy=GpuPolicy(NIC, vf_quota=QUOTA)) == ()
    excluded = GpuPolicy(GPU, exclude=True, vf_quota=QUOTA)
    assert plan(card(4), policy=excluded, quotas={GPU: OTHER_QUOTA}) == ()
