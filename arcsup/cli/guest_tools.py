"""The verbs guest-tools list and guest-tools build."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack

import click

from arcsup.cli.image_users import find_images
from arcsup.cli.output import output_options, print_data, print_table
from arcsup.cli.places import PlaceOptions, place_options
from arcsup.cli.progress import showing_progress
from arcsup.cli.session import Session
from arcsup.errors import ExitCode, NotPermitted

if TYPE_CHECKING:
    from arcsup.guest_tools.catalog import Installer

FOLDER = "guest-tools"
"""The folder of installers, beside the images."""


class ToolJson(TypedDict):
    """One tool; ``state`` is missing (``file`` null), verified, unverified or wrong checksum."""

    name: str
    purpose: str
    version: str | None
    url: str
    optional: bool
    file: str | None
    state: str


@click.group("guest-tools", invoke_without_command=True)
@click.pass_context
def guest_tools(ctx: click.Context) -> None:
    """Gather what is installed inside guests in one ISO.

    Drivers, Looking Glass, Scream and agents come from their publishers: put what you downloaded
    into one folder (STATE/guest-tools, or one that you name). A file SHA256SUMS beside them is
    checked. `guestTools: true` in a VM file, or `start --preinstall`, puts the ISO into a drive.

    \b
    Example:
      arcsup guest-tools list
      arcsup guest-tools build ~/Downloads
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        ctx.exit(ExitCode.USAGE)


@guest_tools.command("list")
@click.argument(
    "folder", type=click.Path(path_type=Path, readable=False), required=False, metavar="[FOLDER]"
)
@place_options
@output_options
@click.pass_obj
def list_(
    session: Session, folder: Path | None, output: str, **options: Unpack[PlaceOptions]
) -> int:
    """Say which installers are there, and where the missing ones are to be had.

    An installer is `verified` where its checksum is known and right, `unverified` where nobody
    told one for this version of it.

    \b
    Example:
      arcsup guest-tools list ~/Downloads -o json
    """
    tools = [_show(it) for it in _find(session, folder, options)]
    if print_data(output, tools, [tool["name"] for tool in tools]):
        return ExitCode.OK
    headers = ["TOOL", "STATE", "FILE", "FOR", "WHERE"]
    rows = []
    for tool in tools:
        state = f"{tool['state']} (optional)" if tool["optional"] else tool["state"]
        file = Path(tool["file"]).name if tool["file"] else "-"
        rows.append([tool["name"], state, file, tool["purpose"], tool["url"]])
    if output != "wide":
        headers, rows = [*headers[:3], "WHERE"], [[*row[:3], row[4]] for row in rows]
    print_table(headers, rows)
    return ExitCode.OK


@guest_tools.command()
@click.argument(
    "folder", type=click.Path(path_type=Path, readable=False), required=False, metavar="[FOLDER]"
)
@place_options
@click.pass_obj
def build(session: Session, folder: Path | None, **options: Unpack[PlaceOptions]) -> int:
    """Make STATE/images/guest-tools.iso from a folder of installers.

    It has the installers, and scripts that install all of them without a question: install.cmd
    for Windows, linux/install.sh for Linux. What is missing is told and left out; what has a wrong
    checksum is refused.

    \b
    Example:
      arcsup guest-tools build ~/Downloads
    """
    from arcsup.guest_tools.iso import build_iso
    from arcsup.vm.disks import GUEST_TOOLS

    installers = _find(session, folder, options)
    target = find_images(session, **options) / GUEST_TOOLS
    try:
        with showing_progress(f"writing {target}") as report:
            build_iso(installers, target, report)
    except PermissionError as error:
        raise NotPermitted(f"{error.filename}: you may not write there") from error
    for installer in installers:
        _tell(installer)
    print(target)
    return ExitCode.OK


def _find(session: Session, folder: Path | None, options: PlaceOptions) -> "Sequence[Installer]":
    from arcsup.guest_tools.catalog import find_installers

    folder = folder or find_images(session, **options).parent / FOLDER
    with showing_progress("checking the installers") as report:
        return find_installers(folder, report)


def _tell(installer: "Installer") -> None:
    """Say what is not as one would wish, on stderr."""
    tool = installer.tool
    if installer.file is not None and installer.verdict == "unverified":
        print(
            f"{installer.file}: unverified, nobody told the checksum of this version",
            file=sys.stderr,
        )
    elif installer.file is None and not tool.optional:
        print(f"left out: {tool.name} ({tool.purpose}): {tool.url}", file=sys.stderr)


def _show(installer: "Installer") -> ToolJson:
    tool = installer.tool
    return ToolJson(
        name=tool.name,
        purpose=tool.purpose,
        version=tool.version,
        url=tool.url,
        optional=tool.optional,
        file=None if installer.file is None else str(installer.file),
        state=installer.verdict,
    )
