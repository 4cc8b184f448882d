"""The verb events: what happened, and what happens."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import click

from arcsup.cli.output import (
    output_options,
    parse_time,
    plain,
    print_data,
    print_json_line,
    print_table,
)
from arcsup.cli.session import Session, optional_names_argument, parse_duration
from arcsup.cli.status import format_clock
from arcsup.control.shapes import EventJson
from arcsup.errors import DaemonUnreachable, ExitCode


def _take_since(
    _ctx: click.Context, _param: click.Parameter, value: str | None
) -> datetime | int | None:
    """Return the number of an event or the time that ``--since`` means."""
    if value is None or (value.isascii() and value.isdigit() and len(value) <= 18):
        return None if value is None else int(value)
    seconds = parse_duration(value)
    if seconds is not None:
        return datetime.now(UTC) - timedelta(seconds=seconds)
    try:
        return parse_time(value).astimezone(UTC)
    except ValueError:
        raise click.BadParameter(
            f"expected 10m, 2026-03-01T12:00:00Z or the number of an event, got {value!r}"
        ) from None


@click.command()
@optional_names_argument
@click.option("-f", "--follow", is_flag=True, help="Go on with new events until Ctrl-C.")
@click.option(
    "--since",
    metavar="WHEN",
    callback=_take_since,
    help="Only later ones: 10m, a time, or the number of an event.",
)
@output_options
@click.pass_obj
def events(
    session: Session,
    names: tuple[str, ...],
    follow: bool,
    since: datetime | int | None,
    output: str,
) -> int:
    """Show what happened to VMs and the host, oldest first.

    With -f JSON is written as one object per line.

    \b
    Example:
      arcsup events -f web
    """
    wanted = set(session.match(names))
    chosen = _read(session, wanted, since, follow=follow)
    if not follow:
        found = list(chosen)
        if not print_data(output, found, [event["vm"] or "" for event in found]):
            print_table(["TIME", "VM", "KIND", "MESSAGE"], [_make_row(event) for event in found])
        return ExitCode.OK
    for event in chosen:
        _print_now(event, output)
    raise DaemonUnreachable("the daemon has ended", "run it again when the daemon is back")


def _read(
    session: Session, names: set[str], since: datetime | int | None, *, follow: bool
) -> Iterator[EventJson]:
    query = {"follow": "1" if follow else "0"}
    if isinstance(since, int):
        query["since"] = str(since)
    if len(names) == 1:
        query["vm"] = next(iter(names))
    for _number, event in session.client.stream("/v1/events", query):
        late = not isinstance(since, datetime) or parse_time(event["time"]) >= since
        if late and (not names or event["vm"] in names):
            yield event


def _print_now(event: EventJson, output: str) -> None:
    if output == "json":
        print_json_line(event)
    elif output == "yaml":
        print("---")
        print_data(output, event, [])
    elif output == "name":
        print(event["vm"] or "", flush=True)
    else:
        time, vm, kind, message = _make_row(event)
        print(f"{time}  {vm:<20} {kind:<14} {plain(message)}", flush=True)


def _make_row(event: EventJson) -> list[str]:
    return [format_clock(event["time"]), event["vm"] or "-", event["kind"], event["message"]]
