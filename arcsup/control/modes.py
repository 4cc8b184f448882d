"""The mode of a run, as requests ask for it."""

from typing import Any

from arcsup.errors import UsageError
from arcsup.plan.mode import Mode, Purpose


def take_mode(body: dict[str, Any]) -> Mode:
    """Return the mode that a request's body asks for. Raises UsageError."""
    disable_gpu, safe = _take_flag(body, "disableGpu"), _take_flag(body, "safeMode")
    purpose = Purpose.SAFE if safe else Purpose.NORMAL
    # As in arcd, the guest tools come on top of what the safe mode does.
    if _take_flag(body, "preinstall"):
        purpose = Purpose.PREINSTALL
    return Mode(purpose, disable_gpu)


def _take_flag(body: dict[str, Any], key: str) -> bool:
    value = body.get(key, False)
    if not isinstance(value, bool):
        raise UsageError(f"{key!r} must be true or false, not {type(value).__name__}")
    return value
