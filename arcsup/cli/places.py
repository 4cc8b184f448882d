"""Where things live, for verbs that work without a daemon: options, then the configuration."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, TypeVar, Unpack

import click

from arcsup.errors import DaemonUnreachable, NoSuchObject
from arcsup.places import Places

if TYPE_CHECKING:
    from arcsup.cli.session import Session
    from arcsup.control.shapes import ReportJson
    from arcsup.spec.config import Config

T = TypeVar("T", bound=Callable[..., object])


class PlaceOptions(TypedDict):
    """What ``place_options`` gives a verb: the options by name, None where not given."""

    config: Path | None
    vms: Path | None
    run: Path | None
    state: Path | None
    log_dir: Path | None
    sysfs: Path | None


_OPTIONS = {
    "--sysfs": ("DIR", "The kernel's device tree."),
    "--log-dir": ("DIR", "Logs of each VM."),
    "--state": ("DIR", "Images, the operator's intent, the ownership journal."),
    "--run": ("DIR", "Sockets and runtime folders."),
    "--vms": ("DIR", "VM files, one NAME.yaml each."),
    "--config": ("FILE", "The configuration file."),
}


def place_options(command: T) -> T:
    """Add the options of PlaceOptions to a verb."""
    for option, (metavar, text) in _OPTIONS.items():
        path = click.Path(path_type=Path, readable=False)
        command = click.option(option, type=path, metavar=metavar, help=text)(command)
    return command


def find_places(named_run: str | None, **options: Unpack[PlaceOptions]) -> tuple[Places, "Config"]:
    """Return the places and the configuration: an option beats the file, the file the default.

    ``named_run`` is what stood before the verb. Every path is made absolute. Raises SpecError for
    a faulty configuration, NoSuchObject for one that was named and is not there.
    """
    from arcsup.spec.config import load_config

    default = Places.default()
    file = (options["config"] or default.config).absolute()
    if options["config"] and not file.exists():
        raise NoSuchObject(f"there is no configuration file {file}")
    settings = load_config(file)
    run = options["run"] or (Path(named_run) if named_run else None)
    places = replace(
        default,
        config=file,
        vms=_choose(options["vms"], settings.vm_dir, default.vms),
        run=_choose(run, settings.runtime_dir, default.run),
        state=_choose(options["state"], settings.state_dir, default.state),
        log=_choose(options["log_dir"], settings.log_dir, default.log),
        sysfs=_choose(options["sysfs"], settings.sysfs_root, default.sysfs),
    )
    return places, settings


def as_daemon_has_them(session: "Session", options: PlaceOptions) -> PlaceOptions:
    """Return the options with what was not given as the running daemon has it, if one runs."""
    try:
        report: ReportJson = session.client.get("/v1/daemon")
    except DaemonUnreachable:
        return options
    told = {name: Path(path) for name, path in report["places"].items()}
    config = told["config"] if told["config"].exists() else None
    return PlaceOptions(
        config=options["config"] or config,
        vms=options["vms"] or told["vms"],
        run=options["run"] or told["run"],
        state=options["state"] or told["state"],
        log_dir=options["log_dir"] or told["log"],
        sysfs=options["sysfs"] or told["sysfs"],
    )


def _choose(option: Path | None, setting: Path | None, default: Path) -> Path:
    return (option or setting or default).absolute()
