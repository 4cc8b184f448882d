"""The table of a QEMU's life, and how its end is told apart."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcsup.model import ExitClass
from arcsup.plan.lifecycle import TRANSITIONS, Evidence, Phase, Step, advance, classify_exit


def test_every_phase_but_down_can_end() -> None:
    assert [phase for phase in Phase if Step.END not in TRANSITIONS[phase]] == [Phase.DOWN]


def test_a_second_start_is_not_in_the_table() -> None:
    assert [phase for phase in Phase if Step.START in TRANSITIONS[phase]] == [Phase.DOWN]


def test_a_stop_is_never_taken_back() -> None:
    assert set(TRANSITIONS[Phase.STOPPING].values()) == {Phase.STOPPING, Phase.DOWN}


@given(st.lists(st.sampled_from(Step), max_size=30))
def test_whatever_happens_an_end_leads_down_and_only_a_start_leads_up(steps: list[Step]) -> None:
    phase = Phase.DOWN
    for step in steps:
        if step not in TRANSITIONS[phase]:
            with pytest.raises(KeyError):
                advance(phase, step)
            continue
        before, phase = phase, advance(phase, step)
        assert (phase is Phase.DOWN) == (step is Step.END)
        assert before is not Phase.DOWN or step is Step.START


@pytest.mark.parametrize(
    ("evidence", "expected"),
    [
        (Evidence(was_ready=True, shutdown_reason="guest-shutdown"), ExitClass.GUEST_SHUTDOWN),
        (Evidence(was_ready=True, shutdown_reason="guest-reset"), ExitClass.GUEST_RESET),
        (Evidence(was_ready=True, shutdown_reason="guest-panic"), ExitClass.GUEST_PANIC),
        (Evidence(was_ready=True, panicked=True), ExitClass.GUEST_PANIC),
        (Evidence(was_ready=True, shutdown_reason="host-qmp-quit"), ExitClass.STOPPED),
        (Evidence(was_ready=True, shutdown_reason="host-signal"), ExitClass.KILLED),
        (Evidence(was_ready=True, shutdown_reason="host-error"), ExitClass.CRASH),
        (Evidence(was_ready=True, shutdown_reason="from-the-future"), ExitClass.CRASH),
        (Evidence(was_ready=True), ExitClass.CRASH),
        (Evidence(was_ready=True, found_shut_down=True), ExitClass.GUEST_SHUTDOWN),
        (
            Evidence(was_ready=True, found_shut_down=True, shutdown_reason="host-signal"),
            ExitClass.KILLED,
        ),
        (Evidence(was_ready=False), ExitClass.START_FAILED),
        (Evidence(was_ready=True, out_of_memory=True), ExitClass.OUT_OF_MEMORY),
        (Evidence(was_ready=True, device_lost=True), ExitClass.DEVICE_LOST),
        (
            Evidence(was_ready=True, shutdown_reason="guest-shutdown", asked="stop"),
            ExitClass.STOPPED,
        ),
        (Evidence(was_ready=True, asked="kill"), ExitClass.KILLED),
    ],
)
def test_the_class_of_an_end_follows_from_its_cause(
    evidence: Evidence, expected: ExitClass
) -> None:
    assert classify_exit(evidence) is expected
