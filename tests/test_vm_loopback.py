"""Which VMs are kept from the host's loopback, and where it is told that one is not."""

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from attrs import evolve

from arcsup.model import Forward, Network, NetworkType, QemuOptions, Vm
from arcsup.vm import loopback
from arcsup.vm.control_groups import belongs_in_group_first, enclose
from arcsup.vm.loopback import CONDITION, explain_refusal, guard_loopback
from arcsup.vm.managed import ManagedVm, Workshop
from arcsup.vm.process import ProcessId, read_start_time
from arcsup.vm.record import Launch, OwnedProcess, Record, Source
from arcsup.vm.resources import Needs
from arcsup.vm.tpm import HelperCommand
from tests.small_host import BOOT, SmallHost
from tests.vm_samples import find_resources, make_vm

USER = Network()
BRIDGE = Network(NetworkType.BRIDGE, bridge="br0")
OPEN = Network(host_loopback=True)
GROUP = "/machine.slice/arcsup-web-1.scope"


@pytest.fixture
def host(tmp_path: Path) -> SmallHost:
    return SmallHost(tmp_path)


@pytest.fixture
def workshop(host: SmallHost) -> Workshop:
    """Return the workshop of the system's daemon."""
    workshop = host.fleet.workshop
    return evolve(workshop, places=replace(workshop.places, system=True))


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the groups that were kept from the loopback."""
    groups: list[str] = []
    monkeypatch.setattr(loopback, "close_loopback", groups.append)
    return groups


def vm_with(*networks: Network) -> Vm:
    return evolve(make_vm("web"), networks=networks)


def running(vm: Vm, group: str = GROUP) -> ManagedVm:
    """Return a VM whose QEMU is this process."""
    pid = os.getpid()
    qemu = OwnedProcess("qemu", ProcessId(BOOT, pid, read_start_time(pid) or 1))
    launch = Launch(BOOT, "{}", processes=(qemu,), cgroup=group)
    managed = ManagedVm(Record(vm.name, Source("web.yaml", "", ""), launch=launch), vm)
    managed.running = vm
    return managed


@pytest.mark.parametrize(
    ("networks", "groups"),
    [
        ((USER,), [GROUP]),
        ((BRIDGE, USER), [GROUP]),
        ((), []),
        ((BRIDGE,), []),
        ((OPEN,), []),
        ((USER, OPEN), []),
    ],
)
async def test_vms_with_qemus_own_network_are_kept_from_it_unless_they_ask(
    networks: tuple[Network, ...], groups: list[str], workshop: Workshop, closed: list[str]
) -> None:
    await guard_loopback(running(vm_with(*networks)), workshop)

    assert closed == groups


async def test_where_it_is_closed_nothing_is_told(
    workshop: Workshop, host: SmallHost, closed: list[str]
) -> None:
    vm = running(vm_with(USER))

    await guard_loopback(vm, workshop)

    assert not vm.conditions
    assert host.told == []


@pytest.mark.parametrize(
    ("network", "group", "system", "reason"),
    [
        (OPEN, GROUP, True, "AskedFor"),
        (USER, GROUP, False, "NotRoot"),
        (USER, "", True, "NoControlGroup"),
    ],
)
async def test_where_it_is_open_that_is_shown_and_the_vm_is_well(
    network: Network,
    group: str,
    system: bool,
    reason: str,
    workshop: Workshop,
    host: SmallHost,
    closed: list[str],
) -> None:
    vm = running(vm_with(network), group)

    await guard_loopback(vm, evolve(workshop, places=replace(workshop.places, system=system)))

    assert (vm.conditions[CONDITION].reason, vm.conditions[CONDITION].status) == (reason, True)
    assert "loopback" in vm.conditions[CONDITION].message
    assert host.told == []
    assert closed == []


def refuse(_: str) -> None:
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


async def test_a_kernel_that_refuses_is_told_while_qemu_runs(
    workshop: Workshop, host: SmallHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loopback, "close_loopback", refuse)
    ended = running(vm_with(USER))
    assert ended.record.launch is not None
    ended.record = evolve(ended.record, launch=evolve(ended.record.launch, processes=()))
    await guard_loopback(ended, workshop)
    assert not ended.conditions
    assert host.told == []

    vm = running(vm_with(USER))
    await guard_loopback(vm, workshop)

    assert vm.conditions[CONDITION].reason == "NoFilter"
    assert vm.conditions[CONDITION].message.endswith(": Operation not permitted")
    assert host.told == ["loopback-open"]


@pytest.mark.parametrize(
    ("change", "first"),
    [
        (lambda vm: vm, False),
        (lambda vm: evolve(vm, networks=(Network(forwards=(Forward("udp", "", 1, 1),)),)), True),
        (lambda vm: evolve(vm, qemu=QemuOptions(args=("-S",))), True),
    ],
)
def test_qemus_that_make_sockets_as_they_begin_are_put_into_their_group_first(
    change: Callable[[Vm], Vm], first: bool
) -> None:
    vm = change(vm_with(USER))

    assert belongs_in_group_first(Needs(vm, find_resources(vm), ())) is first
    helper = HelperCommand("tpm", ("swtpm",))
    assert belongs_in_group_first(Needs(vm, find_resources(vm), (helper,)))


def test_a_qemu_whose_arguments_were_refused_the_loopback_says_what_to_do() -> None:
    words = "-drive nbd://localhost: Failed to connect: Operation not permitted"
    vm = evolve(vm_with(USER), qemu=QemuOptions(args=("-drive", "file=nbd://localhost")))

    assert explain_refusal(vm, words).startswith(words)
    assert "hostLoopback: true" in explain_refusal(vm, words)
    assert explain_refusal(vm, "no memory") == "no memory"
    for other in (vm_with(USER), evolve(vm, networks=(OPEN,)), evolve(vm, networks=())):
        assert explain_refusal(other, words) == words


async def test_it_is_closed_before_the_guest_may_run(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm = running(vm_with(USER))
    seen: list[bool] = []
    monkeypatch.setattr(loopback, "close_loopback", lambda _: seen.append(vm.enclosed.is_set()))

    await enclose(vm, workshop)

    assert seen == [False]
    assert vm.enclosed.is_set()
