"""No figure of the benchmark can come from something else than what was measured."""

from datetime import UTC, datetime
from typing import Any

import pytest

from tests.bench.measurement import Measurement
from tests.bench.vms import time_since


class Told:
    """A daemon whose VM ran at a known time."""

    def wait_for_event(self, _name: str, _kind: str) -> dict[str, Any]:
        return {"time": datetime.fromtimestamp(1000, UTC).isoformat()}


def test_an_event_of_before_the_deed_is_no_figure() -> None:
    told: Any = Told()
    assert time_since(999.5, told, "web", "running") == 0.5
    with pytest.raises(ValueError, match="too old"):
        time_since(1000.017, told, "web", "running")


@pytest.mark.parametrize("value", [-17.0, float("nan"), float("inf")])
def test_a_figure_that_nothing_can_take_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="was not measured"):
        Measurement("QEMU killed -> running again", value, "ms")
