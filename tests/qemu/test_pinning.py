"""Pinned vCPUs really are: the kernel says so of QEMU's threads."""

import os
from pathlib import Path

import pytest
from attrs import evolve

from arcsup.host.numa import observe_numa
from arcsup.model import AUTO, Cpus, CpuSet
from arcsup.vm.commandline import build_command_line
from arcsup.vm.pinning import allowed_cpus, pin_vcpus, plan_pinning
from arcsup.vm.sockets import listen_unix
from tests.qemu.test_commandline import SMALL, find_everything, running


def process_of(thread: int) -> int:
    """Return the process that a thread belongs to."""
    lines = Path(f"/proc/{thread}/status").read_text().splitlines()
    return int(next(it for it in lines if it.startswith("Tgid:")).split()[1])


async def test_each_vcpu_thread_runs_where_it_was_told(short_dir: Path) -> None:
    last = CpuSet(frozenset({max(allowed_cpus())}))
    vm = evolve(SMALL, cpus=Cpus(cores=3, pin=last))
    host = await find_everything(vm, short_dir, listen_unix)
    pinning = plan_pinning(vm, observe_numa(Path("/sys")), allowed_cpus(), None)
    async with running((*build_command_line(vm, host), "-S"), host.sockets) as qmp:
        vcpus = await qmp.execute("query-cpus-fast")
        await pin_vcpus(qmp, process_of(vcpus[0]["thread-id"]), pinning)
        names = {Path(f"/proc/{vcpu['thread-id']}/comm").read_text() for vcpu in vcpus}

        assert [os.sched_getaffinity(vcpu["thread-id"]) for vcpu in vcpus] == [set(last)] * 3
        assert names == {f"CPU {index}/TCG\n" for index in range(3)}


async def test_auto_uses_the_cpus_of_the_node(short_dir: Path) -> None:
    nodes = observe_numa(Path("/sys"))
    if not nodes or not nodes[0].cpus & allowed_cpus():
        pytest.skip("this host has no NUMA node with CPUs that we may use")
    vm = evolve(SMALL, cpus=Cpus(cores=1, pin=AUTO), numa=0)
    host = await find_everything(vm, short_dir, listen_unix)
    pinning = plan_pinning(vm, nodes, allowed_cpus(), nodes[0].id)
    async with running((*build_command_line(vm, host), "-S"), host.sockets) as qmp:
        (vcpu,) = await qmp.execute("query-cpus-fast")
        await pin_vcpus(qmp, process_of(vcpu["thread-id"]), pinning)

        assert os.sched_getaffinity(vcpu["thread-id"]) == nodes[0].cpus & allowed_cpus()
