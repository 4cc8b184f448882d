"""The mode of a run, as requests ask for it."""

from typing import Any

from arcsup.control.requests import take_object
from arcsup.errors import UsageError
from arcsup.model import MiB
from arcsup.plan.mode import Mode, Purpose
from arcsup.spec.units import LARGEST_SIZE


def take_mode(body: dict[str, Any]) -> Mode:
    """Return the mode that a request's body asks for. Raises UsageError."""
    disable_gpu, safe = _take_flag(body, "disableGpu"), _take_flag(body, "safeMode")
    purpose = Purpose.SAFE if safe else Purpose.NORMAL
    # As in arcd, the guest tools come on top of what the safe mode does.
    if _take_flag(body, "preinstall"):
        purpose = Purpose.PREINSTALL
    if "install" not in body:
        return Mode(purpose, disable_gpu)
    if purpose is not Purpose.NORMAL:
        raise UsageError("'install' goes with neither 'preinstall' nor 'safeMode'")
    return _take_installation(take_object(body, "install"))


def _take_installation(install: dict[str, Any]) -> Mode:
    media, size = install.get("media"), install.get("sizeMiB")
    if not isinstance(media, list) or not media:
        raise UsageError("'install.media' must be a list of ISO images, the installer's first")
    for medium in media:
        if not isinstance(medium, str) or not medium.startswith("/"):
            raise UsageError(f"'install.media' must be absolute paths, got {str(medium)[:80]!r}")
    # True is an int in Python, and no size.
    if type(size) is not int or not 0 < size <= LARGEST_SIZE:
        raise UsageError(f"'install.sizeMiB' must be 1 to {LARGEST_SIZE}")
    return Mode(Purpose.CREATE, media=tuple(media), disk_mib=MiB(size))


def _take_flag(body: dict[str, Any], key: str) -> bool:
    value = body.get(key, False)
    if not isinstance(value, bool):
        raise UsageError(f"{key!r} must be true or false, not {type(value).__name__}")
    return value
