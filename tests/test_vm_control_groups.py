"""A VM and its control group: put in once, told when it cannot be, asked about the end."""

import os
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
from attrs import define, evolve, field

from arcsup.errors import Transient
from arcsup.host.cgroups import Limits
from arcsup.model import ConditionType
from arcsup.vm import control_groups
from arcsup.vm.control_groups import enclose, find_limit_reached
from arcsup.vm.managed import ManagedVm, StopOrder, Workshop
from arcsup.vm.process import ProcessEnd, ProcessId, read_start_time
from arcsup.vm.record import Launch, OwnedProcess, Record, Source
from tests.small_host import BOOT, SmallHost
from tests.vm_samples import make_vm

LIMITS = Limits(3 * 2**30, 1028)
GROUP = "/machine.slice/arcsup-web-1.scope"
KILLED = ProcessEnd(signal=signal.SIGKILL)


@define
class Groups:
    """A way to control groups that takes note, or refuses."""

    refusal: str = ""
    enclosed: list[tuple[str, list[int], Limits]] = field(factory=list)

    async def enclose(self, name: str, pids: Sequence[int], limits: Limits) -> str:
        if self.refusal:
            raise Transient(self.refusal)
        self.enclosed.append((name, list(pids), limits))
        return GROUP


def process_of(role: str, pid: int, start_time: int | None = None) -> OwnedProcess:
    return OwnedProcess(role, ProcessId(BOOT, pid, start_time or read_start_time(pid) or 1))


@pytest.fixture
def groups() -> Groups:
    return Groups()


@pytest.fixture
def host(tmp_path: Path) -> SmallHost:
    return SmallHost(tmp_path)


@pytest.fixture
def workshop(host: SmallHost, groups: Groups) -> Workshop:
    return evolve(host.fleet.workshop, control_groups=groups)


@pytest.fixture
def vm() -> ManagedVm:
    """Return a VM whose QEMU is this process, one helper its parent; another one has ended."""
    processes = (
        process_of("tpm", os.getppid()),
        process_of("virtiofs0", os.getpid(), start_time=1),
        process_of("qemu", os.getpid()),
    )
    launch = Launch(BOOT, "{}", processes=processes, limits=LIMITS)
    asked = make_vm("web")
    return ManagedVm(Record(asked.name, Source("web.yaml", "", ""), launch=launch), asked)


def group_of(vm: ManagedVm) -> str:
    assert vm.record.launch is not None
    return vm.record.launch.cgroup


async def test_a_vm_is_put_into_its_group_once_and_that_is_kept(
    vm: ManagedVm, workshop: Workshop, groups: Groups
) -> None:
    await enclose(vm, workshop)
    await enclose(vm, workshop)

    assert groups.enclosed == [("web", [os.getpid(), os.getppid()], LIMITS)]
    assert group_of(vm) == GROUP
    assert workshop.records.known[vm.name] == vm.record
    assert vm.enclosed.is_set()


async def test_a_vm_that_cannot_have_one_runs_and_says_why(
    vm: ManagedVm, workshop: Workshop, groups: Groups, host: SmallHost
) -> None:
    groups.refusal = "systemd says: no"

    await enclose(vm, workshop)

    assert group_of(vm) == ""
    assert vm.conditions[ConditionType.LIMITED].message == "systemd says: no"
    assert host.told == ["not-limited"]
    assert vm.enclosed.is_set()


async def test_where_there_are_no_groups_nothing_is_said(
    vm: ManagedVm, workshop: Workshop, host: SmallHost
) -> None:
    await enclose(vm, evolve(workshop, control_groups=None))
    assert vm.enclosed.is_set()
    assert host.told == []
    assert not vm.conditions


async def test_a_kill_at_the_limit_is_known_from_the_kernel_log(
    vm: ManagedVm, workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def log_of(pid: int, group: str) -> str:
        where = f"oom_memcg={group},task_memcg={group},task=qemu,pid={pid},uid=9"
        return f"6,1,2,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=x,{where}\n"

    await enclose(vm, workshop)
    said = f"the kernel killed it at the memory limit of its control group {GROUP}"
    for pid, group, words in (
        (os.getpid(), GROUP, said),
        (os.getpid(), "/machine.slice/arcsup-web-2.scope", ""),
        (os.getppid(), GROUP, ""),
    ):
        log = log_of(pid, group)
        monkeypatch.setattr(control_groups, "read_kernel_log", lambda log=log: log)
        assert await find_limit_reached(vm, KILLED) == words
    monkeypatch.setattr(control_groups, "read_kernel_log", lambda: log_of(os.getpid(), GROUP))
    # Of a QEMU that an earlier daemon started nobody knows how it ended.
    assert await find_limit_reached(vm, ProcessEnd()) == said
    assert await find_limit_reached(vm, ProcessEnd(code=1)) == ""
    vm.order = StopOrder("the operator asked to kill it", hard=True)
    assert await find_limit_reached(vm, KILLED) == ""
