"""The verb daemon: the supervisor itself, in the foreground."""

from typing import Unpack

import click

from arcsup.cli.places import PlaceOptions, find_places, place_options
from arcsup.cli.session import Session
from arcsup.errors import ArcsupError


@click.command()
@place_options
@click.option(
    "--on-exit",
    type=click.Choice(["leave", "stop"]),
    help="What becomes of running VMs when the daemon ends.  [default: leave]",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    help="The least important messages that are logged.  [default: info]",
)
@click.pass_obj
def daemon(
    session: Session,
    on_exit: str | None,
    log_level: str | None,
    **options: Unpack[PlaceOptions],
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

    places, settings = find_places(session.run, **options)
    set_up_logging(log_level or settings.log_level)
    try:
        return run_daemon(places=places, config=settings, on_exit=on_exit or settings.on_exit)
    except ExceptionGroup as group:
        error = find_told(group)
        if error is None:
            raise
        raise error from group


def find_told(group: BaseException) -> ArcsupError | None:
    """Return the one error of a group that is meant for people, None if there is anything else."""
    while isinstance(group, BaseExceptionGroup) and len(group.exceptions) == 1:
        group = group.exceptions[0]
    return group if isinstance(group, ArcsupError) else None
