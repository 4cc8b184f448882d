"""One figure, what it is compared with in the same run, and what we aim at."""

import math

from attrs import frozen


@frozen
class Measurement:
    """``value`` in ``unit``. ``baseline`` is the same work without arcsup, measured beside it.

    ``aim`` is the most that ``value`` should be (None: only told).
    """

    name: str
    value: float
    unit: str
    aim: float | None = None
    baseline: float | None = None

    def __attrs_post_init__(self) -> None:
        """Refuse what no measurement gives. Raises ValueError."""
        if not 0 <= self.value < math.inf:
            raise ValueError(f"{self.name}: {self.value} {self.unit} was not measured")

    @property
    def met(self) -> bool:
        """Whether the aim was reached."""
        return self.aim is None or self.value <= self.aim
