"""The life of one QEMU as a table, and how its end is told apart.

The phases are about the process alone:

    down ── start ──> starting ── ready ──> running ⇄ paused
      ^                  │                     │        │
      └────── end ───────┴──── stop ──> stopping <──────┘   (any of them may also just end)

What ``list`` shows (waiting, backoff, failed, invalid, …) is derived from the phase, the file and
the operator's intent by ``plan.plan``. Everything that moves a phase is in ``TRANSITIONS``; code
only looks up, and a step that is not in the table is a defect, not a state.
"""

from enum import StrEnum

from attrs import frozen

from arcsup.model import ExitClass


class Phase(StrEnum):
    """Where a VM's QEMU is in its life."""

    DOWN = "down"
    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPING = "stopping"


class Step(StrEnum):
    """What can happen to it."""

    START = "start"
    READY = "ready"
    PAUSE = "pause"
    RESUME = "resume"
    STOP = "stop"
    END = "end"


TRANSITIONS: dict[Phase, dict[Step, Phase]] = {
    Phase.DOWN: {Step.START: Phase.STARTING},
    Phase.STARTING: {
        Step.READY: Phase.RUNNING,
        Step.STOP: Phase.STOPPING,
        Step.END: Phase.DOWN,
    },
    Phase.RUNNING: {
        Step.PAUSE: Phase.PAUSED,
        Step.RESUME: Phase.RUNNING,
        Step.STOP: Phase.STOPPING,
        Step.END: Phase.DOWN,
    },
    Phase.PAUSED: {
        Step.PAUSE: Phase.PAUSED,
        Step.RESUME: Phase.RUNNING,
        Step.STOP: Phase.STOPPING,
        Step.END: Phase.DOWN,
    },
    Phase.STOPPING: {
        # A guest may stop and continue its CPUs (a dump, a snapshot) while it is shutting down.
        Step.PAUSE: Phase.STOPPING,
        Step.RESUME: Phase.STOPPING,
        Step.STOP: Phase.STOPPING,
        Step.END: Phase.DOWN,
    },
}


def advance(phase: Phase, step: Step) -> Phase:
    """Return the phase after ``step``. Raises KeyError for a step that cannot be."""
    return TRANSITIONS[phase][step]


@frozen
class Evidence:
    """What was seen of a QEMU's end.

    ``shutdown_reason`` is the SHUTDOWN event's (QAPI type ShutdownCause), None without one.
    ``found_shut_down`` says that QEMU was found paused at a guest's end (RunState "shutdown").
    ``asked`` is what arcsup itself did to end it: "", "stop" or "kill".
    """

    was_ready: bool
    shutdown_reason: str | None = None
    found_shut_down: bool = False
    panicked: bool = False
    asked: str = ""
    out_of_memory: bool = False
    device_lost: bool = False


_CLASS_OF_REASON = {
    "guest-shutdown": ExitClass.GUEST_SHUTDOWN,
    "guest-reset": ExitClass.GUEST_RESET,
    "subsystem-reset": ExitClass.GUEST_RESET,
    "guest-panic": ExitClass.GUEST_PANIC,
    "host-qmp-quit": ExitClass.STOPPED,
    "host-ui": ExitClass.STOPPED,
    "host-qmp-system-reset": ExitClass.GUEST_RESET,
    "host-signal": ExitClass.KILLED,
    "host-error": ExitClass.CRASH,
}


def classify_exit(evidence: Evidence) -> ExitClass:
    """Return why a QEMU is no longer there.

    QEMU's exit code says nothing: it is 0 after a guest's power-off and after SIGTERM alike.
    What arcsup asked for comes first, because a guest that powers off when asked to was stopped.
    """
    if evidence.asked == "kill":
        return ExitClass.KILLED
    if evidence.asked == "stop":
        return ExitClass.STOPPED
    if evidence.device_lost:
        return ExitClass.DEVICE_LOST
    if evidence.out_of_memory:
        return ExitClass.OUT_OF_MEMORY
    if evidence.panicked:
        return ExitClass.GUEST_PANIC
    if not evidence.was_ready:
        return ExitClass.START_FAILED
    if evidence.shutdown_reason is None:
        # Only a guest's own end leaves QEMU paused; everything else ends QEMU with it.
        return ExitClass.GUEST_SHUTDOWN if evidence.found_shut_down else ExitClass.CRASH
    return _CLASS_OF_REASON.get(evidence.shutdown_reason, ExitClass.CRASH)
