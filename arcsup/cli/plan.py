"""The verb plan: what the daemon would do next, here or on another host."""

import sys
from pathlib import Path
from typing import Unpack

import click

from arcsup.cli.gpu_look import asks_daemon, client_of, look_options
from arcsup.cli.output import output_options, print_data, print_table
from arcsup.cli.places import PlaceOptions, find_places
from arcsup.cli.session import Session
from arcsup.control.shapes import StepJson
from arcsup.errors import ExitCode, NoSuchObject, NotPermitted, UsageError

_NO_CHANGE = frozenset({"wait", "omit", "warn"})
"""Steps that say what is not done, and why, or what is of no effect."""


@click.command()
@click.option("--detailed-exitcode", is_flag=True, help="Exit with 2 when there are changes.")
@click.option(
    "--inventory",
    type=click.Path(path_type=Path, readable=False),
    metavar="FILE",
    help="Plan for the host of which this is the `arcsup inventory -o json`; - is stdin.",
)
@look_options
@output_options
@click.pass_obj
def plan(
    session: Session,
    detailed_exitcode: bool,
    inventory: Path | None,
    offline: bool,
    output: str,
    **options: Unpack[PlaceOptions],
) -> int:
    """Show what the daemon would do next; nothing is done.

    What cannot be had is there too: `wait` with the reasons of a VM that does not fit, `omit` with
    those of an optional GPU that a VM goes without; neither is a change. `warn` names the line of
    an entry of arcsup.yaml that is of no effect on this host.

    With --offline no daemon is asked: VM files, journal and device tree are read. With --inventory
    the VM files are planned onto another host.

    \b
    Example:
      arcsup plan --detailed-exitcode || echo "there is something to do"
      ssh far arcsup inventory -o json | arcsup plan --inventory - --vms ./vms
    """
    if inventory is not None:
        steps = _plan_for(session, inventory, options)
    elif asks_daemon(offline=offline, options=options):
        steps = client_of(session, options).get("/v1/plan")
    else:
        steps = _plan_offline(session, options)
    if not print_data(output, steps, [step["object"] for step in steps]):
        if steps:
            print_table(
                ["ACTION", "OBJECT", "BECAUSE"],
                [[step["verb"], step["object"], step["because"]] for step in steps],
            )
        else:
            print("nothing to do: all is as desired", file=sys.stderr)
    changes = any(step["verb"] not in _NO_CHANGE for step in steps)
    return ExitCode.USAGE if changes and detailed_exitcode else ExitCode.OK


# The daemon's libraries are imported only where there is no daemon.


def _plan_offline(session: Session, options: PlaceOptions) -> list[StepJson]:
    from arcsup.control.views import view_step
    from arcsup.offline import plan_offline

    places, config = find_places(session.run, **options)
    return [view_step(step) for step in plan_offline(places, config)]


def _plan_for(session: Session, file: Path, options: PlaceOptions) -> list[StepJson]:
    from arcsup.control.inventory_file import read_inventory
    from arcsup.control.views import view_step
    from arcsup.offline import plan_for_host

    if options["sysfs"] is not None:
        raise UsageError("--inventory and --sysfs are two hosts", "leave one of them out")
    places, config = find_places(session.run, **options)
    inventory = read_inventory(_read(file), str(file))
    return [view_step(step) for step in plan_for_host(places, config, inventory)]


def _read(file: Path) -> str:
    try:
        return sys.stdin.read() if str(file) == "-" else file.read_text()
    except FileNotFoundError:
        raise NoSuchObject(f"there is no file {file}") from None
    except PermissionError:
        raise NotPermitted(f"{file}: you may not read it") from None
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{file}: not UTF-8 text, so no inventory") from None
