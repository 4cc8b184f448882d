"""Values of the model as the JSON of the control socket. Pure; times are RFC 3339 in UTC."""

from datetime import UTC, datetime

from arcsup.control.shapes import (
    CgroupJson,
    ConditionJson,
    EventJson,
    LastExitJson,
    SliceJson,
    StatusJson,
    StepJson,
    ViewingJson,
    VmJson,
    WhyJson,
    WhyLinkJson,
)
from arcsup.model import (
    CgroupInUse,
    Condition,
    Event,
    LastExit,
    SliceInUse,
    State,
    Step,
    Viewing,
    VmStatus,
    Why,
    WhyLink,
)

EVENTS_SHOWN = 10
"""How many of the last events ``status`` shows."""

_DEFAULT_REASONS = {
    State.INVALID: "its file has faults",
    State.WAITING: "waiting for something that it needs",
    State.STARTING: "QEMU is starting",
    State.RUNNING: "",
    State.PAUSED: "paused",
    State.STOPPING: "the guest is powering down",
    State.STOPPED: "not asked to run",
    State.BACKOFF: "crashed; will be tried again",
    State.FAILED: "gave up after too many failures",
}


def view_time(moment: datetime) -> str:
    """Return RFC 3339 in UTC with milliseconds and ``Z``. A naive time is a ValueError."""
    if moment.tzinfo is None:
        raise ValueError("a time without a zone has no place on the socket")
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _view_time_or_null(moment: datetime | None) -> str | None:
    return None if moment is None else view_time(moment)


def view_vm(status: VmStatus) -> VmJson:
    """Return one entry of ``list``. ``reason`` is empty only while running."""
    return {
        "name": status.name,
        "state": status.state.value,
        "reason": status.reason or _DEFAULT_REASONS[status.state],
        "since": view_time(status.since),
        "pid": status.pid,
        "restarts": status.restarts,
        "gpus": [_view_slice(gpu) for gpu in status.gpus],
        "file": status.file,
        "pending": bool(status.pending),
        "mode": list(status.mode),
    }


def view_status(status: VmStatus) -> StatusJson:
    """Return everything that ``status`` shows."""
    return {
        **view_vm(status),
        "uuid": None if status.uuid is None else str(status.uuid),
        "qmpSocket": status.qmp_socket,
        "monitorSocket": status.monitor_socket,
        "consoleSocket": status.console_socket,
        "argv": list(status.argv),
        "numaNode": status.numa_node,
        "adopted": status.adopted,
        "cgroup": None if status.cgroup is None else _view_cgroup(status.cgroup),
        "lastExit": None if status.last_exit is None else _view_last_exit(status.last_exit),
        "nextTry": _view_time_or_null(status.next_try),
        "viewing": None if status.viewing is None else _view_viewing(status.viewing),
        "pendingKeys": list(status.pending),
        "conditions": [_view_condition(condition) for condition in status.conditions],
        "events": [view_event(event) for event in status.events[-EVENTS_SHOWN:]],
    }


def _view_cgroup(group: CgroupInUse) -> CgroupJson:
    return {"path": group.path, "memoryMax": group.memory_max, "tasksMax": group.tasks_max}


def view_event(event: Event) -> EventJson:
    """Return an event as ``events`` shows it."""
    return {
        "time": view_time(event.time),
        "vm": event.vm,
        "kind": event.kind,
        "message": event.message,
        "data": dict(event.data),
    }


def view_why(why: Why) -> WhyJson:
    """Return the chain from "not as desired" to its cause."""
    return {
        "name": why.name,
        "state": why.state.value,
        "asDesired": why.as_desired,
        "chain": [_view_why_link(link) for link in why.chain],
    }


def view_step(step: Step) -> StepJson:
    """Return one planned action."""
    return {"verb": step.verb, "object": step.object, "because": step.because}


def _view_slice(gpu: SliceInUse) -> SliceJson:
    return {
        "kind": gpu.kind.value,
        "type": gpu.type,
        "id": gpu.id,
        "parent": gpu.parent,
        "vramMiB": gpu.vram_mib,
    }


def _view_viewing(viewing: Viewing) -> ViewingJson:
    return {
        "display": viewing.display.value,
        "socket": viewing.socket,
        "address": viewing.address,
        "port": viewing.port,
        "frames": list(viewing.frames),
    }


def _view_last_exit(end: LastExit) -> LastExitJson:
    return {
        "class": end.exit_class.value,
        "code": end.code,
        "signal": end.signal,
        "at": view_time(end.at),
        "detail": end.detail,
        "forced": end.forced,
    }


def _view_condition(condition: Condition) -> ConditionJson:
    return {
        "type": condition.type,
        "status": condition.status,
        "reason": condition.reason,
        "message": condition.message,
        "since": view_time(condition.since),
    }


def _view_why_link(link: WhyLink) -> WhyLinkJson:
    return {
        "what": link.what,
        "because": link.because,
        "since": _view_time_or_null(link.since),
        "nextAction": link.next_action,
        "at": _view_time_or_null(link.at),
    }
