"""What to do next, from what is wanted and what is seen. Pure; ``now`` is an input.

One pass orders its actions so that each is safe where it stands: stop what must stop, forget what
is gone, change what runs, start what can start. Nothing here remembers anything: after each
change the daemon observes and plans again.
"""

from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum

from attrs import evolve, frozen

from arcsup.model import MiB, State, Vm, VmName
from arcsup.plan.lifecycle import Phase

SLOW_START = 5.0
"""Seconds after which a VM that is still starting no longer holds a start slot: a QEMU that hangs
must not keep the others from starting."""

LIVE_KEYS = ("autostart", "description", "after", "restart", "stop", "hooks")
"""Keys that take effect on a running VM by being read: nothing has to be done to QEMU."""


class Intent(StrEnum):
    """What the operator asked for last. NONE leaves it to the file."""

    NONE = "none"
    RUN = "run"
    STOP = "stop"
    KILL = "kill"
    RESTART = "restart"


@frozen
class Wanted:
    """One VM file's last good version, and what was decided about it.

    ``halted`` says why it stays down without being wrong (the guest powered off), ``failure`` why
    arcsup gave up; both are "" when not so.
    """

    vm: Vm
    intent: Intent = Intent.NONE
    halted: str = ""
    failure: str = ""


@frozen
class Seen:
    """One VM's QEMU as it is. Times are on the clock of ``now``.

    ``to_be_killed`` says that the operator asked for that, also of a VM whose file is gone, and
    ``dying`` that it is under way. ``differs`` lists the keys in which the file's version differs
    from what runs; ``awaits`` names a device or a VM that it waits for; ``retry_at`` is when a
    crashed VM may be tried again. ``hoards``: it lacks a device, and has others that are there.
    ``left_over``: it has a device that it went on without.
    ``unrecorded``: a QEMU of it lives that no record tells of, and this is what is known of it.
    ``gpus_can_change``: GPUs that its file asks for can come, or others go, while it runs.
    """

    phase: Phase = Phase.DOWN
    phase_since: float = 0.0
    dying: bool = False
    to_be_killed: bool = False
    differs: tuple[str, ...] = ()
    retry_at: float | None = None
    awaits: str = ""
    unrecorded: str = ""
    holds_devices: bool = False
    hoards: bool = False
    left_over: bool = False
    releasing: bool = False
    gpus_can_change: bool = False


@frozen
class HostSeen:
    """``memory_mib`` is what the host can still give (None: unknown); ``start_slots`` how many
    VMs may be starting at once."""

    memory_mib: MiB | None = None
    start_slots: int = 8


@frozen
class StartVm:
    """Start its QEMU."""

    name: VmName
    because: str


@frozen
class StopVm:
    """End its QEMU; ``hard`` does not ask the guest."""

    name: VmName
    because: str
    hard: bool = False


@frozen
class ChangeMedia:
    """Put the CD-ROM images of the file's version into the running VM's drives."""

    name: VmName
    because: str


@frozen
class ChangeGpus:
    """Give the running VM the GPUs that its file asks for by now, or take some away."""

    name: VmName
    because: str


@frozen
class ReleaseDevices:
    """Give back the slices that a VM has kept over a crash: it stays down."""

    name: VmName
    because: str


@frozen
class ForgetVm:
    """Its file is gone and nothing of it runs: give back its devices, drop what is kept of it."""

    name: VmName
    because: str


Action = StartVm | StopVm | ChangeMedia | ChangeGpus | ReleaseDevices | ForgetVm


@frozen
class Verdict:
    """Whether a VM should be up, and why; ``blocked`` says what keeps it from starting now."""

    up: bool
    because: str
    blocked: str = ""


def plan(
    wanted: Mapping[VmName, Wanted],
    seen: Mapping[VmName, Seen],
    host: HostSeen,
    now: float,
) -> tuple[Action, ...]:
    """Return the actions of one pass, in the order in which they are safe.

    A name in ``seen`` that nobody wants any more is stopped, then forgotten.
    """
    stops = tuple(_stops(wanted, seen))
    return (
        *stops,
        *_releases(wanted, seen, host, now),
        *_forgets(wanted, seen),
        *_changes(wanted, seen),
        *_starts(wanted, _without(seen, stops), host, now),
    )


def _without(seen: Mapping[VmName, Seen], stops: Iterable[StopVm]) -> dict[VmName, Seen]:
    """Return what is seen once the stops have begun: who is stopped is no longer starting."""
    begun = {it.name: evolve(seen[it.name], phase=Phase.STOPPING) for it in stops}
    return {**seen, **begun}


def _stops(wanted: Mapping[VmName, Wanted], seen: Mapping[VmName, Seen]) -> Iterator[StopVm]:
    for name, it in sorted(seen.items()):
        if it.phase is Phase.DOWN:
            continue
        if name not in wanted:
            if it.to_be_killed and not it.dying:
                yield StopVm(name, "the operator asked to kill it", hard=True)
            elif it.phase is not Phase.STOPPING:
                yield StopVm(name, "its file was removed")
        elif wanted[name].intent is Intent.KILL:
            # Also while stopping: kill is what one asks for when a stop takes too long.
            if not it.dying:
                yield StopVm(name, "the operator asked to kill it", hard=True)
        elif it.phase is Phase.STOPPING:
            continue
        elif wanted[name].intent in (Intent.STOP, Intent.RESTART):
            yield StopVm(name, f"the operator asked to {wanted[name].intent} it")


def _releases(
    wanted: Mapping[VmName, Wanted],
    seen: Mapping[VmName, Seen],
    host: HostSeen,
    now: float,
) -> Iterator[ReleaseDevices]:
    for name, it in sorted(seen.items()):
        if name not in wanted or it.releasing or it.unrecorded:
            continue
        if it.phase is not Phase.DOWN:
            if it.left_over and it.phase in (Phase.RUNNING, Phase.PAUSED):
                yield ReleaseDevices(name, "it runs with another, and this one is left over")
            continue
        verdict = judge(name, wanted, seen, host, now)
        if it.holds_devices and not verdict.up:
            yield ReleaseDevices(name, verdict.because)
        elif it.hoards and it.awaits:
            # Others may be waiting for these, and have what this one lacks. It may even be its own
            # slice that is in the way, when its file asks for another size.
            yield ReleaseDevices(name, f"it has not all that it needs: {verdict.blocked}")


def _forgets(wanted: Mapping[VmName, Wanted], seen: Mapping[VmName, Seen]) -> Iterator[ForgetVm]:
    for name, it in sorted(seen.items()):
        if name in wanted or it.releasing or it.unrecorded:
            continue
        if it.phase is Phase.DOWN:
            yield ForgetVm(name, "its file was removed")


def _changes(
    wanted: Mapping[VmName, Wanted], seen: Mapping[VmName, Seen]
) -> Iterator[ChangeMedia | ChangeGpus]:
    for name, it in sorted(seen.items()):
        if name not in wanted or it.phase is not Phase.RUNNING:
            continue
        if any(map(_is_media, it.differs)):
            yield ChangeMedia(name, "its file names other CD-ROM images")
        ends = wanted[name].intent in (Intent.STOP, Intent.KILL, Intent.RESTART)
        if it.gpus_can_change and not ends:
            yield ChangeGpus(name, "its file asks for other GPUs")


def _starts(
    wanted: Mapping[VmName, Wanted],
    seen: Mapping[VmName, Seen],
    host: HostSeen,
    now: float,
) -> Iterator[StartVm]:
    slots = host.start_slots - sum(
        it.phase is Phase.STARTING and now - it.phase_since < SLOW_START for it in seen.values()
    )
    memory = host.memory_mib
    for name in sorted(wanted):
        it = seen.get(name, Seen())
        if it.phase is not Phase.DOWN or slots <= 0:
            continue
        verdict = judge(name, wanted, seen, HostSeen(memory, host.start_slots), now)
        if verdict.up and not verdict.blocked:
            slots -= 1
            if memory is not None:
                memory = MiB(memory - wanted[name].vm.memory_mib)
            yield StartVm(name, verdict.because)


def judge(
    name: VmName,
    wanted: Mapping[VmName, Wanted],
    seen: Mapping[VmName, Seen],
    host: HostSeen,
    now: float,
) -> Verdict:
    """Say whether ``name`` should be up and what, if anything, it is waiting for."""
    want, it = wanted[name], seen.get(name, Seen())
    if want.intent in (Intent.STOP, Intent.KILL):
        return Verdict(up=False, because="stopped by the operator")
    if want.failure:
        return Verdict(up=False, because=want.failure)
    if want.halted:
        return Verdict(up=False, because=want.halted)
    if want.intent in (Intent.RUN, Intent.RESTART):
        because = "the operator started it"
    elif want.vm.autostart:
        because = "autostart"
    elif it.phase is not Phase.DOWN:
        because = "it is running"
    else:
        return Verdict(up=False, because="autostart is off; it starts when the operator says so")
    if it.phase is not Phase.DOWN:
        return Verdict(up=True, because=because)
    return Verdict(up=True, because=because, blocked=_blocked(name, wanted, seen, host, now))


def _blocked(
    name: VmName,
    wanted: Mapping[VmName, Wanted],
    seen: Mapping[VmName, Seen],
    host: HostSeen,
    now: float,
) -> str:
    want, it = wanted[name], seen.get(name, Seen())
    if it.unrecorded:
        return it.unrecorded
    if it.releasing:
        return "waiting for its former devices to be given back"
    if it.retry_at is not None and now < it.retry_at:
        return f"next try in {it.retry_at - now:.1f} s"
    if it.awaits:
        return f"waiting for {it.awaits}"
    for other in want.vm.after:
        if seen.get(other, Seen()).phase is not Phase.RUNNING:
            return _missing_predecessor(name, other, wanted)
    needed = want.vm.memory_mib
    # Huge pages are set aside already and are not part of what the host calls available.
    if host.memory_mib is not None and not want.vm.hugepages and needed > host.memory_mib:
        return f"waiting for memory: it needs {needed} MiB, the host has {host.memory_mib} MiB"
    return ""


def _missing_predecessor(name: VmName, other: VmName, wanted: Mapping[VmName, Wanted]) -> str:
    if other not in wanted:
        return f"waiting for VM {other}, which has no file"
    if reaches(other, name, wanted):
        return f"waiting for VM {other}, which itself waits for {name}: take one `after` away"
    return f"waiting for VM {other} to run"


def reaches(start: VmName, goal: VmName, wanted: Mapping[VmName, Wanted]) -> bool:
    """Tell whether following ``after`` from ``start`` leads to ``goal``."""
    found: set[VmName] = set()
    open_names = [start]
    while open_names:
        name = open_names.pop()
        if name == goal:
            return True
        if name not in found and name in wanted:
            found.add(name)
            open_names.extend(wanted[name].vm.after)
    return False


def needs_restart(differs: tuple[str, ...]) -> tuple[str, ...]:
    """Return those of the differing keys that a running VM cannot take on."""
    return tuple(
        key
        for key in differs
        if not _is_media(key) and key.partition(".")[0].partition("[")[0] not in LIVE_KEYS
    )


def _is_media(key: str) -> bool:
    # "cdroms" alone means more or fewer drives, which only a restart gives.
    return key.startswith("cdroms[")


def next_deadline(
    wanted: Mapping[VmName, Wanted], seen: Mapping[VmName, Seen], now: float
) -> float | None:
    """Return when a plan would come out differently just because time went by."""
    times = [
        it.retry_at
        for name, it in seen.items()
        if name in wanted and it.phase is Phase.DOWN and it.retry_at is not None
        if it.retry_at > now
    ]
    times += [
        it.phase_since + SLOW_START
        for it in seen.values()
        if it.phase is Phase.STARTING and it.phase_since + SLOW_START > now
    ]
    return min(times, default=None)


def show_state(verdict: Verdict, it: Seen, *, faulty: bool, failed: bool, now: float) -> State:
    """Derive what ``list`` shows. A faulty file shows as invalid whatever its last version does."""
    if faulty:
        return State.INVALID
    if it.phase is not Phase.DOWN:
        return State(it.phase.value)
    if it.unrecorded:
        return State.WAITING
    if failed:
        return State.FAILED
    if not verdict.up:
        return State.STOPPED
    if it.retry_at is not None and now < it.retry_at:
        return State.BACKOFF
    return State.WAITING
