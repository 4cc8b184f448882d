"""What a VM says often is told seldom, and how often it was said is told too."""

from arcsup.vm.restraint import BURST, REFILL, Restraint


def test_a_burst_is_told_and_then_one_at_a_time_with_the_number_that_was_not() -> None:
    restraint = Restraint()
    assert [restraint.admit("reset", 100.0) for _ in range(BURST)] == [0] * BURST
    assert [restraint.admit("reset", 100.0) for _ in range(1000)] == [None] * 1000

    assert restraint.admit("reset", 100.0 + REFILL) == 1000
    assert restraint.admit("reset", 100.0 + REFILL) is None


def test_one_kind_does_not_silence_another() -> None:
    restraint = Restraint()
    while restraint.admit("reset", 100.0) is not None:
        pass

    assert restraint.admit("paused", 100.0) == 0


def test_a_quiet_hour_earns_no_more_than_a_burst() -> None:
    restraint = Restraint()
    while restraint.admit("reset", 100.0) is not None:
        pass

    told = [restraint.admit("reset", 3700.0) for _ in range(BURST + 1)]
    assert told == [1, *[0] * (BURST - 1), None]
