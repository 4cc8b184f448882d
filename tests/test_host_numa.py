"""NUMA nodes as sysfs shows them, and vCPUs planned onto them."""

import os
from pathlib import Path

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from arcsup.errors import Terminal, Transient
from arcsup.host.numa import NumaNode, observe_numa, parse_cpu_list
from arcsup.model import AUTO, Auto, Cpus, CpuSet, MiB, Vm
from arcsup.vm.pinning import choose_numa_node, pin_vcpus, plan_pinning
from tests.vm_samples import make_vm


def cpu_set(*cpus: int) -> CpuSet:
    return CpuSet(frozenset(cpus))


NODES = (
    NumaNode(0, cpu_set(0, 1, 2, 3), MiB(1000)),
    NumaNode(1, cpu_set(4, 5, 6, 7), MiB(1000)),
    NumaNode(2, cpu_set(), MiB(1000)),
    NumaNode(3, cpu_set(8), MiB(0)),
)
ALLOWED = cpu_set(*range(9))


def populate_node(sysfs: Path, number: int, cpulist: str, kib: int) -> None:
    folder = sysfs / f"devices/system/node/node{number}"
    folder.mkdir(parents=True)
    (folder / "cpulist").write_text(f"{cpulist}\n")
    (folder / "meminfo").write_text(
        f"Node {number} MemTotal:       {kib} kB\nNode {number} MemFree: 1 kB\n"
    )


def test_nodes_are_seen_in_order_with_cpus_and_memory(tmp_path: Path) -> None:
    populate_node(tmp_path, 10, "", 1024)
    populate_node(tmp_path, 2, "0-1,8", 2048)
    (tmp_path / "devices/system/node/online").write_text("2,10\n")

    assert observe_numa(tmp_path) == (
        NumaNode(2, cpu_set(0, 1, 8), MiB(2)),
        NumaNode(10, cpu_set(), MiB(1)),
    )


def test_a_kernel_without_numa_has_no_nodes(tmp_path: Path) -> None:
    assert observe_numa(tmp_path) == ()


def test_this_host_can_be_observed() -> None:
    for node in observe_numa(Path("/sys")):
        assert node.cpus or node.memory_mib


@given(st.frozensets(st.integers(0, 4095)))
def test_a_list_of_single_cpus_is_read_back(cpus: frozenset[int]) -> None:
    assert parse_cpu_list(",".join(map(str, sorted(cpus)))) == cpus


def pinned(pin: Auto | CpuSet | None, cores: int = 4) -> Vm:
    return evolve(make_vm("a"), cpus=Cpus(cores=cores, pin=pin))


def test_a_cpu_list_is_dealt_out_in_turn() -> None:
    plan = plan_pinning(pinned(cpu_set(5, 2)), NODES, ALLOWED, None)

    assert plan == {0: cpu_set(2), 1: cpu_set(5), 2: cpu_set(2), 3: cpu_set(5)}


def test_auto_is_every_cpu_of_the_node_that_is_allowed() -> None:
    plan = plan_pinning(pinned(AUTO, 2), NODES, cpu_set(0, 4, 5), 1)

    assert plan == {0: cpu_set(4, 5), 1: cpu_set(4, 5)}


@pytest.mark.parametrize("node", [None, 2, 9])
def test_auto_without_cpus_nearby_pins_nothing(node: int | None) -> None:
    assert plan_pinning(pinned(AUTO), NODES, ALLOWED, node) == {}


def test_no_pin_pins_nothing() -> None:
    assert plan_pinning(pinned(None), NODES, ALLOWED, 0) == {}


def test_cpus_that_are_not_there_are_named() -> None:
    with pytest.raises(Terminal, match="CPU 98, 99 is not on this host"):
        plan_pinning(pinned(cpu_set(0, 99, 98)), NODES, ALLOWED, None)


def test_memory_follows_the_gpu_or_the_file() -> None:
    vm = make_vm("a")

    assert choose_numa_node(vm, NODES, 1) == 1
    assert choose_numa_node(vm, NODES, None) is None
    assert choose_numa_node(vm, NODES, 3) is None
    assert choose_numa_node(vm, (), 0) is None
    assert choose_numa_node(evolve(vm, numa=2), NODES, 1) == 2
    assert choose_numa_node(evolve(vm, numa=None), NODES, 1) is None


@pytest.mark.parametrize("node", [3, 7])
def test_a_node_without_memory_cannot_be_asked_for(node: int) -> None:
    with pytest.raises(Terminal, match=f"no node {node}") as caught:
        choose_numa_node(evolve(make_vm("a"), numa=node), NODES, None)
    assert caught.value.hint == "it has: 0, 1, 2"


class Answers:
    """A QMP session that answers one thing."""

    def __init__(self, answer: object) -> None:
        self._answer = answer

    async def execute(self, command: str) -> object:
        assert command == "query-cpus-fast"
        return self._answer


@pytest.mark.parametrize(
    "answer",
    [[], {}, [{"cpu-index": 1, "thread-id": 1}], [7, {"cpu-index": [], "thread-id": 1}]],
)
async def test_a_vcpu_that_is_not_there_yet_is_tried_again(answer: object) -> None:
    with pytest.raises(Transient):
        await pin_vcpus(Answers(answer), os.getpid(), {0: cpu_set(0)})


async def test_cpus_that_the_kernel_refuses_are_named() -> None:
    with pytest.raises(Terminal, match="vCPU 0 cannot be pinned to CPU 4000"):
        await pin_vcpus(
            Answers([{"cpu-index": 0, "thread-id": os.getpid()}]), os.getpid(), {0: cpu_set(4000)}
        )


async def test_a_thread_of_another_program_is_not_pinned_whatever_qemu_says() -> None:
    before = os.sched_getaffinity(os.getppid())

    with pytest.raises(Transient):
        await pin_vcpus(
            Answers([{"cpu-index": 0, "thread-id": os.getppid()}]), os.getpid(), {0: cpu_set(0)}
        )

    assert os.sched_getaffinity(os.getppid()) == before
