"""Where things live, for verbs that work without a daemon: options, then the configuration."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from arcsup.places import Places

if TYPE_CHECKING:
    from arcsup.spec.config import Config

T = TypeVar("T", bound=Callable[..., object])

_DIRECTORIES = {
    "--sysfs": "The kernel's device tree.",
    "--log-dir": "Logs of each VM.",
    "--state": "Images, the operator's intent, the ownership journal.",
    "--run": "Sockets and runtime folders.",
    "--vms": "VM files, one NAME.yaml each.",
    "--config": "The configuration file.",
}


def place_options(command: T) -> T:
    """Add an option for each place; the verb gets them by name, None where not given."""
    for option, text in _DIRECTORIES.items():
        metavar = "FILE" if option == "--config" else "DIR"
        command = click.option(option, type=click.Path(path_type=Path), metavar=metavar, help=text)(
            command
        )
    return command


def find_places(
    *,
    config: Path | None,
    vms: Path | None,
    run: Path | None,
    state: Path | None,
    log_dir: Path | None,
    sysfs: Path | None,
) -> tuple[Places, "Config"]:
    """Return the places and the configuration: an option beats the file, the file the default.

    Every path is made absolute. Raises SpecError for a faulty configuration, NoSuchObject for one
    that was named and is not there.
    """
    from arcsup.spec.config import read_config

    default = Places.default()
    file = (config or default.config).absolute()
    settings = read_config(file, required=config is not None)
    places = replace(
        default,
        config=file,
        vms=_choose(vms, settings.vm_dir, default.vms),
        run=_choose(run, settings.runtime_dir, default.run),
        state=_choose(state, settings.state_dir, default.state),
        log=_choose(log_dir, settings.log_dir, default.log),
        sysfs=_choose(sysfs, settings.sysfs_root, default.sysfs),
    )
    return places, settings


def _choose(option: Path | None, setting: Path | None, default: Path) -> Path:
    return (option or setting or default).absolute()
