"""Verbs that speak to a VM's monitor: qmp and screenshot."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import click

from arcsup.cli.output import print_json
from arcsup.cli.session import Session, name_argument
from arcsup.control.client import vm_path
from arcsup.errors import ArcsupError, ExitCode, UsageError


@click.command()
@name_argument
@click.argument("command")
@click.argument("arguments", metavar="[JSON]", default="{}")
@click.pass_obj
def qmp(session: Session, name: str, command: str, arguments: str) -> int:
    """Run a QMP command and print what QEMU returns.

    What is returned is JSON. The argument JSON is the object of the command's arguments.

    \b
    Example:
      arcsup qmp web query-status
      arcsup qmp web human-monitor-command '{"command-line": "info qtree"}'
    """
    body = {"execute": command, "arguments": _parse_object(arguments)}
    print_json(session.client.post(vm_path(name, "qmp"), body)["return"])
    return ExitCode.OK


def _parse_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UsageError(f"the arguments are not JSON: {error}") from None
    if not isinstance(value, dict):
        raise UsageError(f"the arguments must be a JSON object, got {text[:40]!r}")
    return value


@click.command()
@name_argument
@click.argument(
    "file", type=click.Path(path_type=Path, readable=False, dir_okay=False, allow_dash=True)
)
@click.pass_obj
def screenshot(session: Session, name: str, file: Path) -> int:
    """Write a picture of a VM's first display to FILE.

    It is a PNG; - is stdout.

    \b
    Example:
      arcsup screenshot web web.png
    """
    png = session.client.post_for_bytes(vm_path(name, "screenshot"))
    if str(file) == "-":
        sys.stdout.buffer.write(png)
        return ExitCode.OK
    # Whole or not at all: somebody may be looking at the last one.
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        partial.write_bytes(png)
        partial.replace(file)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise ArcsupError(f"cannot write {file}: {error.strerror}") from None
    return ExitCode.OK
