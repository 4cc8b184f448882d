"""Choosing: what is said of single cards, requests and rules."""

from uuid import UUID, uuid5

import pytest
from attrs import evolve

from arcsup.devices import (
    Backend,
    CapacityRule,
    Card,
    Function,
    Inventory,
    IommuGroup,
    Slice,
    SliceType,
)
from arcsup.model import GpuKind, GpuRequest, MiB, PciAddress, VmName
from arcsup.plan.assignment import Choice, Held, Place, Policy, Refusal, VmRequests, WaitFor
from arcsup.plan.choose import assign
from arcsup.plan.survey import explain_types
from arcsup.spec.config import GpuPolicy

A, B = VmName("a"), VmName("b")
FIRST, SECOND = "0000:01:00.0", "0000:41:00.0"
EXAMPLE = GpuRequest(min_vram_mib=MiB(1000), max_vram_mib=MiB(2000), suffix="Q")
"""What LibVF.IO's example files ask for."""

VGPU = Slice(Backend.MDEV, "11111111-2222-3333-4444-555555555555", "nvidia-525", FIRST, "devices/x")


def vm(name: VmName, *requests: GpuRequest, node: int | None = None) -> VmRequests:
    return VmRequests(name, uuid5(UUID(int=1), name), requests, node)


def a6000(address: str = FIRST, *, uncut: bool = True, node: int | None = None) -> Card:
    """An RTX A6000 as driver 525 shows it, whole or with one vGPU of 2 GiB."""
    sizes = (1, 2, 3, 4, 6, 8, 12, 16, 24, 48)
    kinds = [(522, 1, "B"), (523, 2, "B")]
    kinds += [(524 + at, gib, "Q") for at, gib in enumerate(sizes)]
    kinds += [(534 + at, gib, "A") for at, gib in enumerate(sizes)]
    return Card(
        address=address,
        path=f"devices/{address}",
        name="RTX A6000",
        vendor="10de",
        device="2230",
        driver="nvidia",
        numa_node=node,
        group=IommuGroup(7, (address,)),
        backends=(Backend.MDEV, Backend.PASSTHROUGH),
        rule=CapacityRule.SAME_SIZE,
        types=tuple(
            SliceType(
                id=f"nvidia-{number}",
                name=f"NVIDIA RTXA6000-{gib}{series}",
                vram_mib=MiB(gib * 1024),
                available=min(32, 48 // gib) if uncut else 23 if gib == 2 else 0,
                maximum=min(32, 48 // gib),
                device_api="vfio-pci",
                parent=address,
                backend=Backend.MDEV,
            )
            for number, gib, series in kinds
        ),
        slices=() if uncut else (evolve(VGPU, parent=address),),
    )


def sriov(address: str = FIRST, *, driver: str | None = None) -> Card:
    """A card with two virtual functions."""
    names = [f"{address[:-1]}{number}" for number in (1, 2)]
    return Card(
        address=address,
        path=f"devices/{address}",
        name="Battlemage",
        vendor="8086",
        device="e20b",
        driver="xe",
        group=IommuGroup(1, (address,)),
        backends=(Backend.SRIOV, Backend.PASSTHROUGH),
        vfs_total=2,
        vfs=tuple(Function(n, driver, 20 + at, f"devices/{n}") for at, n in enumerate(names)),
    )


def choose(
    cards: tuple[Card, ...],
    *vms: VmRequests,
    policy: Policy | None = None,
    held: dict[Place, Held] | None = None,
) -> dict[Place, Choice | Refusal]:
    assignment = assign(vms, Inventory(cards=cards), policy or Policy(), held or {})
    return dict(assignment.outcomes)


def chosen(outcome: Choice | Refusal) -> Choice:
    assert isinstance(outcome, Choice), str(outcome)
    return outcome


def refused(outcome: Choice | Refusal) -> Refusal:
    assert isinstance(outcome, Refusal), str(outcome)
    return outcome


def test_the_request_of_libvfios_examples_gets_the_one_gigabyte_workstation_type() -> None:
    got = chosen(choose((a6000(),), vm(A, EXAMPLE))[A, 0])

    assert (got.type, got.type_name, got.parent) == ("nvidia-524", "NVIDIA RTXA6000-1Q", FIRST)
    assert got.id == str(uuid5(vm(A).uuid, "gpu0"))
    assert not got.exists


def test_a_card_cut_in_another_size_is_full_for_it_and_says_so() -> None:
    why = refused(choose((a6000(uncut=False),), vm(A, EXAMPLE))[A, 0])

    assert "the card is cut otherwise, and takes one size at a time" in str(why)
    assert "more video memory than maxVRam 2000 MiB" in str(why)
    assert WaitFor.CAPACITY in why.waiting_for


def test_a_card_cut_in_this_size_is_taken_before_a_whole_one_and_spread_turns_that_round() -> None:
    cards = (a6000(FIRST), a6000(SECOND, uncut=False))
    request = GpuRequest(mdev_type="NVIDIA RTXA6000-2Q")

    assert chosen(choose(cards, vm(A, request))[A, 0]).card == SECOND
    spread = choose(cards, vm(A, request), policy=Policy(spread=True))
    assert chosen(spread[A, 0]).card == FIRST


def test_a_card_that_was_just_cut_for_another_vm_is_filled_up_first() -> None:
    cards = (a6000(FIRST, node=0), a6000(SECOND, node=1))

    got = choose(cards, vm(A, EXAMPLE, node=1), vm(B, EXAMPLE))

    assert [chosen(got[name, 0]).card for name in (A, B)] == [SECOND, SECOND]


def test_the_second_gpu_of_a_vm_is_on_the_numa_node_of_its_first() -> None:
    cards = (a6000(FIRST, node=0), a6000(SECOND, node=1))
    whole = GpuRequest(min_vram_mib=MiB(48 * 1024))
    named = evolve(whole, address=PciAddress(SECOND), min_vram_mib=MiB(24 * 1024))

    got = choose((*cards, a6000("0000:c1:00.0", node=1)), vm(A, named, whole))

    assert chosen(got[A, 1]).card == "0000:c1:00.0"
    assert chosen(choose(cards, vm(A, whole, node=1))[A, 0]).card == SECOND


def test_a_misspelt_type_is_answered_with_the_one_that_was_meant() -> None:
    why = refused(choose((a6000(),), vm(A, GpuRequest(mdev_type="nvidia rtxa6000-2q")))[A, 0])

    assert "did you mean NVIDIA RTXA6000-2Q?" in str(why)


def test_a_thousand_cards_with_one_reason_give_one_line() -> None:
    cards = tuple(a6000(f"0000:{bus:02x}:{slot:02x}.0") for bus in range(50) for slot in range(20))

    why = refused(choose(cards, vm(A, GpuRequest(vendor="8086")))[A, 0])

    assert [reason.card_count for reason in why.reasons] == [1000]
    assert str(why.reasons[0]).startswith("0000:00:00.0, 0000:00:01.0, 0000:00:02.0 and 997 more:")
    assert why.waiting_for == (WaitFor.CARD,)


def test_what_can_never_be_met_waits_for_nothing() -> None:
    backwards = GpuRequest(min_vram_mib=MiB(2000), max_vram_mib=MiB(1000))
    no_such_type = GpuRequest(address=PciAddress(FIRST), mdev_type="nvidia-1")

    got = choose((a6000(),), vm(A, backwards), vm(B, no_such_type))

    assert refused(got[A, 0]).waiting_for == ()
    assert refused(got[B, 0]).waiting_for == ()


def test_a_card_that_is_not_there_yet_is_waited_for() -> None:
    why = refused(choose((), vm(A, GpuRequest(address=PciAddress(SECOND))))[A, 0])
    assert why.waiting_for == (WaitFor.CARD,)

    asleep = evolve(a6000(), driver=None, backends=(Backend.PASSTHROUGH,), types=())
    assert WaitFor.DRIVER in refused(choose((asleep,), vm(A, EXAMPLE))[A, 0]).waiting_for

    no_vfs = evolve(sriov(), vfs=())
    got = choose((no_vfs,), vm(A, GpuRequest(kind=GpuKind.VF)))
    assert WaitFor.VFS in refused(got[A, 0]).waiting_for


def test_a_vm_that_cannot_start_leaves_its_share_to_the_next() -> None:
    card = a6000()
    whole = GpuRequest(mdev_type="nvidia-533")

    got = choose((card,), vm(A, whole, whole), vm(B, whole))

    assert "it lacks a GPU for slot 1" in str(refused(got[A, 0]))
    assert chosen(got[B, 0]).type == "nvidia-533"


def test_an_optional_request_takes_nothing_from_what_another_vm_needs() -> None:
    whole = GpuRequest(mdev_type="nvidia-533")

    got = choose((a6000(),), vm(A, evolve(whole, optional=True)), vm(B, whole))

    assert refused(got[A, 0]).optional
    assert chosen(got[B, 0]).card == FIRST


def test_mixed_sizes_share_a_card_only_where_the_operator_lets_them() -> None:
    vms = (vm(A, GpuRequest(mdev_type="nvidia-532")), vm(B, GpuRequest(mdev_type="nvidia-529")))
    mixed = Policy(cards=(GpuPolicy("10de:2230", mixed_sizes=True),))

    assert isinstance(choose((a6000(),), *vms)[B, 0], Refusal)
    assert isinstance(choose((a6000(),), *vms, policy=mixed)[B, 0], Choice)


def test_excluded_and_quarantined_are_not_touched() -> None:
    excluded = Policy(cards=(GpuPolicy(FIRST, exclude=True), GpuPolicy("*")))
    quarantined = Policy(quarantined=frozenset({f"{FIRST}/nvidia-524"}))

    assert "excluded" in str(choose((a6000(),), vm(A, EXAMPLE), policy=excluded)[A, 0])
    assert "quarantined" in str(choose((a6000(),), vm(A, EXAMPLE), policy=quarantined)[A, 0])


def test_what_runs_stays_on_a_card_that_is_excluded_since() -> None:
    card = evolve(a6000(uncut=False), slices=(evolve(VGPU, vm=A, ours=True),))
    held = Held(Backend.MDEV, FIRST, FIRST, "nvidia-525", VGPU.id, in_use=True)
    policy = Policy(cards=(GpuPolicy(FIRST, exclude=True),))
    request = GpuRequest(suffix="2Q")

    running = choose((card,), vm(A, request), policy=policy, held={(A, 0): held})
    assert chosen(running[A, 0]).id == VGPU.id

    idle = {(A, 0): evolve(held, in_use=False)}
    assert isinstance(choose((card,), vm(A, request), policy=policy, held=idle)[A, 0], Refusal)


def test_a_request_that_goes_leaves_the_next_one_its_slice() -> None:
    card = evolve(a6000(uncut=False), slices=(evolve(VGPU, vm=A, ours=True),))
    held = {(A, 1): Held(Backend.MDEV, FIRST, FIRST, "nvidia-525", VGPU.id, in_use=True)}

    assert chosen(choose((card,), vm(A, GpuRequest(suffix="2Q")), held=held)[A, 0]).id == VGPU.id


def test_each_vf_goes_to_one_vm_and_none_that_somebody_else_bound() -> None:
    request = GpuRequest(kind=GpuKind.VF)

    got = choose((sriov(),), vm(A, evolve(request, count=2)), vm(B, request))
    assert [chosen(got[A, slot]).id for slot in (0, 1)] == ["0000:01:00.1", "0000:01:00.2"]
    assert "full" in str(refused(got[B, 0]))

    foreign = refused(choose((sriov(driver="vfio-pci"),), vm(A, request))[A, 0])
    assert "bound to vfio-pci, and not by arcsup" in str(foreign)
    assert "`arcsup gpu adopt`" in str(foreign)


def bound_at_boot(*holders: int) -> Card:
    """Return a card whose virtual functions somebody put on vfio-pci; the first may be held."""
    card = sriov(driver="vfio-pci")
    pieces = [Slice(Backend.SRIOV, vf.address, None, vf.address, "") for vf in card.vfs]
    return evolve(card, slices=(evolve(pieces[0], holders=holders), *pieces[1:]))


def test_a_virtual_function_bound_to_vfio_at_boot_goes_to_the_request_that_names_it() -> None:
    card = bound_at_boot()
    first, second = (PciAddress(vf.address) for vf in card.vfs)
    any_vf = GpuRequest(kind=GpuKind.VF)
    named = evolve(any_vf, address=first)

    got = choose((card,), vm(A, named), vm(B, evolve(any_vf, parent=second)))
    assert (chosen(got[A, 0]).id, chosen(got[B, 0]).id) == (first, second)

    for asked in (any_vf, evolve(any_vf, address=PciAddress(FIRST))):
        assert "not by arcsup" in str(refused(choose((card,), vm(A, asked))[A, 0]))
    twice = choose((card,), vm(A, named), vm(B, named))
    assert chosen(twice[A, 0]).id == first
    assert f"{first} is taken" in str(refused(twice[B, 0]))


def test_a_virtual_function_bound_to_vfio_is_free_again_when_its_vm_cannot_start() -> None:
    card = bound_at_boot()
    named = GpuRequest(kind=GpuKind.VF, address=PciAddress(card.vfs[0].address))
    nowhere = GpuRequest(kind=GpuKind.VF, address=PciAddress(SECOND))

    got = choose((card,), vm(A, named, nowhere), vm(B, named))
    assert isinstance(got[A, 0], Refusal)
    assert chosen(got[B, 0]).id == card.vfs[0].address


def test_a_virtual_function_that_a_program_holds_goes_to_nobody() -> None:
    card = bound_at_boot(4711)
    named = GpuRequest(kind=GpuKind.VF, address=PciAddress(card.vfs[0].address))
    assert "in foreign hands" in str(refused(choose((card,), vm(A, named))[A, 0]))


def test_one_that_is_bound_to_vfio_keeps_no_free_virtual_function_from_anybody() -> None:
    bound = bound_at_boot()
    free = evolve(bound.vfs[1], driver="xe")
    card = evolve(bound, vfs=(bound.vfs[0], free), slices=bound.slices[:1])
    any_vf = GpuRequest(kind=GpuKind.VF)

    assert chosen(choose((card,), vm(A, any_vf))[A, 0]).id == free.address
    named = evolve(any_vf, address=PciAddress(bound.vfs[0].address))
    got = choose((card,), vm(A, any_vf), vm(B, named))
    assert chosen(got[B, 0]).id == bound.vfs[0].address


def test_a_virtual_function_that_the_operator_excludes_goes_to_nobody_named_or_not() -> None:
    first, second = (vf.address for vf in sriov().vfs)
    policy = Policy(cards=(GpuPolicy("*"), GpuPolicy(first, exclude=True)))
    request = GpuRequest(kind=GpuKind.VF)

    got = choose((sriov(),), vm(A, request), vm(B, request), policy=policy)
    assert chosen(got[A, 0]).id == second
    assert isinstance(got[B, 0], Refusal)
    named = evolve(request, address=PciAddress(first))
    refusal = refused(choose((sriov(),), vm(A, named), policy=policy)[A, 0])
    assert f"{first} is excluded by `gpus` in arcsup.yaml" in str(refusal)


def test_no_vgpu_is_made_on_a_virtual_function_that_the_operator_excludes() -> None:
    first, second = (vf.address for vf in sriov().vfs)
    types = (
        evolve(kind, parent=parent, available=1, maximum=None)
        for parent in (first, second)
        for kind in a6000().types
    )
    card = evolve(sriov(), driver="nvidia", backends=(Backend.MDEV,), types=tuple(types))
    policy = Policy(cards=(GpuPolicy(first, exclude=True),))
    request = GpuRequest(suffix="2Q")

    assert chosen(choose((card,), vm(A, request), policy=policy)[A, 0]).parent == second
    named = evolve(request, parent=PciAddress(first))
    assert isinstance(choose((card,), vm(A, named), policy=policy)[A, 0], Refusal)


def test_an_excluded_virtual_function_stays_with_who_runs_and_with_nobody_else() -> None:
    card = sriov(driver="vfio-pci")
    first = card.vfs[0].address
    piece = Slice(Backend.SRIOV, first, None, first, "", vm=A, ours=True)
    card = evolve(card, slices=(piece,), vfs=card.vfs[:1])
    held = Held(Backend.SRIOV, FIRST, first, None, first, in_use=True)
    policy = Policy(cards=(GpuPolicy(first, exclude=True),))
    asking = vm(A, GpuRequest(kind=GpuKind.VF))

    assert chosen(choose((card,), asking, policy=policy, held={(A, 0): held})[A, 0]).id == first
    idle = {(A, 0): evolve(held, in_use=False)}
    assert isinstance(choose((card,), asking, policy=policy, held=idle)[A, 0], Refusal)


def test_a_card_is_not_taken_whole_when_what_goes_along_with_it_is_excluded() -> None:
    audio = Function("0000:01:00.1", "snd_hda_intel", 7, "devices/audio")
    card = evolve(a6000(), companions=(audio,))
    policy = Policy(cards=(GpuPolicy(audio.address, exclude=True),))
    request = GpuRequest(kind=GpuKind.PASSTHROUGH)

    for asked in (request, evolve(request, address=PciAddress(FIRST))):
        refusal = refused(choose((card,), vm(A, asked), policy=policy)[A, 0])
        assert "0000:01:00.1, which goes along with it, is excluded" in str(refusal)


def test_what_is_excluded_in_a_group_of_its_own_stays_and_the_card_is_taken_without_it() -> None:
    audio = Function("0000:01:00.1", "snd_hda_intel", 8, "devices/audio")
    card = evolve(a6000(), companions=(audio,))
    excluded = (GpuPolicy(audio.address, exclude=True),)
    used = {audio.address: "is used by process 9 (mpv)"}
    asked = vm(A, GpuRequest(kind=GpuKind.PASSTHROUGH))

    assert chosen(choose((card,), asked)[A, 0]).companions == (audio.address,)
    assert "mpv" in str(refused(choose((card,), asked, policy=Policy(used=used))[A, 0]))
    taken = choose((card,), asked, policy=Policy(cards=excluded, used=used))
    assert chosen(taken[A, 0]).companions == ()


def with_memory(card: Card, *sizes: int | None) -> Card:
    """Return a card of which each virtual function has so many MiB."""
    vfs = (
        evolve(vf, vram_mib=None if size is None else MiB(size))
        for vf, size in zip(card.vfs, sizes, strict=True)
    )
    return evolve(card, vfs=tuple(vfs))


def test_a_vf_is_chosen_by_its_video_memory_where_the_card_tells_it() -> None:
    request = GpuRequest(kind=GpuKind.VF, min_vram_mib=MiB(3000), max_vram_mib=MiB(5000))
    cards = (
        with_memory(sriov(), 2048, 2048),
        with_memory(sriov(SECOND), 4096, 4096),
    )

    choice = chosen(choose(cards, vm(A, request))[A, 0])
    assert (choice.card, choice.vram_mib) == (SECOND, 4096)
    few = choose(cards, vm(A, evolve(request, min_vram_mib=MiB(4097))))
    assert "less video memory than minVRam 4097 MiB" in str(refused(few[A, 0]))
    many = choose(cards, vm(A, evolve(request, min_vram_mib=None, max_vram_mib=MiB(512))))
    assert "more video memory than maxVRam 512 MiB" in str(refused(many[A, 0]))


def test_a_vf_is_chosen_by_what_its_driver_calls_it() -> None:
    cards = (sriov(), evolve(sriov(SECOND), vf_type="S7150"))
    request = GpuRequest(kind=GpuKind.VF, acceptable_types=("S7100X", "S7150"))

    choice = chosen(choose(cards, vm(A, request))[A, 0])
    assert (choice.card, choice.type_name) == (SECOND, "S7150")
    other = choose(cards, vm(A, evolve(request, acceptable_types=("S7100X",))))
    assert "of no type asked for (acceptableTypes S7100X)" in str(refused(other[A, 0]))


@pytest.mark.parametrize("sizes", [(None, None), (2048, 4096)])
def test_a_vf_whose_video_memory_is_not_known_is_within_no_limits(
    sizes: tuple[int | None, int | None],
) -> None:
    card = with_memory(sriov(), *sizes)

    limited = choose((card,), vm(A, GpuRequest(kind=GpuKind.VF, min_vram_mib=MiB(1))))
    assert "its video memory is not known" in str(refused(limited[A, 0]))
    assert chosen(choose((card,), vm(A, GpuRequest(kind=GpuKind.VF)))[A, 0]).vram_mib is None


def test_a_vf_that_a_vm_has_stays_with_it_while_its_memory_suits() -> None:
    card = with_memory(sriov(driver="vfio-pci"), 4096, 4096)
    piece = Slice(
        Backend.SRIOV, card.vfs[0].address, None, card.vfs[0].address, "", vm=A, ours=True
    )
    card = evolve(card, slices=(piece,))
    request = GpuRequest(kind=GpuKind.VF, min_vram_mib=MiB(4096))

    assert chosen(choose((card,), vm(A, request))[A, 0]).exists
    larger = evolve(request, min_vram_mib=MiB(8192))
    assert isinstance(choose((card,), vm(A, larger))[A, 0], Refusal)


def test_a_whole_card_must_be_uncut_alone_in_its_group_and_not_the_hosts_display() -> None:
    request = GpuRequest(kind=GpuKind.PASSTHROUGH)
    named = evolve(request, address=PciAddress(FIRST))
    display = evolve(a6000(), boot_vga=True, usable=False, why="it is the host's boot display")
    shared = evolve(a6000(), group=IommuGroup(7, (FIRST,), (f"{SECOND} is in use",)))

    assert chosen(choose((a6000(),), vm(A, request))[A, 0]).id == FIRST
    assert "boot display" in str(choose((display,), vm(A, request))[A, 0])
    assert chosen(choose((display,), vm(A, named))[A, 0]).forced
    entry = Policy(cards=(GpuPolicy(FIRST, mixed_sizes=True),))
    assert "boot display" in str(choose((display,), vm(A, request), policy=entry)[A, 0])
    assert f"{SECOND} is in use" in str(choose((shared,), vm(A, named))[A, 0])
    assert "slices of it exist" in str(choose((a6000(uncut=False),), vm(A, named))[A, 0])


def screen(ids: str) -> Card:
    vendor, device = ids.split(":")
    return Card(
        address="0000:00:02.0",
        path="devices/screen",
        name="a screen",
        vendor=vendor,
        device=device,
        group=IommuGroup(1, ("0000:00:02.0",)),
        backends=(Backend.PASSTHROUGH,),
    )


@pytest.mark.parametrize(
    "ids", ["1a03:2000", "102b:0538", "19e5:1711", "1002:515e", "1234:1111", "1af4:1050"]
)
def test_the_screen_of_a_server_or_of_an_emulator_goes_only_to_who_names_it(ids: str) -> None:
    request = GpuRequest(kind=GpuKind.PASSTHROUGH)
    vendor, device = ids.split(":")

    assert chosen(choose((screen(ids), a6000()), vm(A, request))[A, 0]).card == FIRST
    alone = choose((screen(ids),), vm(A, request), vm(B, evolve(request, optional=True)))
    assert "no GPU; `address` in the request takes it" in str(refused(alone[A, 0]))
    assert isinstance(alone[B, 0], Refusal)
    for named in (
        evolve(request, address=PciAddress("0000:00:02.0")),
        evolve(request, vendor=vendor, device=device),
    ):
        got = choose((screen(ids), a6000()), vm(A, named))
        assert chosen(got[A, 0]).id == "0000:00:02.0"


def test_who_asks_for_a_gpu_of_a_vendor_does_not_get_its_servers_screen() -> None:
    request = GpuRequest(kind=GpuKind.PASSTHROUGH, vendor="1002")
    console, radeon = screen("1002:515e"), evolve(a6000(), vendor="1002", device="73bf")
    assert chosen(choose((console, radeon), vm(A, request))[A, 0]).card == FIRST

    alone = Inventory(cards=(console,))
    verdicts = explain_types((A, 0), [vm(A, request)], alone, Policy(), {})
    assert [verdict.why for verdict in verdicts] == [
        "it is the screen of a server's management controller (ATI ES1000) and no GPU"
    ]


@pytest.mark.parametrize("kind", [GpuKind.PASSTHROUGH, GpuKind.VF])
def test_what_a_vm_has_yet_to_give_back_is_for_nobody_else_though_the_device_says_nothing(
    kind: GpuKind,
) -> None:
    card = a6000() if kind is GpuKind.PASSTHROUGH else evolve(sriov(), vfs=sriov().vfs[:1])
    request = GpuRequest(kind=kind)
    address = chosen(choose((card,), vm(A, request))[A, 0]).id

    owing = Policy(owed={address: B})
    for asked in (request, evolve(request, address=PciAddress(address))):
        refusal = refused(choose((card,), vm(A, asked), policy=owing)[A, 0])
        assert "VM b has yet to give it back" in str(refusal)
        assert WaitFor.CAPACITY in refusal.waiting_for


def test_a_card_that_others_bound_to_vfio_is_taken_only_by_its_address() -> None:
    bound = Slice(Backend.PASSTHROUGH, FIRST, None, FIRST, "devices/x")
    card = evolve(a6000(), driver="vfio-pci", types=(), slices=(bound,))
    held_open = evolve(card, slices=(evolve(bound, holders=(4711,)),))
    request = GpuRequest(kind=GpuKind.PASSTHROUGH)
    named = evolve(request, address=PciAddress(FIRST))

    assert "not by arcsup" in str(refused(choose((card,), vm(A, request))[A, 0]))
    assert chosen(choose((card,), vm(A, named))[A, 0]).id == FIRST
    assert "in use by somebody else" in str(refused(choose((held_open,), vm(A, named))[A, 0]))


def test_two_cards_of_one_iommu_group_go_to_one_vm() -> None:
    request = GpuRequest(kind=GpuKind.PASSTHROUGH)
    cards = (a6000(FIRST), a6000(SECOND))

    assert "group is with another VM" in str(choose(cards, vm(A, request), vm(B, request))[B, 0])
    got = choose(cards, vm(A, evolve(request, count=2)))
    assert [chosen(got[A, slot]).id for slot in (0, 1)] == [FIRST, SECOND]


def vendor_card(vfs: int) -> Card:
    """A card whose VFs are given a vGPU by number, as NVIDIA has it since kernel 6.8."""
    names = [f"0000:01:00.{number + 1}" for number in range(vfs)]
    kinds = (("nvidia-1155", "NVIDIA L40S-24Q", 24), ("nvidia-1156", "NVIDIA L40S-48Q", 48))
    return evolve(
        a6000(),
        backends=(Backend.VENDOR_VFIO,),
        vfs_total=vfs,
        vfs=tuple(Function(name, "nvidia", None, f"devices/{name}") for name in names),
        types=tuple(
            SliceType(
                type_id, called, MiB(gib * 1024), 1, None, "vfio-pci", name, Backend.VENDOR_VFIO
            )
            for name in names
            for type_id, called, gib in kinds
        ),
    )


def test_a_vendor_vgpu_takes_a_vf_for_itself_and_its_card_no_more_than_its_memory() -> None:
    request = GpuRequest(suffix="24Q", count=3)

    got = choose((vendor_card(4),), vm(A, *[evolve(request, count=1, optional=True)] * 3))

    assert [chosen(got[A, slot]).id for slot in (0, 1)] == ["0000:01:00.1", "0000:01:00.2"]
    assert isinstance(got[A, 2], Refusal)


def test_a_full_vendor_card_that_lists_no_type_keeps_its_vms() -> None:
    piece = Slice(Backend.VENDOR_VFIO, "0000:01:00.1", "nvidia-1155", "0000:01:00.1", "devices/x")
    full = evolve(vendor_card(2), types=(), slices=(evolve(piece, vm=A, ours=True),))
    held = {(A, 0): Held(Backend.VENDOR_VFIO, FIRST, piece.id, piece.type, piece.id)}

    got = choose((full,), vm(A, GpuRequest(suffix="24Q")), vm(B, GpuRequest()), held=held)

    assert chosen(got[A, 0]).id == piece.id
    assert WaitFor.CAPACITY in refused(got[B, 0]).waiting_for


def test_mig_instances_of_one_width_leave_the_others_alone() -> None:
    names = {
        "nvidia-471": "GRID A100-1-5C",
        "nvidia-474": "GRID A100-3-20C",
        "nvidia-468": "GRID A100-4C",
    }
    kinds = tuple(
        SliceType(
            type_id,
            name,
            MiB(4096),
            0 if name.endswith("4C") else 1,
            None,
            "vfio-pci",
            FIRST,
            Backend.MDEV,
        )
        for type_id, name in names.items()
    )
    card = evolve(a6000(), types=kinds)
    asked = [GpuRequest(mdev_type=name) for name in names]

    got = choose((card,), *(vm(VmName(f"v{n}"), request) for n, request in enumerate(asked)))

    assert chosen(got[VmName("v0"), 0]).type == "nvidia-471"
    assert chosen(got[VmName("v1"), 0]).type == "nvidia-474"
    assert "the card is in MIG mode" in str(got[VmName("v2"), 0])


def test_the_survey_tells_of_each_type_why_it_was_not_chosen() -> None:
    verdicts = explain_types((A, 0), [vm(A, EXAMPLE)], Inventory(cards=(a6000(),)), Policy(), {})

    said = {verdict.name.removeprefix("NVIDIA RTXA6000-"): verdict for verdict in verdicts}
    assert [name for name, verdict in said.items() if verdict.chosen] == ["1Q"]
    assert said["1B"].why == "its name does not end in Q"
    assert said["2Q"].why == "more video memory than maxVRam 2000 MiB"


@pytest.mark.parametrize("optional", [False, True])
def test_what_a_start_under_way_is_about_to_take_is_nobody_elses(optional: bool) -> None:
    """Not even that of a VM that runs, or whose name comes first."""
    request = GpuRequest(kind=GpuKind.VF, optional=optional)
    got = chosen(choose((sriov(),), vm(B, request))[B, 0])
    mine = Held(got.backend, got.card, got.parent, got.type, got.id, in_use=True)
    used = Held(Backend.SRIOV, SECOND, SECOND, None, "0000:41:00.1", in_use=True)
    others = [vm(A, GpuRequest(kind=GpuKind.VF), GpuRequest(kind=GpuKind.VF))]

    for held in ({(B, 0): mine}, {(B, 0): mine, (A, 0): used}):
        outcomes = choose((sriov(),), *others, vm(B, request), held=held)
        assert chosen(outcomes[B, 0]).id == got.id
        ids = [it.id for it in outcomes.values() if isinstance(it, Choice)]
        assert len(set(ids)) == len(ids)


def test_an_idle_card_is_taken_and_one_that_the_host_uses_only_by_force() -> None:
    policy = Policy(used={FIRST: "is used by process 4711 (Xorg) through /dev/dri/card0"})
    cards = [a6000(FIRST), evolve(a6000(SECOND), group=IommuGroup(8, (SECOND,)))]
    whole = GpuRequest(kind=GpuKind.PASSTHROUGH)
    named = evolve(whole, address=PciAddress(FIRST))

    def get(request: GpuRequest, held: dict[Place, Held] | None = None) -> Choice | Refusal:
        outcomes = assign([vm(A, request)], Inventory(cards=tuple(cards)), policy, held or {})
        return outcomes.outcomes[A, 0]

    assert chosen(get(whole)).id == SECOND
    refusal = refused(get(named))
    assert "process 4711 (Xorg) through /dev/dri/card0; `force: true`" in str(refusal)
    assert refusal.waiting_for == (WaitFor.CAPACITY,)
    had = {(A, 0): Held(Backend.PASSTHROUGH, FIRST, FIRST, None, FIRST, in_use=False)}
    assert refused(get(named, had)) == refusal, "to have had it before is no right to it"
    taken = chosen(get(evolve(named, force=True)))
    assert (taken.id, taken.force) == (FIRST, True)
