"""The switches of one run: --preinstall, --safe-mode, --disable-gpu."""

from collections.abc import Callable
from typing import TYPE_CHECKING, TypedDict, TypeVar

import click

from arcsup.control.shapes import StartJson

if TYPE_CHECKING:
    from arcsup.plan.mode import Mode

T = TypeVar("T", bound=Callable[..., object])


class ModeOptions(TypedDict):
    """What ``mode_options`` gives a verb."""

    preinstall: bool
    safe_mode: bool
    disable_gpu: bool


_OPTIONS = {
    "--disable-gpu": "Without any of its GPUs.",
    "--safe-mode": "With a plain screen on VNC beside its GPU; no SPICE.",
    "--preinstall": "The same, with the guest-tools ISO in a drive.",
}


def mode_options(command: T) -> T:
    """Add the switches of ModeOptions to a verb."""
    for option, text in _OPTIONS.items():
        command = click.option(option, is_flag=True, help=text)(command)
    return command


def as_json(options: ModeOptions) -> StartJson:
    """Return the switches as the daemon takes them."""
    return {
        "preinstall": options["preinstall"],
        "safeMode": options["safe_mode"],
        "disableGpu": options["disable_gpu"],
    }


def as_mode(options: ModeOptions) -> "Mode":
    """Return the mode that the daemon would make of the switches."""
    from arcsup.control.modes import take_mode

    return take_mode({**as_json(options)})
