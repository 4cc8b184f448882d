"""Virtual CPUs on chosen CPUs of the host.

QEMU tells its vCPU threads over QMP; the affinity is set from outside, so its own sandbox may
forbid that (QEMU's qapi/machine.json, query-cpus-fast; sched_setaffinity(2)).
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from arcsup.errors import Terminal, Transient
from arcsup.host.numa import NumaNode
from arcsup.model import Auto, CpuSet, Vm


class QmpMonitor(Protocol):
    """What is needed of a QMP session."""

    async def execute(self, command: str) -> object:
        """Run a command and return its ``return`` value."""
        ...


def choose_numa_node(vm: Vm, nodes: tuple[NumaNode, ...], gpu_node: int | None) -> int | None:
    """Return the node to bind a VM's memory to; None for no binding.

    ``gpu_node`` is the node of the VM's GPU, None where it has none or the kernel does not know.

    Raises:
        Terminal: the VM's file names a node that the host has not, or that has no memory.
    """
    if vm.numa is None:
        return None
    node = gpu_node if isinstance(vm.numa, Auto) else vm.numa
    with_memory = {known.id for known in nodes if known.memory_mib}
    if node in with_memory or node is None:
        return node
    if isinstance(vm.numa, Auto):
        return None
    there = ", ".join(str(known) for known in sorted(with_memory)) or "none"
    raise Terminal(f"numa: the host has no node {node} with memory", hint=f"it has: {there}")


def plan_pinning(
    vm: Vm, nodes: tuple[NumaNode, ...], allowed: CpuSet, node: int | None
) -> Mapping[int, CpuSet]:
    """Return on which CPUs each vCPU (by index) may run; vCPUs that are not in it run anywhere.

    ``allowed`` are the CPUs that this host has and lets us use; ``node`` is what
    ``choose_numa_node`` said.

    Raises:
        Terminal: the file names CPUs that are not there.
    """
    pin = vm.cpus.pin
    if pin is None:
        return {}
    if isinstance(pin, Auto):
        near = next((known.cpus & allowed for known in nodes if known.id == node), frozenset())
        return dict.fromkeys(range(vm.cpus.total), CpuSet(near)) if near else {}
    missing = sorted(pin - allowed)
    if missing:
        listed = ", ".join(str(cpu) for cpu in missing)
        raise Terminal(
            f"cpus.pin: CPU {listed} is not on this host, or not allowed to us",
            hint="lscpu shows the CPUs; taskset -p $$ the allowed ones",
        )
    cpus = sorted(pin)
    return {index: CpuSet(frozenset({cpus[index % len(cpus)]})) for index in range(vm.cpus.total)}


def allowed_cpus() -> CpuSet:
    """Return the CPUs that this process may use: its cpuset and its affinity in one."""
    return CpuSet(frozenset(os.sched_getaffinity(0)))


async def pin_vcpus(qmp: QmpMonitor, pid: int, pinning: Mapping[int, CpuSet]) -> None:
    """Set the affinity of the vCPU threads of the QEMU that is process ``pid``.

    Raises:
        Transient: a thread is not (or no longer) there.
        Terminal: the kernel refuses the CPUs (another cpuset) or refuses us.
    """
    if not pinning:
        return
    threads = _vcpu_threads(await qmp.execute("query-cpus-fast"))
    for index, cpus in pinning.items():
        thread = threads.get(index)
        # A thread of another program is none of its, whatever it says.
        if thread is None or not Path(f"/proc/{pid}/task/{thread}").exists():
            raise Transient(f"QEMU has no vCPU {index} yet")
        try:
            os.sched_setaffinity(thread, cpus)
        except ProcessLookupError:
            raise Transient(f"the thread of vCPU {index} has ended") from None
        except OSError as error:
            listed = ", ".join(str(cpu) for cpu in sorted(cpus))
            raise Terminal(
                f"vCPU {index} cannot be pinned to CPU {listed}: {error.strerror}",
                hint="check cpus.pin against the cpuset of the VM's unit",
            ) from error


def _vcpu_threads(answer: object) -> dict[int, int]:
    """Return thread ids by vCPU index from the answer to query-cpus-fast."""
    if not isinstance(answer, list):
        raise Transient("QEMU did not list its vCPUs")
    return {
        cpu["cpu-index"]: cpu["thread-id"]
        for cpu in answer
        if isinstance(cpu, dict)
        and isinstance(cpu.get("cpu-index"), int)
        and isinstance(cpu.get("thread-id"), int)
    }
