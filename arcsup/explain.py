"""Why a VM is not as desired: from what is seen, link by link, to the cause and what comes next."""

from collections.abc import Iterator, Mapping

from attrs import frozen

from arcsup.fleet import View
from arcsup.model import State, VmName, VmStatus, Why, WhyLink
from arcsup.places import Places
from arcsup.plan.lifecycle import Phase
from arcsup.plan.plan import Seen, judge
from arcsup.show import in_words, show_vm
from arcsup.vm.managed import ManagedVm
from arcsup.vm.strays import Stray, what_to_do

_WITH_QEMU = frozenset({State.STARTING, State.RUNNING, State.PAUSED, State.STOPPING})


@frozen
class _Around:
    """Where a chain may lead."""

    vms: Mapping[VmName, ManagedVm]
    view: View
    places: Places


def explain(status: VmStatus, vms: Mapping[VmName, ManagedVm], view: View, places: Places) -> Why:
    """Return the chain for one VM; it follows ``after`` to the VM that holds up the others."""
    chain = tuple(_links(status, _Around(vms, view, places), seen=frozenset()))
    return Why(status.name, status.state, _as_desired(status, view), chain)


def _as_desired(status: VmStatus, view: View) -> bool:
    if status.state is State.INVALID or status.pending:
        return False
    if status.name not in view.wanted or not all(it.is_well for it in status.conditions):
        return False
    if view.seen.get(status.name, Seen()).unrecorded:
        return False
    verdict = judge(status.name, view.wanted, view.seen, view.host, view.now)
    if status.state is State.FAILED:
        return False
    if verdict.up:
        return status.state is State.RUNNING
    # One that is stopping is not down yet, and may never be.
    return status.state not in _WITH_QEMU


def _links(status: VmStatus, around: _Around, *, seen: frozenset[VmName]) -> Iterator[WhyLink]:
    vm = around.vms.get(status.name)
    yield WhyLink(
        what=f"{status.name} is {status.state}",
        because=_because(status),
        since=status.since,
        next_action=_next_action(status) if vm is None or vm.unrecorded is None else "",
        at=status.next_try,
    )
    if vm is None:
        return
    if vm.unrecorded is not None:
        yield _tell_stray(vm.name, vm.unrecorded)
    yield from _faults(vm)
    last = vm.record.last_exit
    if status.state in (State.BACKOFF, State.FAILED) and last is not None:
        if last.had_qemu:
            yield WhyLink("its QEMU ended", in_words(last), last.at, f"arcsup logs {vm.name}")
        elif last.detail not in status.reason:
            yield WhyLink("it could not be started", last.detail, last.at)
    yield from (
        WhyLink(condition.type, condition.message, condition.since)
        for condition in vm.conditions.values()
        if not condition.is_well
    )
    yield from _predecessors(vm, around, seen=seen | {vm.name})


def _tell_stray(name: VmName, stray: Stray) -> WhyLink:
    how = "by the lock that it has" if stray.has_lock else "by its user and its command line"
    lost = "the record was lost, or an older one was put back"
    return WhyLink(
        what=f"{stray.program or 'a process that cannot be seen'} is in the way",
        because=f"it was found {how}; no record tells of it: {lost}",
        since=stray.since,
        next_action=what_to_do(name, stray),
    )


def _because(status: VmStatus) -> str:
    because = status.reason or "it is as its file and the operator want it"
    return f"{because}; its run is in mode {', '.join(status.mode)}" if status.mode else because


def _faults(vm: ManagedVm) -> Iterator[WhyLink]:
    for fault in vm.faults:
        yield WhyLink("its file has a fault", fault, None, f"edit {vm.file}; it is read at once")


def _predecessors(vm: ManagedVm, around: _Around, *, seen: frozenset[VmName]) -> Iterator[WhyLink]:
    if vm.phase is not Phase.DOWN:
        return
    for name in vm.vm.after:
        other = around.vms.get(name)
        if other is not None and other.phase is not Phase.RUNNING and name not in seen:
            yield from _links(show_vm(other, around.view, around.places), around, seen=seen)


def _next_action(status: VmStatus) -> str:
    name = status.name
    match status.state:
        case State.INVALID:
            return f"edit {status.file}; it is read again at once"
        case State.FAILED:
            return f"arcsup clear {name}, or change {status.file}"
        case State.STOPPED:
            return f"arcsup start {name}"
        case State.BACKOFF:
            return "it is started again"
        case State.WAITING:
            return "it starts as soon as that is there"
        case State.PAUSED:
            return f"arcsup resume {name}"
        case State.STARTING:
            return f"arcsup wait {name} --for running"
        case State.STOPPING:
            return f"arcsup kill {name}, if the guest takes too long"
        case State.RUNNING:
            return f"arcsup restart {name}" if status.pending else ""
