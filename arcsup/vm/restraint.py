"""How often a VM's own words are repeated to whoever follows the events."""

from attrs import define, field

from arcsup.model import Seconds

BURST = 20
"""How many of a kind are told one after the other, as an operator's script may cause them."""

REFILL = Seconds(5.0)
"""After how many seconds one more may be told."""


@define
class _Kind:
    left: float
    at: float
    held_back: int = 0


@define
class Restraint:
    """Counts what one VM says, by kind, and holds back what is too much."""

    _kinds: dict[str, _Kind] = field(factory=dict)

    def admit(self, kind: str, now: float) -> int | None:
        """Return None for what is not to be told; else how many before it were not.

        ``now`` is in seconds on a clock that does not go back; ``kind`` is a word of ours.
        """
        state = self._kinds.setdefault(kind, _Kind(BURST, now))
        state.left = min(BURST, state.left + (now - state.at) / REFILL)
        state.at = now
        if state.left < 1:
            state.held_back += 1
            return None
        state.left -= 1
        held_back, state.held_back = state.held_back, 0
        return held_back
