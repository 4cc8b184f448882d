"""A VM as ``list`` and ``status`` show it: values of the fleet turned into values for people."""

from datetime import UTC, datetime, timedelta

from arcsup.fleet import BadFile, View
from arcsup.model import (
    CgroupInUse,
    GpuKind,
    LastExit,
    PciAddress,
    SliceInUse,
    State,
    Viewing,
    VmStatus,
)
from arcsup.places import Places
from arcsup.plan.lifecycle import Phase
from arcsup.plan.plan import Seen, Verdict, judge, needs_restart, show_state
from arcsup.vm.displays import DISPLAY_SOCKET, find_viewing
from arcsup.vm.managed import ManagedVm
from arcsup.vm.slices import requests_by_slot
from arcsup.vm.strays import what_to_do


def show_vm(vm: ManagedVm, view: View, places: Places) -> VmStatus:
    """Return a VM's status as seen in ``view``."""
    it = view.seen.get(vm.name, Seen())
    verdict = _judge(vm, view)
    failed = vm.record.failure is not None
    state = show_state(verdict, it, faulty=bool(vm.faults), failed=failed, now=view.now)
    pending = needs_restart(it.differs)
    launch = vm.record.launch
    run = f"{places.run}/{vm.name}"
    return VmStatus(
        name=vm.name,
        state=state,
        reason=_reason(vm, state, verdict, pending),
        since=vm.since,
        pid=_find_pid(vm),
        restarts=vm.record.restarts,
        gpus=_show_slices(vm),
        file=vm.record.source.file,
        pending=pending,
        uuid=vm.vm.uuid,
        qmp_socket=f"{run}/qmp.sock",
        monitor_socket=f"{run}/monitor.sock",
        console_socket=f"{run}/console.sock",
        argv=launch.argv if launch else (),
        numa_node=launch.numa_node if launch else None,
        adopted=vm.adopted,
        last_exit=vm.record.last_exit,
        next_try=_to_datetime(it.retry_at, view.now) if state is State.BACKOFF else None,
        viewing=_show_viewing(vm, places),
        conditions=tuple(vm.conditions.values()),
        mode=vm.record.mode.words,
        cgroup=_show_cgroup(vm),
    )


def show_bad_file(bad: BadFile) -> VmStatus:
    """Return the status of a file that is no VM, and of which no good version is known."""
    return VmStatus(
        name=bad.name,
        state=State.INVALID,
        reason=_first(bad.faults),
        since=bad.since,
        pid=None,
        restarts=0,
        gpus=(),
        file=str(bad.file),
        pending=(),
        uuid=None,
        qmp_socket="",
        monitor_socket="",
        console_socket="",
        argv=(),
        numa_node=None,
        adopted=False,
        last_exit=None,
        next_try=None,
    )


def _show_viewing(vm: ManagedVm, places: Places) -> Viewing | None:
    if vm.process is None or vm.running is None or vm.record.launch is None:
        return None
    socket = places.run_of(vm.name) / DISPLAY_SOCKET
    return find_viewing(vm.running.display, socket, vm.record.launch.frames)


def _show_cgroup(vm: ManagedVm) -> CgroupInUse | None:
    launch = vm.record.launch
    if launch is None or launch.limits is None or not launch.cgroup:
        return None
    return CgroupInUse(launch.cgroup, launch.limits.memory, launch.limits.tasks)


def _show_slices(vm: ManagedVm) -> tuple[SliceInUse, ...]:
    requests = requests_by_slot(vm.running or vm.vm)
    return tuple(
        SliceInUse(
            requests[owned.slot].kind if owned.slot in requests else GpuKind.VGPU,
            owned.type,
            owned.id,
            PciAddress(owned.parent),
            owned.vram_mib,
        )
        for owned in vm.record.slices_in_use
        if owned.mac is None
    )


def _judge(vm: ManagedVm, view: View) -> Verdict:
    if vm.name not in view.wanted:
        ended = "it has ended, and its file is not in the VM directory"
        because = ended if vm.record.transient else "its file was removed"
        return Verdict(up=False, because=because)
    return judge(vm.name, view.wanted, view.seen, view.host, view.now)


def _reason(vm: ManagedVm, state: State, verdict: Verdict, pending: tuple[str, ...]) -> str:
    match state:
        case State.INVALID:
            rest = "is in force" if vm.phase is Phase.DOWN else "runs on"
            return f"{_first(vm.faults)}; its last good version {rest}"
        case State.RUNNING:
            changed = f"its file has changed ({', '.join(pending)}): restart it" if pending else ""
            return "; ".join(filter(None, (_trouble(vm), changed)))
        case State.BACKOFF:
            return f"{in_words(vm.record.last_exit)}; {verdict.blocked}"
        case State.WAITING:
            return _describe_stray(vm) or verdict.blocked or "about to start"
        case State.STOPPED:
            return verdict.because
        case State.FAILED:
            return vm.record.failure.because if vm.record.failure else verdict.because
        case State.STARTING | State.STOPPING | State.PAUSED:
            return "; ".join(filter(None, (vm.reason or verdict.because, _trouble(vm))))


def _find_pid(vm: ManagedVm) -> int | None:
    if vm.process is not None:
        return vm.process.pid
    return vm.unrecorded.pid if vm.unrecorded is not None and vm.unrecorded.is_qemu else None


def _describe_stray(vm: ManagedVm) -> str:
    if vm.unrecorded is None:
        return ""
    return "; ".join(
        filter(None, (str(vm.unrecorded), _trouble(vm), what_to_do(vm.name, vm.unrecorded)))
    )


def _trouble(vm: ManagedVm) -> str:
    """Return what is wrong with a VM that is up: a guest that runs may lack what it asked for."""
    # A stop that is stuck says so itself.
    wrong = [
        it.message for it in vm.conditions.values() if not it.is_well and it.message != vm.reason
    ]
    more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
    return f"{wrong[0]}{more}" if wrong else ""


def in_words(last_exit: LastExit | None) -> str:
    """Return how a QEMU ended, for people: ``crash (signal 9)``."""
    if last_exit is None:
        return "it ended"
    how = ""
    if last_exit.signal is not None:
        how = f" (signal {last_exit.signal})"
    elif last_exit.code:
        how = f" (exit code {last_exit.code})"
    return f"{last_exit.exit_class}{how}{f': {last_exit.detail}' if last_exit.detail else ''}"


def _first(faults: tuple[str, ...]) -> str:
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return f"{faults[0] if faults else 'its file is no VM'}{more}"


def _to_datetime(moment: float | None, now: float) -> datetime | None:
    return None if moment is None else datetime.now(UTC) + timedelta(seconds=moment - now)
