"""The verb daemon: the supervisor itself, in the foreground."""

from pathlib import Path

import click

from arcsup.cli.places import find_places, place_options
from arcsup.cli.session import Session


@click.command()
@place_options
@click.option(
    "--on-exit",
    type=click.Choice(["leave", "stop"]),
    default="leave",
    show_default=True,
    help="What becomes of running VMs when the daemon ends.",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    help="How much is logged.",
)
@click.pass_obj
def daemon(
    session: Session,
    config: Path | None,
    vms: Path | None,
    run: Path | None,
    state: Path | None,
    log_dir: Path | None,
    sysfs: Path | None,
    on_exit: str,
    log_level: str,
) -> int:
    """Run the supervisor in the foreground.

    It ends on SIGTERM and Ctrl-C, and reads its files again on SIGHUP. VMs go on running
    without it, and the next daemon takes them over.

    \b
    Example:
      arcsup daemon --vms ./vms --run /tmp/arcsup --on-exit stop
    """
    from arcsup.daemon import run_daemon
    from arcsup.logs import set_up_logging

    named = None if session.run is None else Path(session.run)
    places, settings = find_places(
        config=config, vms=vms, run=run or named, state=state, log_dir=log_dir, sysfs=sysfs
    )
    set_up_logging(log_level)
    return run_daemon(places=places, config=settings, on_exit=on_exit)
