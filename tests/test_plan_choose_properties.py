"""Choosing: random worlds are its specification, a slow driver and brute force its judges."""

from collections.abc import Mapping, Sequence
from functools import partial
from uuid import UUID, uuid5

from attrs import evolve, frozen
from hypothesis import given
from hypothesis import strategies as st

from arcsup.devices import Backend, CapacityRule, Inventory
from arcsup.model import GpuRequest, MiB, PciAddress, VmName
from arcsup.plan.assignment import (
    Assignment,
    Choice,
    Held,
    Place,
    Policy,
    Refusal,
    VmRequests,
    slots_of,
)
from arcsup.plan.choose import assign
from arcsup.plan.survey import explain_types
from tests.slow_driver import Kind, Made, SlowDriver

NAMES = tuple(VmName(name) for name in ("a", "b", "c", "d", "e"))
SIZES = (None, 512, 1024, 2048, 4096)
CARDS = tuple(f"0000:{bus:02x}:00.0" for bus in (1, 0x41, 0xC1))


@frozen
class World:
    """A host, the VM files, and what is remembered."""

    drivers: tuple[SlowDriver, ...]
    vms: tuple[VmRequests, ...]
    held: Mapping[Place, Held]
    policy: Policy

    @property
    def inventory(self) -> Inventory:
        return Inventory(cards=tuple(driver.card() for driver in self.drivers))

    def assign(self) -> Assignment:
        return assign(self.vms, self.inventory, self.policy, self.held)


@st.composite
def kinds(draw: st.DrawFn, rule: CapacityRule, *, on_vfs: bool) -> tuple[Kind, ...]:
    found = []
    for number in range(draw(st.integers(1, 4))):
        vram = draw(st.sampled_from(SIZES if rule is CapacityRule.ANY else SIZES[1:]))
        # Only where the driver counts something else than memory do sizes and units differ.
        by_memory = rule is not CapacityRule.ANY and vram is not None
        units = vram // 512 if by_memory and vram else draw(st.integers(1, 8))
        letter = draw(st.sampled_from("QBA"))
        # On VFs the maximum is all that tells of the card's memory, so it tells just that.
        maximum = None if on_vfs else draw(st.none() | st.integers(1, 6))
        found.append(Kind(f"nvidia-{number}", f"M-{number}{letter}", vram, units, maximum))
    return tuple(found)


@st.composite
def drivers(draw: st.DrawFn, address: str) -> SlowDriver:
    rule = draw(st.sampled_from(CapacityRule))
    vfs = draw(st.integers(0, 5))
    driver = SlowDriver(
        address=address,
        rule=rule,
        kinds=draw(kinds(rule, on_vfs=vfs > 0)),
        units=draw(st.integers(1, 16)),
        vfs=tuple(f"{address[:-2]}.{number + 1}" for number in range(vfs)),
        vendor=draw(st.sampled_from(["10de", "8086"])),
        numa_node=draw(st.sampled_from([None, 0, 1])),
        # Only drivers that count units keep silent: NVIDIA tells the maximum of each type.
        mute=rule is CapacityRule.ANY and draw(st.booleans()),
    )
    for number in range(draw(st.integers(0, 3))):
        kind, parent = draw(st.sampled_from(driver.kinds)), draw(st.sampled_from(driver.parents))
        if driver.can_make(kind, parent):
            vm = draw(st.none() | st.sampled_from(NAMES))
            made_id = str(uuid5(UUID(int=7), f"{address} {number}"))
            driver.make(Made(made_id, kind, parent, vm, ours=vm is not None))
    return driver


@st.composite
def requests(draw: st.DrawFn) -> GpuRequest:
    named = draw(st.none() | st.none() | st.sampled_from([*CARDS, f"{CARDS[0][:-2]}.1"]))
    limit = st.none() | st.sampled_from([MiB(size) for size in SIZES if size])
    return GpuRequest(
        min_vram_mib=draw(limit),
        max_vram_mib=draw(limit),
        suffix=draw(st.sampled_from(["", "", "Q", "1B"])),
        mdev_type=draw(st.sampled_from(["", "", "", "nvidia-0", "nvidia-1", "M-0Q"])),
        parent=PciAddress(named) if named else None,
        vendor=draw(st.sampled_from(["", "", "8086"])),
        count=draw(st.integers(1, 2)),
        optional=draw(st.booleans()),
    )


def vms(name: VmName) -> st.SearchStrategy[VmRequests]:
    return st.builds(
        VmRequests,
        st.just(name),
        st.just(uuid5(UUID(int=3), name)),
        st.lists(requests(), max_size=3).map(tuple),
        st.sampled_from([None, None, 0, 1]),
    )


@st.composite
def worlds(draw: st.DrawFn) -> World:
    found = tuple(draw(drivers(address)) for address in CARDS[: draw(st.integers(0, 3))])
    held: dict[Place, Held] = {}
    next_slot = dict.fromkeys(NAMES, 0)
    for driver in found:
        for made in driver.made:
            if made.vm is not None:
                place = (made.vm, next_slot[made.vm])
                next_slot[made.vm] += 1
                held[place] = held_of(driver, made, in_use=draw(st.booleans()))
    return World(
        drivers=found,
        vms=tuple(draw(vms(name)) for name in NAMES[: draw(st.integers(0, 5))]),
        held=held,
        policy=Policy(spread=draw(st.booleans())),
    )


def held_of(driver: SlowDriver, made: Made, *, in_use: bool) -> Held:
    return Held(Backend.MDEV, driver.address, made.parent, made.kind.id, made.id, in_use)


def choices(assignment: Assignment) -> dict[Place, Choice]:
    found = assignment.outcomes.items()
    return {place: outcome for place, outcome in found if isinstance(outcome, Choice)}


def carry_out(world: World, assignment: Assignment) -> None:
    """Make what was chosen, one by one; the slow driver fails where choosing was wrong."""
    by_address = {driver.address: driver for driver in world.drivers}
    for place, choice in choices(assignment).items():
        if not choice.exists:
            driver = by_address[choice.card]
            kind = driver.kind(choice.type)
            driver.make(Made(choice.id, kind, choice.parent, place[0], ours=True))


@given(worlds())
def test_whatever_is_chosen_can_be_made(world: World) -> None:
    carry_out(world, world.assign())


@given(worlds())
def test_no_slice_is_given_twice_and_none_that_is_foreign(world: World) -> None:
    existing = {made.id: made for driver in world.drivers for made in driver.made}

    chosen = choices(world.assign())

    ids = [choice.id for choice in chosen.values()]
    assert len(ids) == len(set(ids))
    for (vm, _), choice in chosen.items():
        assert choice.exists is (choice.id in existing)
        if choice.exists:
            assert existing[choice.id].ours
            assert existing[choice.id].vm == vm


@given(worlds())
def test_every_slot_has_an_outcome_and_every_refusal_a_reason(world: World) -> None:
    outcomes = world.assign().outcomes

    expected = {(vm.name, slot): request for vm in world.vms for slot, request in slots_of(vm)}
    assert set(outcomes) == set(expected)
    assert list(outcomes) == sorted(outcomes)
    for place, outcome in outcomes.items():
        if isinstance(outcome, Refusal):
            assert outcome.reasons
            assert all(reason.because for reason in outcome.reasons)
            assert outcome.optional is expected[place].optional


@given(worlds())
def test_a_vm_gets_all_that_it_needs_to_start_or_nothing_new(world: World) -> None:
    assignment = world.assign()

    for vm in world.vms:
        runs = any(held.in_use for (name, _), held in world.held.items() if name == vm.name)
        if assignment.obstacles_of(vm.name) and not runs:
            assert all(choice.exists for choice in assignment.choices_of(vm.name).values())


@given(worlds())
def test_the_order_of_what_is_passed_in_does_not_matter(world: World) -> None:
    turned = World(
        drivers=world.drivers[::-1],
        vms=world.vms[::-1],
        held=dict(reversed(list(world.held.items()))),
        policy=world.policy,
    )

    assert turned.assign() == world.assign()


@given(worlds(), st.data())
def test_a_further_vm_moves_no_slice_that_is_there(world: World, data: st.DataObject) -> None:
    before = choices(world.assign())
    further = data.draw(vms(VmName("0-first-by-name")))

    after = choices(evolve(world, vms=(further, *world.vms)).assign())

    for place, choice in before.items():
        if choice.exists:
            assert after[place] == choice


@given(worlds())
def test_what_was_made_is_kept_from_then_on(world: World) -> None:
    first = world.assign()
    carry_out(world, first)
    held = {
        place: Held(c.backend, c.card, c.parent, c.type, c.id, in_use=False)
        for place, c in choices(first).items()
    }

    second = choices(evolve(world, held=held).assign())

    for place, choice in choices(first).items():
        assert second[place].exists
        assert second[place].id == choice.id


@given(worlds())
def test_after_a_reboot_each_slot_is_where_it_was(world: World) -> None:
    for driver in world.drivers:
        driver.made.clear()
    bare = evolve(world, held={})
    required = tuple(
        evolve(vm, requests=tuple(evolve(request, optional=False) for request in vm.requests))
        for vm in bare.vms
    )
    first = choices(evolve(bare, vms=required).assign())
    held = {p: Held(c.backend, c.card, c.parent, c.type, c.id) for p, c in first.items()}
    newcomer = VmRequests(VmName("0-new"), UUID(int=9), (GpuRequest(),))

    second = choices(evolve(bare, vms=(newcomer, *required), held=held).assign())

    where = {place: (c.card, c.parent, c.type) for place, c in first.items()}
    assert {p: (c.card, c.parent, c.type) for p, c in second.items() if p in first} == where


@frozen
class Possible:
    """One way to meet a request, found by trying everything."""

    driver: SlowDriver
    kind: Kind
    parent: str


def brute_force(found: Sequence[SlowDriver], request: GpuRequest) -> list[Possible]:
    return [
        Possible(driver, kind, parent)
        for driver in found
        for kind in driver.kinds
        for parent in driver.parents
        if suits(driver, kind, parent, request) and driver.can_make(kind, parent)
    ]


def suits(driver: SlowDriver, kind: Kind, parent: str, request: GpuRequest) -> bool:
    if request.parent not in (None, driver.address, parent):
        return False
    if request.vendor not in ("", driver.vendor):
        return False
    if request.mdev_type:
        return request.mdev_type in (kind.id, kind.name)
    bounded = request.min_vram_mib is not None or request.max_vram_mib is not None
    if bounded and kind.vram is None:
        return False
    low, high = request.min_vram_mib or 0, request.max_vram_mib or 1 << 30
    return low <= (kind.vram or 0) <= high and kind.name.endswith(request.suffix)


def preference(way: Possible, nodes: set[int], *, spread: bool) -> tuple[int | str, ...]:
    """The order that the issue gives, written down once more."""
    driver = way.driver
    sizes = {made.kind.vram or made.kind.id for made in driver.made}
    size = way.kind.vram or way.kind.id
    packed = 0 if size in sizes else 1 if sizes else 2
    free = sum(driver.available(way.kind, parent) for parent in driver.parents)
    if driver.vfs and driver.rule is CapacityRule.ANY and (driver.made or driver.mute):
        free = min(free, 1)  # what is left of the others, nothing tells
    elif driver.vfs:
        free = min(free, driver.most(way.kind) - sum(made.kind == way.kind for made in driver.made))
        if driver.rule in (CapacityRule.SAME_SIZE, CapacityRule.SAME_TYPE):
            alike = [driver.most(kind) for kind in driver.kinds if kind.vram == way.kind.vram]
            free = min(free, max(alike) - len(driver.made))
        if driver.rule is CapacityRule.MIXED:
            left = driver.units - sum(made.kind.units for made in driver.made)
            free = min(free, left // way.kind.units)
    return (
        (1 if sizes else 0) if spread else packed,
        int(bool(nodes) and driver.numa_node not in nodes),
        -(way.kind.vram or 0),
        "QBA".index(way.kind.name[-1]) if driver.vendor == "10de" else 0,
        -free,
        driver.address,
        way.kind.name,
        way.kind.id,
        way.parent,
    )


@given(worlds(), requests(), st.sampled_from([None, 0, 1]))
def test_a_single_request_gets_the_best_that_brute_force_finds(
    world: World, request: GpuRequest, node: int | None
) -> None:
    single = evolve(request, count=1)
    vm = VmRequests(VmName("one"), UUID(int=1), (single,), node)

    outcome = evolve(world, vms=(vm,), held={}).assign().outcomes[vm.name, 0]

    ways = brute_force(world.drivers, single)
    if not ways:
        assert isinstance(outcome, Refusal)
    else:
        nodes = set() if node is None else {node}
        best = min(ways, key=lambda way: preference(way, nodes, spread=world.policy.spread))
        assert isinstance(outcome, Choice), str(outcome)
        expected = (best.driver.address, best.parent, best.kind.id)
        assert (outcome.card, outcome.parent, outcome.type) == expected


@st.composite
def plain_drivers(draw: st.DrawFn, address: str) -> SlowDriver:
    """Draw a card on which what is left of one type follows from the numbers of the others."""
    vfs = draw(st.sampled_from([0, 0, 2, 4]))
    sizes = draw(st.lists(st.sampled_from(SIZES[1:]), min_size=1, max_size=4))
    return SlowDriver(
        address=address,
        rule=draw(st.sampled_from([CapacityRule.SAME_TYPE, CapacityRule.SAME_SIZE])),
        kinds=tuple(
            Kind(f"nvidia-{number}", f"M-{number}Q", size, (size or 0) // 512, None)
            for number, size in enumerate(sizes)
        ),
        units=draw(st.integers(4, 16)),
        vfs=tuple(f"{address[:-2]}.{number + 1}" for number in range(vfs)),
        numa_node=draw(st.sampled_from([None, 0, 1])),
    )


PLAIN_REQUESTS = st.builds(
    GpuRequest,
    max_vram_mib=st.sampled_from([None, MiB(1024), MiB(2048)]),
    mdev_type=st.sampled_from(["", "", "nvidia-0", "nvidia-1"]),
)


@given(
    st.tuples(*(plain_drivers(address) for address in CARDS)),
    st.lists(st.lists(PLAIN_REQUESTS, min_size=1, max_size=2), max_size=8),
    st.booleans(),
)
def test_vm_after_vm_gets_the_best_that_is_left_or_leaves_it_to_the_next(
    found: tuple[SlowDriver, ...], asked: list[list[GpuRequest]], spread: bool
) -> None:
    files = tuple(
        VmRequests(VmName(f"vm{number}"), UUID(int=number), tuple(requests))
        for number, requests in enumerate(asked)
    )
    outcomes = World(found, files, {}, Policy(spread=spread)).assign().outcomes

    for vm in files:
        got = {slot: outcomes[vm.name, slot] for slot in range(len(vm.requests))}
        ways = dict(enumerate(best_in_turn(found, vm, spread=spread)))
        if None in ways.values():
            assert all(isinstance(outcome, Refusal) for outcome in got.values())
            continue
        for slot, outcome in got.items():
            way = ways[slot]
            assert isinstance(outcome, Choice), str(outcome)
            assert way is not None
            expected = (way.driver.address, way.parent, way.kind.id)
            assert (outcome.card, outcome.parent, outcome.type) == expected


def best_in_turn(
    found: tuple[SlowDriver, ...], vm: VmRequests, *, spread: bool
) -> list[Possible | None]:
    """Make the best for each request of a VM; take all back where one of them gets nothing."""
    before = [list(driver.made) for driver in found]
    nodes: set[int] = set()
    ways: list[Possible | None] = []
    for slot, request in enumerate(vm.requests):
        possible = brute_force(found, request)
        key = partial(preference, nodes=set(nodes), spread=spread)
        way = min(possible, key=key, default=None)
        ways.append(way)
        if way is not None:
            way.driver.make(Made(f"{vm.name} {slot}", way.kind, way.parent, vm.name, ours=True))
            if way.driver.numa_node is not None:
                nodes.add(way.driver.numa_node)
    if None in ways:
        for driver, made in zip(found, before, strict=True):
            driver.made = made
    return ways


@given(st.data(), st.sampled_from(CapacityRule), st.integers(0, 5))
def test_a_card_filled_to_the_brim_keeps_its_rule(
    data: st.DataObject, rule: CapacityRule, vfs: int
) -> None:
    offered = data.draw(kinds(rule, on_vfs=vfs > 0))
    names = tuple(f"{CARDS[0][:-2]}.{number + 1}" for number in range(vfs))
    mute = rule is CapacityRule.ANY and data.draw(st.booleans())
    units = data.draw(st.integers(4, 32))
    driver = SlowDriver(CARDS[0], rule, offered, units, names, mute=mute)
    asked = data.draw(st.lists(st.sampled_from(offered), min_size=4, max_size=16))
    files = tuple(
        VmRequests(VmName(f"vm{n}"), UUID(int=n), (GpuRequest(mdev_type=kind.id),))
        for n, kind in enumerate(asked)
    )
    world = World((driver,), files, {}, Policy())

    # Planned and made again and again, for what is planned is on the safe side of what fits.
    for _ in asked:
        carry_out(world, assign(files, world.inventory, Policy(), made_of(driver)))

    assert not any(
        driver.can_make(kind, parent)
        for vm, kind in zip(files, asked, strict=True)
        if vm.name not in {made.vm for made in driver.made}
        for parent in driver.parents
    )


def made_of(driver: SlowDriver) -> dict[Place, Held]:
    found = ((made.vm, held_of(driver, made, in_use=False)) for made in driver.made)
    return {(vm, 0): held for vm, held in found if vm is not None}


@given(worlds())
def test_the_survey_says_the_same_as_the_assignment(world: World) -> None:
    assignment = world.assign()

    for place, outcome in assignment.outcomes.items():
        args = (world.vms, world.inventory, world.policy, world.held)
        verdicts = explain_types(place, *args)
        chosen = [(v.card, v.type) for v in verdicts if v.chosen]
        assert all(verdict.why for verdict in verdicts)
        if isinstance(outcome, Choice):
            assert chosen == [(outcome.card, outcome.type)]
