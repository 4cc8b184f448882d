"""A monitor that does not answer is told of, and is not the only way to learn of a guest's end."""

import os
from pathlib import Path

import pytest
from qemu.qmp import ConnectError

from arcsup.model import ConditionType, VmName
from arcsup.plan.lifecycle import Evidence, Step
from arcsup.vm import monitor, supervise
from arcsup.vm.managed import ManagedVm, StopOrder
from arcsup.vm.process import Process, ProcessId
from arcsup.vm.qmp import check_peer
from arcsup.vm.second_monitor import SECOND_MONITOR
from arcsup.vm.stop import Rung, RungTaken
from tests.people_monitor import PeoplesMonitor
from tests.small_host import BOOT, SmallHost, small_host_with_web

RAN = Evidence(was_ready=True)


@pytest.fixture
async def host(tmp_path: Path) -> SmallHost:
    """A host with the VM web, which is planned."""
    return await small_host_with_web(tmp_path)


@pytest.fixture
def vm(host: SmallHost) -> ManagedVm:
    """A VM that runs; its QEMU is this process."""
    vm = host.fleet.vms[VmName("web")]
    supervise.begin(vm, "a test")
    vm.step(Step.READY)
    vm.evidence = Evidence(was_ready=True)
    vm.process = Process(ProcessId(BOOT, os.getpid(), 1), -1)
    host.places.run_of(vm.name).mkdir(parents=True)
    return vm


@pytest.mark.parametrize("status", ["shutdown", "guest-panicked"])
async def test_a_guest_that_ended_while_the_monitor_is_silent_is_noticed_by_the_other_one(
    host: SmallHost, vm: ManagedVm, status: str
) -> None:
    people = PeoplesMonitor(host.places.run_of(vm.name) / SECOND_MONITOR, status)

    async with people.serving():
        await monitor._look_elsewhere(vm, host.fleet.workshop)

    assert people.asked == ["query-status", "quit"]
    assert vm.evidence.found_shut_down is (status == "shutdown")
    assert vm.evidence.panicked is (status == "guest-panicked")
    assert host.told == ["guest-ended"]


async def test_a_guest_that_runs_on_is_left_alone_by_the_other_monitor(
    host: SmallHost, vm: ManagedVm
) -> None:
    people = PeoplesMonitor(host.places.run_of(vm.name) / SECOND_MONITOR)

    async with people.serving():
        await monitor._look_elsewhere(vm, host.fleet.workshop)

    assert people.asked == ["query-status"]
    assert host.told == []


async def test_a_silent_monitor_is_told_once_and_so_is_its_return(
    host: SmallHost, vm: ManagedVm
) -> None:
    monitor._says_nothing(vm, host.fleet.workshop, "no answer")
    monitor._says_nothing(vm, host.fleet.workshop, "no answer")
    silent = vm.conditions[ConditionType.MONITOR_ANSWERS]

    monitor._says_something(vm, host.fleet.workshop)

    assert (silent.status, vm.conditions[ConditionType.MONITOR_ANSWERS].status) == (False, True)
    assert host.told == ["monitor-silent", "monitor-answers"]


@pytest.mark.parametrize(
    ("peer", "who"), [(4243, "process 4243"), (0, "a process of another PID namespace")]
)
def test_a_monitor_that_somebody_else_serves_is_refused_in_words(peer: int, who: str) -> None:
    with pytest.raises(ConnectError, match=f"{who} serves it, not QEMU 4242$"):
        check_peer(peer, 4242)


@pytest.mark.parametrize(
    ("rungs", "evidence", "forced"),
    [
        ([Rung.POWER_BUTTON], RAN, False),
        ([Rung.POWER_BUTTON, Rung.QUIT], RAN, True),
        ([Rung.TERMINATE], RAN, True),
        ([Rung.QUIT], Evidence(was_ready=True, found_shut_down=True), False),
        ([Rung.QUIT], Evidence(was_ready=False), False),
    ],
)
async def test_a_stop_that_had_to_pull_the_plug_says_so(
    host: SmallHost,
    vm: ManagedVm,
    rungs: list[Rung],
    evidence: Evidence,
    forced: bool,
) -> None:
    vm.order = StopOrder("the operator asked to stop it")
    vm.evidence = evidence
    vm.stop_steps = tuple(RungTaken(it, 1.0, enough=it is rungs[-1]) for it in rungs)

    assert supervise._tell_forced(vm, host.fleet.workshop) is forced
    assert host.told == ["plug-pulled"] * forced
