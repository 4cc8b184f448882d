"""A control group for each VM: chosen once, filled at each start, asked about each end.

Under systemd that is a scope, which systemd itself takes away with its last program. Elsewhere it
is a folder below the daemon's own group, where that has been given to it.
"""

import logging
import signal

import trio
from attrs import evolve

from arcsup.errors import Transient
from arcsup.host.cgroups import (
    ControlGroups,
    find_group,
    has_hit_limit,
    join_group,
    prepare_folders,
)
from arcsup.host.kmsg import parse_limit_kills, read_kernel_log
from arcsup.host.scopes import find_scopes
from arcsup.model import ConditionType
from arcsup.vm.loopback import guard_loopback
from arcsup.vm.managed import ManagedVm, Workshop
from arcsup.vm.process import ProcessEnd, read_start_time
from arcsup.vm.record import Launch
from arcsup.vm.resources import Needs

logger = logging.getLogger(__name__)

CONDITION = ConditionType.LIMITED


def choose_control_groups(*, system: bool) -> ControlGroups | None:
    """Return how this daemon's VMs get control groups, None where they cannot; says so once."""
    scopes = find_scopes(system=system)
    if scopes is not None:
        return scopes
    try:
        group = find_group()
        if group is None:
            raise Transient("there are no control groups of the second version")
        return prepare_folders(group)
    except Transient as error:
        what = ", and their guests reach the host's loopback" if system else ""
        logger.warning("VMs have no limits of memory and tasks%s: %s", what, error.message)
        return None


async def enclose(vm: ManagedVm, workshop: Workshop) -> None:
    """Put a VM's programs into a group of their own, unless they are in one; set ``vm.enclosed``.

    There the kernel keeps them from the host's loopback too. Where either fails the VM runs
    without: it is told, and shown as a condition.
    """
    launch = vm.record.launch
    if launch is not None and not launch.cgroup and launch.limits is not None:
        groups, pids = workshop.control_groups, _find_pids(launch)
        if groups is not None and pids:
            try:
                group = await groups.enclose(vm.name, pids, launch.limits)
            except Transient as error:
                vm.set_condition(CONDITION, "NoControlGroup", error.message, status=False)
                workshop.tell(vm.name, "not-limited", f"it has no limits: {error.message}")
            else:
                await _keep(vm, workshop, group)
    await guard_loopback(vm, workshop)
    vm.enclosed.set()


def belongs_in_group_first(needs: Needs) -> bool:
    """Tell whether a VM's programs must be in their group before they begin, which takes time.

    Helpers fork, and VFIO has the guest's memory at once. A socket is for ever of the group in
    which it was made: those of forwards are made as QEMU begins, and what a guest sends from a
    forwarded port goes out there; so may those be that ``qemu.args`` ask for.
    """
    forwards = any(network.forwards for network in needs.vm.networks)
    return bool(needs.helpers or needs.resources.slices or needs.vm.qemu.args or forwards)


def _find_pids(launch: Launch) -> list[int]:
    """Return the programs that still run, QEMU first; none without it."""
    running = {
        owned.role: owned.identity.pid
        for owned in launch.processes
        if read_start_time(owned.identity.pid) == owned.identity.start_time
    }
    qemu = running.pop("qemu", None)
    return [] if qemu is None else [qemu, *running.values()]


async def _keep(vm: ManagedVm, workshop: Workshop, group: str) -> None:
    if vm.record.launch is not None:
        await vm.save(workshop, launch=evolve(vm.record.launch, cgroup=group))


def admit(vm: ManagedVm, pid: int) -> None:
    """Put a program that was started later into the VM's group, if it has one."""
    launch = vm.record.launch
    if launch is None or not launch.cgroup:
        return
    try:
        join_group(launch.cgroup, pid)
    except OSError as error:
        logger.warning("process %d is not in its control group: %s", pid, error.strerror)


async def find_limit_reached(vm: ManagedVm, end: ProcessEnd) -> str:
    """Return in words that the kernel killed QEMU at its own limit, "" if it did not.

    systemd may have taken the group away already; then the kernel log knows.
    """
    launch = vm.record.launch
    was_killed = end.signal == signal.SIGKILL or end == ProcessEnd()
    if launch is None or not launch.cgroup or vm.order is not None or not was_killed:
        return ""
    if not has_hit_limit(launch.cgroup):
        log = await trio.to_thread.run_sync(read_kernel_log)
        pids = {owned.identity.pid for owned in launch.processes if owned.role == "qemu"}
        if not pids & parse_limit_kills(log, launch.cgroup):
            return ""
    return f"the kernel killed it at the memory limit of its control group {launch.cgroup}"
