"""What people are shown of a VM: its state, why, and the chain that `why` tells."""

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from attrs import evolve

from arcsup.devices import Backend
from arcsup.explain import explain
from arcsup.fleet import BadFile, View
from arcsup.host.owned import OwnedSlice
from arcsup.model import (
    ConditionType,
    ExitClass,
    GpuKind,
    GpuRequest,
    LastExit,
    MiB,
    State,
    Vm,
    VmName,
)
from arcsup.places import Places
from arcsup.plan.lifecycle import Phase
from arcsup.plan.plan import HostSeen, Intent, Seen, Wanted
from arcsup.show import in_words, show_bad_file, show_vm
from arcsup.vm.managed import ManagedVm
from arcsup.vm.process import ProcessId
from arcsup.vm.record import Failure, Record, Source
from arcsup.vm.strays import Stray

NAME = VmName("web")
FILE = "/etc/arcsup/vms/web.yaml"
PLACES = Places.default(system=True)
DOWN = Seen()
CRASH = LastExit(ExitClass.CRASH, None, 9, datetime(2026, 1, 1, tzinfo=UTC))


def managed(**record: Any) -> ManagedVm:
    vm = Vm(name=NAME, uuid=UUID(int=1))
    return ManagedVm(evolve(Record(NAME, Source(FILE, "", "d")), **record), vm)


def view(vm: ManagedVm, it: Seen = DOWN, intent: Intent = Intent.NONE) -> View:
    failure = vm.record.failure.because if vm.record.failure else ""
    wanted = Wanted(vm.vm, intent=intent, halted=vm.record.halted, failure=failure)
    return View({NAME: wanted}, {NAME: it}, HostSeen(), time.monotonic())


@pytest.mark.parametrize(
    ("it", "record", "intent", "state", "reason"),
    [
        (Seen(Phase.RUNNING), {}, Intent.NONE, State.RUNNING, ""),
        (
            Seen(Phase.RUNNING, differs=("memory", "stop.timeout")),
            {},
            Intent.NONE,
            State.RUNNING,
            "its file has changed (memory): restart it",
        ),
        (Seen(), {}, Intent.STOP, State.STOPPED, "stopped by the operator"),
        (
            Seen(),
            {"halted": "the guest powered off"},
            Intent.NONE,
            State.STOPPED,
            "the guest powered off",
        ),
        (
            Seen(),
            {"failure": Failure("it crashed too often", "d"), "last_exit": CRASH},
            Intent.NONE,
            State.FAILED,
            "it crashed too often",
        ),
        (
            Seen(awaits="gpus[0]: no card"),
            {},
            Intent.NONE,
            State.WAITING,
            "waiting for gpus[0]: no card",
        ),
    ],
)
def test_the_reason_tells_why_it_is_as_it_is(
    it: Seen, record: dict[str, Any], intent: Intent, state: State, reason: str
) -> None:
    vm = managed(**record)

    shown = show_vm(vm, view(vm, it, intent), PLACES)

    assert (shown.state, shown.reason) == (state, reason)


def test_backoff_says_how_it_ended_and_when_it_is_tried_again() -> None:
    vm = managed(last_exit=CRASH)
    world = view(vm)
    world = evolve(world, seen={NAME: Seen(retry_at=world.now + 5)})

    before = datetime.now(UTC)
    shown = show_vm(vm, world, PLACES)
    after = datetime.now(UTC)

    assert shown.state is State.BACKOFF
    assert shown.reason == "crash (signal 9); next try in 5.0 s"
    assert shown.next_try is not None
    # The times are of different clocks, and rounded.
    assert before + timedelta(seconds=4.9) < shown.next_try < after + timedelta(seconds=5.1)


def test_a_faulty_file_is_told_before_everything_else_and_that_its_last_version_runs_on() -> None:
    vm = managed()
    vm.faults = (f"{FILE}:1:1: memori: unknown key", f"{FILE}:2:1: cpu: unknown key")
    vm.phase = Phase.RUNNING

    shown = show_vm(vm, view(vm, Seen(Phase.RUNNING)), PLACES)

    assert shown.state is State.INVALID
    assert shown.reason == (
        f"{FILE}:1:1: memori: unknown key (and 1 more); its last good version runs on"
    )


def test_a_file_that_never_was_a_vm_is_listed_with_its_fault() -> None:
    bad = BadFile(NAME, Path(FILE), (f"{FILE}:1:1: is empty",), datetime.now(UTC))

    shown = show_bad_file(bad)

    assert (shown.state, shown.reason, shown.pid) == (State.INVALID, f"{FILE}:1:1: is empty", None)


def test_the_slices_that_a_vm_has_are_shown_with_what_was_asked_for() -> None:
    owned = OwnedSlice(Backend.SRIOV, 0, "0000:41:00.4", "0000:41:00.0", "0000:41:00.4", None, "/x")
    vm = managed(slices=(evolve(owned, vram_mib=MiB(64)),))
    vm.asked = evolve(vm.asked, gpus=(GpuRequest(GpuKind.VF),))

    [gpu] = show_vm(vm, view(vm), PLACES).gpus

    assert (gpu.kind, gpu.id, gpu.vram_mib) == (GpuKind.VF, "0000:41:00.4", 64)


def test_an_end_in_words_has_its_class_its_status_and_its_detail() -> None:
    assert in_words(CRASH) == "crash (signal 9)"
    assert in_words(evolve(CRASH, signal=None, code=1, detail="no disk")) == (
        "crash (exit code 1): no disk"
    )
    assert in_words(None) == "it ended"


def test_a_running_vm_and_one_that_was_stopped_are_as_desired_and_a_failed_one_is_not() -> None:
    running = managed()
    failed = managed(failure=Failure("it crashed too often", "d"), last_exit=CRASH)
    cases = (
        (running, view(running, Seen(Phase.RUNNING)), True),
        (running, view(running, Seen(), Intent.STOP), True),
        (running, view(running, Seen(Phase.RUNNING, differs=("memory",))), False),
        (failed, view(failed), False),
    )
    for vm, world, as_desired in cases:
        why = explain(show_vm(vm, world, PLACES), {NAME: vm}, world, PLACES)
        assert why.as_desired is as_desired


def test_a_vm_of_which_something_is_not_so_is_not_as_desired_and_says_what() -> None:
    vm = managed()
    world = view(vm, Seen(Phase.RUNNING))
    vm.set_condition(
        ConditionType.MONITOR_ANSWERS, "Silent", "QEMU's monitor is silent", status=False
    )
    vm.set_condition(ConditionType.LIMITED, "NoControlGroup", "no control group", status=False)

    shown = show_vm(vm, world, PLACES)
    why = explain(shown, {NAME: vm}, world, PLACES)

    assert (shown.state, shown.reason) == (State.RUNNING, "QEMU's monitor is silent (and 1 more)")
    assert not why.as_desired
    assert [link.what for link in why.chain] == ["web is running", "MonitorAnswers", "Limited"]


@pytest.mark.parametrize("phase", list(Phase))
@pytest.mark.parametrize("type_", list(ConditionType))
def test_whatever_is_wrong_with_a_vm_it_is_not_as_desired_and_says_what(
    type_: ConditionType, phase: Phase
) -> None:
    vm = managed()
    intent = Intent.STOP if phase in {Phase.DOWN, Phase.STOPPING} else Intent.NONE
    world = view(vm, Seen(phase), intent)
    # Its sign is in the name: of STUCK alone one hopes that it is not so.
    wrong = type_ is ConditionType.STUCK
    vm.set_condition(type_, "Wrong", "something is wrong", status=wrong)

    shown = show_vm(vm, world, PLACES)
    why = explain(shown, {NAME: vm}, world, PLACES)

    assert not why.as_desired
    assert (type_.value, "something is wrong") in [(it.what, it.because) for it in why.chain]
    if phase is not Phase.DOWN:
        assert "something is wrong" in shown.reason

    vm.set_condition(type_, "Well", "all is well", status=not wrong)
    shown = show_vm(vm, world, PLACES)
    why = explain(shown, {NAME: vm}, world, PLACES)
    assert why.as_desired is (phase in {Phase.DOWN, Phase.RUNNING})
    assert "all is well" not in [it.because for it in why.chain]


def test_a_vm_that_is_to_be_down_and_is_still_stopping_is_not_as_desired() -> None:
    vm = managed()
    world = view(vm, Seen(Phase.STOPPING), Intent.STOP)

    assert not explain(show_vm(vm, world, PLACES), {NAME: vm}, world, PLACES).as_desired


def test_the_chain_of_a_failed_vm_leads_to_its_end_and_to_what_can_be_done() -> None:
    vm = managed(failure=Failure("it crashed too often", "d"), last_exit=CRASH)
    world = view(vm)

    first, last = explain(show_vm(vm, world, PLACES), {NAME: vm}, world, PLACES).chain

    assert first.what == "web is failed"
    assert first.next_action == f"arcsup clear web, or change {FILE}"
    assert (last.what, last.because) == ("its QEMU ended", "crash (signal 9)")


@pytest.mark.parametrize("has_file", [True, False])
def test_a_qemu_that_no_record_tells_of_is_told_with_what_to_do(has_file: bool) -> None:
    vm = managed(failure=Failure("it crashed too often", "d"))
    vm.unrecorded = Stray(ProcessId("boot", 7, 1), "process 7 (qemu)", True, since=CRASH.at)
    world = view(vm, Seen(unrecorded=str(vm.unrecorded)))
    world = world if has_file else evolve(world, wanted={})

    shown = show_vm(vm, world, PLACES)
    why = explain(shown, {NAME: vm}, world, PLACES)

    assert (shown.state, shown.pid) == (State.WAITING, 7)
    assert "QEMU 7 has the VM's lock" in shown.reason
    assert "`arcsup adopt web`" in shown.reason
    assert not why.as_desired
    head, link = why.chain[:2]
    assert head.next_action == ""
    assert (link.what, link.since) == ("process 7 (qemu) is in the way", CRASH.at)
    assert "`arcsup stop web` or `kill` ends it" in link.next_action


def test_the_chain_of_a_vm_that_never_had_a_qemu_says_its_cause_once() -> None:
    unstarted = LastExit(ExitClass.START_FAILED, None, None, CRASH.at, "no bridge br0")
    vm = managed(failure=Failure("no bridge br0", "d"), last_exit=unstarted)
    world = view(vm)

    [only] = explain(show_vm(vm, world, PLACES), {NAME: vm}, world, PLACES).chain

    assert only.because == "no bridge br0"


def test_the_chain_follows_after_to_the_vm_that_holds_up_the_others() -> None:
    database = VmName("database")
    web, other = managed(), managed(failure=Failure("no disk", "d"))
    web.asked = evolve(web.asked, after=(database,))
    other.asked = evolve(other.asked, name=database)
    world = View(
        {NAME: Wanted(web.vm), database: Wanted(other.vm, failure="no disk")},
        {NAME: Seen(), database: Seen()},
        HostSeen(),
        time.monotonic(),
    )

    why = explain(show_vm(web, world, PLACES), {NAME: web, database: other}, world, PLACES)

    assert [link.what for link in why.chain] == ["web is waiting", "database is failed"]
    assert why.chain[0].because == "waiting for VM database to run"
    assert why.chain[1].because == "no disk"
