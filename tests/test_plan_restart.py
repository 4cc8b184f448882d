"""The restart budget and what follows each kind of end."""

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from arcsup.model import ExitClass, Restart, RestartPolicy, Seconds
from arcsup.plan.restart import (
    AwaitDevice,
    Budget,
    GiveUp,
    Outcome,
    StartAgain,
    StayStopped,
    after_exit,
    delay_of,
)

RULES = Restart(burst=5, period=Seconds(60.0), delay=Seconds(0.1), max_delay=Seconds(30.0))


def crash(budget: Budget, now: float, *, ran_for: float = 0.0, rules: Restart = RULES) -> Outcome:
    return after_exit(
        ExitClass.CRASH, rules, budget, now=now, ran_for=ran_for, chance=0.0, detail=""
    )


def test_the_sixth_restart_within_a_minute_is_refused() -> None:
    budget = Budget()
    now = 0.0
    for _ in range(5):
        outcome = crash(budget, now)
        assert isinstance(outcome, StartAgain)
        budget, now = outcome.budget, outcome.at

    refused = crash(budget, now)

    assert isinstance(refused, GiveUp)
    assert "5 times within 60 s" in refused.because


def test_restarts_older_than_the_period_are_forgiven() -> None:
    budget = Budget(restarts=(0.0, 1.0, 2.0, 3.0, 4.0), streak=5)

    assert isinstance(crash(budget, now=59.0), GiveUp)
    assert isinstance(crash(budget, now=60.5), StartAgain)


def test_delays_double_from_the_configured_one_up_to_the_cap() -> None:
    delays = [delay_of(RULES, streak, chance=0.0) for streak in range(12)]

    assert delays[:5] == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6])
    assert delays[-1] == 30.0


def test_the_delay_starts_over_once_the_vm_has_run_for_the_period() -> None:
    outcome = crash(Budget(restarts=(), streak=7), now=1000.0, ran_for=60.0)

    assert isinstance(outcome, StartAgain)
    assert outcome.at == pytest.approx(1000.1)


@pytest.mark.parametrize(
    ("exit_class", "policy", "expected"),
    [
        (ExitClass.GUEST_SHUTDOWN, RestartPolicy.ALWAYS, StartAgain),
        (ExitClass.GUEST_SHUTDOWN, RestartPolicy.ON_FAILURE, StayStopped),
        (ExitClass.GUEST_SHUTDOWN, RestartPolicy.NEVER, StayStopped),
        (ExitClass.STOPPED, RestartPolicy.ON_FAILURE, StayStopped),
        (ExitClass.CRASH, RestartPolicy.ALWAYS, StartAgain),
        (ExitClass.CRASH, RestartPolicy.ON_FAILURE, StartAgain),
        (ExitClass.CRASH, RestartPolicy.NEVER, GiveUp),
        (ExitClass.GUEST_PANIC, RestartPolicy.ON_FAILURE, StartAgain),
        (ExitClass.OUT_OF_MEMORY, RestartPolicy.ON_FAILURE, StartAgain),
        (ExitClass.KILLED, RestartPolicy.ON_FAILURE, StartAgain),
        (ExitClass.GUEST_RESET, RestartPolicy.ON_FAILURE, StartAgain),
        (ExitClass.GUEST_RESET, RestartPolicy.NEVER, GiveUp),
        (ExitClass.DEVICE_LOST, RestartPolicy.NEVER, AwaitDevice),
        (ExitClass.DEVICE_LOST, RestartPolicy.ALWAYS, AwaitDevice),
    ],
)
def test_policy_decides_what_follows_each_end(
    exit_class: ExitClass, policy: RestartPolicy, expected: type[Outcome]
) -> None:
    outcome = after_exit(
        exit_class, evolve(RULES, policy=policy), Budget(), now=0.0, ran_for=1.0, chance=0.5
    )

    assert type(outcome) is expected


def test_a_lost_device_and_a_guest_reset_cost_no_budget() -> None:
    spent = Budget(restarts=(0.0, 0.1, 0.2, 0.3, 0.4), streak=5)

    outcome = after_exit(ExitClass.GUEST_RESET, RULES, spent, now=1.0, ran_for=0.5, chance=0.0)

    assert outcome == StartAgain(1.0, spent)


rules = st.builds(
    Restart,
    policy=st.sampled_from([RestartPolicy.ALWAYS, RestartPolicy.ON_FAILURE]),
    burst=st.integers(0, 8),
    period=st.floats(0.1, 100).map(Seconds),
    delay=st.floats(0, 50).map(Seconds),
    max_delay=st.floats(0, 50).map(Seconds),
)
lives = st.lists(st.floats(0, 200), max_size=40)
chances = st.floats(0, 1, exclude_max=True)


@given(rules, lives, chances)
def test_no_window_of_a_period_ever_holds_more_than_burst_restarts(
    rules: Restart, lives: list[float], chance: float
) -> None:
    budget, now = Budget(), 0.0
    starts: list[float] = []
    for ran_for in lives:
        now += ran_for
        outcome = after_exit(
            ExitClass.CRASH, rules, budget, now=now, ran_for=ran_for, chance=chance
        )
        if not isinstance(outcome, StartAgain):
            break
        starts.append(outcome.at)
        budget, now = outcome.budget, outcome.at

    for start in starts:
        assert sum(start <= other < start + rules.period for other in starts) <= max(
            rules.burst, 0
        ) + (rules.delay > 0)


@given(rules, st.integers(0, 5000), chances)
def test_a_delay_is_never_negative_and_never_over_the_cap(
    rules: Restart, streak: int, chance: float
) -> None:
    delay = delay_of(rules, streak, chance)

    assert 0 <= delay <= max(rules.max_delay, rules.delay)
