"""The planner: a random world is its specification."""

from uuid import UUID

from attrs import evolve, frozen
from hypothesis import given
from hypothesis import strategies as st

from arcsup.model import MiB, State, Vm, VmName
from arcsup.plan.lifecycle import Phase
from arcsup.plan.plan import (
    Action,
    ChangeGpus,
    ChangeMedia,
    ForgetVm,
    HostSeen,
    Intent,
    ReleaseDevices,
    Seen,
    StartVm,
    StopVm,
    Wanted,
    judge,
    needs_restart,
    next_deadline,
    plan,
    show_state,
)

NOW = 1000.0
A, B, C = VmName("a"), VmName("b"), VmName("c")
ROOMY = HostSeen(start_slots=100)


def vm(name: VmName, *, autostart: bool = True, after: tuple[VmName, ...] = ()) -> Vm:
    return Vm(name=name, uuid=UUID(int=1), autostart=autostart, after=after, memory_mib=MiB(100))


def test_a_new_file_is_started() -> None:
    assert plan({A: Wanted(vm(A))}, {}, ROOMY, NOW) == (StartVm(A, "autostart"),)


def test_a_removed_file_stops_its_vm_and_then_it_is_forgotten() -> None:
    assert plan({}, {A: Seen(Phase.RUNNING)}, ROOMY, NOW) == (StopVm(A, "its file was removed"),)
    assert plan({}, {A: Seen(Phase.STOPPING)}, ROOMY, NOW) == ()
    assert plan({}, {A: Seen()}, ROOMY, NOW) == (ForgetVm(A, "its file was removed"),)


def test_without_autostart_only_the_operator_starts_it() -> None:
    quiet = Wanted(vm(A, autostart=False))

    assert plan({A: quiet}, {}, ROOMY, NOW) == ()
    assert plan({A: evolve(quiet, intent=Intent.RUN)}, {}, ROOMY, NOW) == (
        StartVm(A, "the operator started it"),
    )


def test_an_operators_stop_outlasts_autostart() -> None:
    stopped = Wanted(vm(A), intent=Intent.STOP)

    assert plan({A: stopped}, {}, ROOMY, NOW) == ()
    assert plan({A: stopped}, {A: Seen(Phase.RUNNING)}, ROOMY, NOW) == (
        StopVm(A, "the operator asked to stop it"),
    )


def test_a_kill_overtakes_a_stop_that_is_under_way_once() -> None:
    killed = {A: Wanted(vm(A), intent=Intent.KILL)}

    [action] = plan(killed, {A: Seen(Phase.STOPPING)}, ROOMY, NOW)
    assert isinstance(action, StopVm)
    assert action.hard
    assert plan(killed, {A: Seen(Phase.STOPPING, dying=True)}, ROOMY, NOW) == ()


def test_a_kill_overtakes_the_stop_of_a_removed_file_too() -> None:
    stopping = Seen(Phase.STOPPING, to_be_killed=True)

    assert plan({}, {A: stopping}, ROOMY, NOW) == (
        StopVm(A, "the operator asked to kill it", hard=True),
    )
    assert plan({}, {A: evolve(stopping, dying=True)}, ROOMY, NOW) == ()


def test_a_vm_waits_for_those_it_comes_after() -> None:
    wanted = {A: Wanted(vm(A, after=(B,))), B: Wanted(vm(B))}

    assert plan(wanted, {}, ROOMY, NOW) == (StartVm(B, "autostart"),)
    assert plan(wanted, {B: Seen(Phase.STARTING)}, ROOMY, NOW) == ()
    assert plan(wanted, {B: Seen(Phase.RUNNING)}, ROOMY, NOW) == (StartVm(A, "autostart"),)


def test_a_circle_of_afters_is_named_as_one() -> None:
    wanted = {A: Wanted(vm(A, after=(B,))), B: Wanted(vm(B, after=(A,)))}

    assert plan(wanted, {}, ROOMY, NOW) == ()
    assert "itself waits for a" in judge(A, wanted, {}, ROOMY, NOW).blocked


def test_waiting_for_a_vm_that_has_no_file_says_so() -> None:
    wanted = {A: Wanted(vm(A, after=(C,)))}

    assert judge(A, wanted, {}, ROOMY, NOW).blocked == "waiting for VM c, which has no file"


def test_memory_is_given_out_once() -> None:
    wanted = {name: Wanted(vm(name)) for name in (A, B, C)}

    actions = plan(wanted, {}, HostSeen(memory_mib=MiB(250), start_slots=9), NOW)

    assert [action.name for action in actions] == [A, B]


def test_huge_pages_are_not_counted_against_available_memory() -> None:
    wanted = {A: Wanted(evolve(vm(A), hugepages=True))}

    assert plan(wanted, {}, HostSeen(memory_mib=MiB(1)), NOW) == (StartVm(A, "autostart"),)


def test_a_hanging_start_frees_its_slot_in_time() -> None:
    wanted = {A: Wanted(vm(A)), B: Wanted(vm(B))}
    one_slot = HostSeen(start_slots=1)
    starting = {A: Seen(Phase.STARTING, phase_since=NOW)}

    assert plan(wanted, starting, one_slot, NOW + 1) == ()
    assert plan(wanted, starting, one_slot, NOW + 6) == (StartVm(B, "autostart"),)
    assert next_deadline(wanted, starting, NOW + 1) == NOW + 5


def test_a_crashed_vm_is_tried_again_at_its_time_and_not_before() -> None:
    wanted = {A: Wanted(vm(A))}
    seen = {A: Seen(retry_at=NOW + 3)}

    assert plan(wanted, seen, ROOMY, NOW) == ()
    assert next_deadline(wanted, seen, NOW) == NOW + 3
    assert plan(wanted, seen, ROOMY, NOW + 3) == (StartVm(A, "autostart"),)


def test_other_media_go_into_a_running_drive_and_another_number_of_drives_does_not() -> None:
    wanted = {A: Wanted(vm(A))}

    [action] = plan(wanted, {A: Seen(Phase.RUNNING, differs=("cdroms[0]",))}, ROOMY, NOW)
    assert isinstance(action, ChangeMedia)
    assert plan(wanted, {A: Seen(Phase.RUNNING, differs=("cdroms",))}, ROOMY, NOW) == ()


def test_gpus_come_to_a_vm_that_runs_and_is_to_run_on() -> None:
    changing = {A: Seen(Phase.RUNNING, gpus_can_change=True)}
    change = ChangeGpus(A, "its file asks for other GPUs")

    assert plan({A: Wanted(vm(A))}, changing, ROOMY, NOW) == (change,)
    stopped = plan({A: Wanted(vm(A), intent=Intent.STOP)}, changing, ROOMY, NOW)
    assert [type(action) for action in stopped] == [StopVm]


def test_while_a_qemu_runs_that_no_record_tells_of_nothing_of_its_vm_is_touched() -> None:
    unrecorded = Seen(unrecorded="QEMU 7 has the VM's lock", holds_devices=True, hoards=True)
    wanted, stopped = {A: Wanted(vm(A))}, {A: Wanted(vm(A), intent=Intent.STOP)}

    for wishes in (wanted, stopped, {}):
        assert plan(wishes, {A: unrecorded}, ROOMY, NOW) == ()
    verdict = judge(A, wanted, {A: unrecorded}, ROOMY, NOW)
    assert verdict.blocked == "QEMU 7 has the VM's lock"
    for failed in (False, True):
        state = show_state(verdict, unrecorded, faulty=False, failed=failed, now=NOW)
        assert state is State.WAITING


def test_only_what_a_running_vm_cannot_take_on_is_pending() -> None:
    keys = ("autostart", "cdroms", "cdroms[0]", "hooks.preStop[0]", "memory", "restart.burst")

    assert needs_restart(keys) == ("cdroms", "memory")


def test_a_faulty_file_shows_as_invalid_whatever_its_last_version_does() -> None:
    wanted = {A: Wanted(vm(A))}
    verdict = judge(A, wanted, {}, ROOMY, NOW)

    for phase in Phase:
        state = show_state(verdict, Seen(phase), faulty=True, failed=False, now=NOW)
        assert state is State.INVALID


# --- the specification ---------------------------------------------------------------------------

names = st.sampled_from([VmName(f"vm{n}") for n in range(6)])


@st.composite
def wanted_worlds(draw: st.DrawFn) -> dict[VmName, Wanted]:
    return {
        name: Wanted(
            vm(name, autostart=draw(st.booleans()), after=tuple(draw(st.sets(names, max_size=2)))),
            intent=draw(st.sampled_from(Intent)),
            halted=draw(st.sampled_from(["", "", "the guest powered off"])),
            failure=draw(st.sampled_from(["", "", "it crashed too often"])),
        )
        for name in draw(st.sets(names))
    }


seen_worlds = st.dictionaries(
    names,
    st.builds(
        Seen,
        phase=st.sampled_from(Phase),
        phase_since=st.floats(NOW - 10, NOW),
        dying=st.just(False),
        to_be_killed=st.booleans(),
        gpus_can_change=st.booleans(),
        differs=st.sets(st.sampled_from(["memory", "cdroms[0]", "stop.timeout"])).map(tuple),
        retry_at=st.none() | st.floats(NOW - 5, NOW + 5),
        awaits=st.sampled_from(["", "", "a device"]),
        unrecorded=st.sampled_from(["", "", "QEMU 7 has the VM's lock"]),
        holds_devices=st.booleans(),
        hoards=st.booleans(),
        releasing=st.booleans(),
    ),
)
hosts = st.builds(
    HostSeen,
    memory_mib=st.none() | st.integers(0, 700).map(MiB),
    start_slots=st.integers(0, 4),
)


@frozen
class World:
    wanted: dict[VmName, Wanted]
    seen: dict[VmName, Seen]


def carry_out(world: World, action: Action) -> World:
    """What the daemon does, with everything working at once."""
    wanted, seen = dict(world.wanted), dict(world.seen)
    match action:
        case StartVm(name):
            assert seen.get(name, Seen()).phase is Phase.DOWN
            seen[name] = Seen(Phase.STARTING, phase_since=NOW)
            if wanted[name].intent is Intent.RESTART:
                wanted[name] = evolve(wanted[name], intent=Intent.RUN)
        case StopVm(name, hard=hard):
            seen[name] = evolve(seen[name], phase=Phase.STOPPING, dying=hard)
        case ChangeMedia(name):
            seen[name] = evolve(seen[name], differs=needs_restart(seen[name].differs))
        case ChangeGpus(name):
            assert seen[name].phase is Phase.RUNNING
            seen[name] = evolve(seen[name], gpus_can_change=False)
        case ReleaseDevices(name):
            assert seen[name].phase is Phase.DOWN
            seen[name] = evolve(seen[name], holds_devices=False, hoards=False)
        case ForgetVm(name):
            assert name not in wanted
            del seen[name]
    return World(wanted, seen)


@given(wanted_worlds(), seen_worlds, hosts)
def test_one_pass_converges_and_the_second_plan_is_empty(
    wanted: dict[VmName, Wanted], seen: dict[VmName, Seen], host: HostSeen
) -> None:
    world = World(wanted, seen)
    actions = plan(world.wanted, world.seen, host, NOW)
    for action in actions:
        world = carry_out(world, action)
    taken = sum(wanted[a.name].vm.memory_mib for a in actions if isinstance(a, StartVm))
    left = host.memory_mib and MiB(host.memory_mib - taken)

    assert plan(world.wanted, world.seen, evolve(host, memory_mib=left), NOW) == ()


@given(wanted_worlds(), seen_worlds, hosts)
def test_no_vm_starts_that_is_up_unwanted_blocked_or_before_its_time(
    wanted: dict[VmName, Wanted], seen: dict[VmName, Seen], host: HostSeen
) -> None:
    for action in plan(wanted, seen, host, NOW):
        if not isinstance(action, StartVm):
            continue
        it, want = seen.get(action.name, Seen()), wanted[action.name]
        assert it.phase is Phase.DOWN
        assert want.intent not in (Intent.STOP, Intent.KILL)
        assert not want.failure
        assert not want.halted
        assert not it.awaits
        assert not it.releasing
        assert not it.unrecorded
        assert it.retry_at is None or it.retry_at <= NOW
        assert all(seen[other].phase is Phase.RUNNING for other in want.vm.after)


@given(wanted_worlds(), seen_worlds, hosts)
def test_nothing_wanted_is_forgotten_and_nothing_up_is_forgotten(
    wanted: dict[VmName, Wanted], seen: dict[VmName, Seen], host: HostSeen
) -> None:
    for action in plan(wanted, seen, host, NOW):
        if isinstance(action, ForgetVm):
            assert action.name not in wanted
            assert seen[action.name].phase is Phase.DOWN
            assert not seen[action.name].unrecorded


@given(wanted_worlds(), seen_worlds, hosts)
def test_devices_are_given_back_only_by_a_vm_that_is_down_and_stays_down(
    wanted: dict[VmName, Wanted], seen: dict[VmName, Seen], host: HostSeen
) -> None:
    for action in plan(wanted, seen, host, NOW):
        if isinstance(action, ReleaseDevices):
            assert seen[action.name].phase is Phase.DOWN
            assert not seen[action.name].unrecorded
            verdict, it = judge(action.name, wanted, seen, host, NOW), seen[action.name]
            assert not verdict.up or (it.hoards and verdict.blocked)


def test_what_a_vm_went_on_without_is_given_back_while_it_runs() -> None:
    wanted = {A: Wanted(vm(A))}
    running = Seen(Phase.RUNNING, holds_devices=True, left_over=True)

    (action,) = plan(wanted, {A: running}, ROOMY, NOW)

    assert isinstance(action, ReleaseDevices)
    assert plan(wanted, {A: evolve(running, releasing=True)}, ROOMY, NOW) == ()


def test_a_vm_that_lacks_a_device_keeps_no_other_from_those_who_wait() -> None:
    wanted = {A: Wanted(vm(A))}
    lacking = Seen(holds_devices=True, hoards=True, awaits="gpus[1]: the host has no GPU")

    (action,) = plan(wanted, {A: lacking}, ROOMY, NOW)

    assert isinstance(action, ReleaseDevices)
    assert "gpus[1]: the host has no GPU" in action.because


def test_a_crashed_vm_keeps_its_devices_until_it_is_tried_again() -> None:
    wanted = {A: Wanted(vm(A))}

    assert plan(wanted, {A: Seen(holds_devices=True, retry_at=NOW + 3)}, ROOMY, NOW) == ()


@given(wanted_worlds(), seen_worlds, hosts)
def test_stops_come_before_starts(
    wanted: dict[VmName, Wanted], seen: dict[VmName, Seen], host: HostSeen
) -> None:
    kinds = [type(action) for action in plan(wanted, seen, host, NOW)]
    order = {StopVm: 0, ReleaseDevices: 1, ForgetVm: 2, ChangeMedia: 3, ChangeGpus: 3, StartVm: 4}
    ranks = [order[kind] for kind in kinds]

    assert ranks == sorted(ranks)


@given(wanted_worlds(), seen_worlds, hosts)
def test_a_running_vm_is_stopped_only_for_the_operator_or_a_removed_file(
    wanted: dict[VmName, Wanted], seen: dict[VmName, Seen], host: HostSeen
) -> None:
    for action in plan(wanted, seen, host, NOW):
        if isinstance(action, StopVm) and action.name in wanted:
            assert wanted[action.name].intent in (Intent.STOP, Intent.KILL, Intent.RESTART)
