"""How answers are written: tables, JSON, YAML, names, colours and ages."""

import json
import os
import sys
import unicodedata
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TypeVar

import click

FORMATS = ("table", "wide", "json", "yaml", "name")

T = TypeVar("T", bound=Callable[..., object])

_COLOURS = {
    "running": "green",
    "starting": "cyan",
    "stopping": "cyan",
    "paused": "yellow",
    "waiting": "yellow",
    "backoff": "yellow",
    "failed": "red",
    "invalid": "red",
}


def output_options(command: T) -> T:
    """Add ``-o`` and ``--json``; the verb gets ``output``, one of FORMATS."""
    formats = click.option(
        "-o",
        "--output",
        type=click.Choice(FORMATS),
        default="table",
        show_default=True,
        callback=_prefer_json,
        help="How to write it.",
    )
    as_json = click.option(
        "--json",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_remember_json,
        help="The same as -o json.",
    )
    return formats(as_json(command))


def _remember_json(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    ctx.meta["arcsup.json"] = value


def _prefer_json(ctx: click.Context, _param: click.Parameter, value: str) -> str:
    return "json" if ctx.meta.get("arcsup.json") else value


def print_json(value: object) -> None:
    """Write ``value`` as JSON for people and programs."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def print_json_line(value: object) -> None:
    """Write ``value`` as one line of JSON, at once, for those who read along."""
    print(json.dumps(value, ensure_ascii=False), flush=True)


def print_yaml(value: object) -> None:
    """Write ``value`` as YAML."""
    # Imported here, because it takes as long as everything else in a reading verb.
    import yaml

    print(yaml.safe_dump(value, sort_keys=False, allow_unicode=True), end="")


def print_data(output: str, value: object, names: Sequence[str]) -> bool:
    """Write ``value`` if ``output`` is json, yaml or name; tell whether it was."""
    if output == "json":
        print_json(value)
    elif output == "yaml":
        print_yaml(value)
    elif output == "name":
        for name in names:
            print(name)
    else:
        return False
    return True


def print_table(
    headers: Sequence[str], rows: Sequence[Sequence[str]], *, cut_to: int | None = None
) -> None:
    """Write aligned columns; on a terminal the last column is cut to what is left of the width.

    ``cut_to`` is the width in columns; by default the terminal's, None where there is none.
    Cells that are states get their colour.
    """
    cells = [[plain(cell) for cell in row] for row in (headers, *rows)]
    widths = [max(measure(row[i]) for row in cells) for i in range(len(headers))]
    if cut_to is None and sys.stdout.isatty():
        cut_to = os.get_terminal_size(sys.stdout.fileno()).columns or None
    for row in cells:
        *firsts, last = row
        line = "".join(
            paint_state(cell) + " " * (width - measure(cell) + 3)
            for cell, width in zip(firsts, widths, strict=False)
        )
        left = None if cut_to is None else cut_to - sum(widths[:-1]) - 3 * len(firsts)
        print((line + paint_state(cut(last, left))).rstrip())


def measure(text: str) -> int:
    """Return how many columns ``text`` takes on a terminal."""
    if text.isascii():
        return len(text)
    return sum(
        2 if unicodedata.east_asian_width(character) in "WF" else 1
        for character in text
        if not unicodedata.combining(character)
    )


def cut(text: str, columns: int | None) -> str:
    """Return ``text``, ended with an ellipsis where it is longer than ``columns`` (at least 10)."""
    if columns is None or measure(text) <= max(columns, 10):
        return text
    return text[: max(columns, 10) - 1] + "…"


def plain(text: str) -> str:
    """Return ``text`` without characters that a terminal acts on: messages may quote a guest."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text
    )


def use_colour() -> bool:
    """Tell whether stdout is a terminal that wants colours (https://no-color.org)."""
    wanted = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return wanted and sys.stdout.isatty()


def paint(text: str, colour: str | None) -> str:
    """Return ``text`` in a colour, where colours are wanted."""
    return click.style(text, fg=colour) if colour and use_colour() else text


def paint_state(text: str, shown: str | None = None) -> str:
    """Return ``shown`` (by default the state itself) in the colour of the state ``text``."""
    return paint(shown or text, _COLOURS.get(text))


def parse_time(text: str) -> datetime:
    """Return an RFC 3339 time."""
    return datetime.fromisoformat(text)


def format_age(text: str, now: datetime | None = None) -> str:
    """Return how long ago an RFC 3339 time was: ``45s``, ``3m``, ``5h``, ``12d``."""
    return format_seconds(((now or datetime.now(UTC)) - parse_time(text)).total_seconds())


def format_seconds(seconds: float) -> str:
    """Return a length of time in its largest unit, rounded down; negative ones are 0s."""
    whole = max(int(seconds), 0)
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if whole >= size * (2 if unit != "m" else 1):
            return f"{whole // size}{unit}"
    return f"{whole}s"
