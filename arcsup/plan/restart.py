"""What follows the end of a QEMU: start again now, later, or not at all.

Pure: time is a number of seconds on any clock that does not jump, chance is a number handed in.
The budget is Erlang's: at most ``burst`` restarts within ``period``. The delay starts at
``delay``, doubles with each failure in a row up to ``max_delay``, and starts over once a VM has
run for ``period``.
"""

from attrs import evolve, frozen

from arcsup.model import ExitClass, Restart, RestartPolicy

JITTER = 0.2
"""Delays after the first are stretched by up to this share, so that VMs that died together do
not all come back in the same instant."""


@frozen
class Budget:
    """Restarts of late (their times, oldest first) and how many failures came in a row."""

    restarts: tuple[float, ...] = ()
    streak: int = 0


@frozen
class StartAgain:
    """Start again at ``at``; ``budget`` is what is left."""

    at: float
    budget: Budget


@frozen
class StayStopped:
    """The end was wanted or is accepted: nothing is wrong, nothing is started."""

    because: str


@frozen
class GiveUp:
    """Something is wrong that another try would not mend."""

    because: str


@frozen
class AwaitDevice:
    """Start again as soon as the device is back; that costs no budget."""

    because: str


Outcome = StartAgain | StayStopped | GiveUp | AwaitDevice

_SUCCESS = frozenset({ExitClass.GUEST_SHUTDOWN, ExitClass.STOPPED})


def after_exit(
    exit_class: ExitClass,
    rules: Restart,
    budget: Budget,
    *,
    now: float,
    ran_for: float,
    chance: float,
    detail: str = "",
) -> Outcome:
    """Decide what follows an end that the operator did not ask for.

    ``ran_for`` is how many seconds the VM was running, ``chance`` a number in [0, 1).
    """
    if exit_class is ExitClass.DEVICE_LOST:
        return AwaitDevice(detail or "a device that it uses is gone")
    if exit_class is ExitClass.GUEST_RESET and rules.policy is not RestartPolicy.NEVER:
        return StartAgain(now, budget)
    if exit_class in _SUCCESS and rules.policy is not RestartPolicy.ALWAYS:
        return StayStopped(_in_words(exit_class))
    if rules.policy is RestartPolicy.NEVER:
        return GiveUp(f"{_in_words(exit_class)} and its restart policy is never")
    return _spend(exit_class, rules, budget, now=now, ran_for=ran_for, chance=chance)


def _spend(
    exit_class: ExitClass,
    rules: Restart,
    budget: Budget,
    *,
    now: float,
    ran_for: float,
    chance: float,
) -> Outcome:
    if ran_for >= rules.period:
        budget = evolve(budget, streak=0)
    recent = tuple(at for at in budget.restarts if now - at < rules.period)
    if len(recent) >= rules.burst:
        return GiveUp(
            f"{_in_words(exit_class)} and was restarted {len(recent)} times"
            f" within {rules.period:g} s, which is its limit"
        )
    at = now + delay_of(rules, budget.streak, chance)
    return StartAgain(at, Budget((*recent, at), budget.streak + 1))


def delay_of(rules: Restart, streak: int, chance: float) -> float:
    """Return the seconds to wait before the restart that follows ``streak`` others in a row."""
    # 2.0**1024 overflows a float; long before that the cap holds.
    doubled = min(rules.delay * 2.0 ** min(streak, 64), rules.max_delay)
    stretched = doubled if streak == 0 else doubled * (1 + JITTER * chance)
    return min(stretched, max(rules.max_delay, rules.delay))


def _in_words(exit_class: ExitClass) -> str:
    return {
        ExitClass.GUEST_SHUTDOWN: "the guest powered off",
        ExitClass.GUEST_RESET: "the guest asked for a reset",
        ExitClass.GUEST_PANIC: "the guest's kernel panicked",
        ExitClass.STOPPED: "QEMU was told to quit",
        ExitClass.KILLED: "QEMU was ended by a signal from outside",
        ExitClass.CRASH: "QEMU crashed",
        ExitClass.START_FAILED: "QEMU did not start",
        ExitClass.DEVICE_LOST: "a device was lost",
        ExitClass.OUT_OF_MEMORY: "the host ran out of memory and killed QEMU",
    }[exit_class]
