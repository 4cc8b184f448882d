"""The verb that makes native files of other systems': import. Needs no daemon."""

import os
import sys
from contextlib import suppress
from pathlib import Path
from tempfile import NamedTemporaryFile

import click

from arcsup.cli.operate import read_vm_file
from arcsup.errors import ExitCode, NoSuchObject, NotPermitted, Refused, UsageError

FORMS = ("libvfio", "libvirt", "proxmox")


@click.command("import")
@click.argument("file", type=click.Path(path_type=Path, readable=False), metavar="FILE")
@click.option(
    "-o",
    "--output",
    metavar="OUT",
    default="-",
    show_default=True,
    help="The file to write; - is standard output.",
)
@click.option("--from", "form", type=click.Choice(FORMS), help="Whose file it is; else found out.")
@click.option("--force", is_flag=True, help="Replace OUT if it is there.")
def import_(file: Path, output: str, form: str | None, force: bool) -> int:
    """Write another system's VM as a native VM file.

    FILE is a VM file of LibVF.IO, a domain XML of libvirt (virsh dumpxml) or a qm.conf of
    Proxmox VE. What is not as it was there is told on stderr and in the file; comments are kept.

    \b
    Example:
      arcsup import windows.yaml -o vms/windows.yaml
      virsh dumpxml web > web.xml && arcsup import web.xml
    """
    from arcsup.spec.imported import Form, import_vm

    imported = import_vm(read_vm_file(file), file, Form(form) if form else None)
    if output == "-":
        sys.stdout.write(imported.text)
    else:
        write_whole(Path(output), imported.text, force=force)
        if Path(output).suffix != ".yaml":
            print(f"{output}: the VM directory has files named NAME.yaml only", file=sys.stderr)
    for note in imported.notes:
        print(f"{file}:{note.mark.line}:{note.mark.column}: {note}", file=sys.stderr)
    return ExitCode.OK


def write_whole(out: Path, text: str, *, force: bool) -> None:
    """Write a file whole or not at all; the daemon may be reading its folder.

    Raises Refused when the file is there and ``force`` is not given.
    """
    try:
        with NamedTemporaryFile(
            "w", dir=out.parent, prefix=".", suffix=".part", encoding="utf-8"
        ) as part:
            part.write(text)
            part.flush()
            os.fchmod(part.fileno(), 0o644)
            _publish(Path(part.name), out, force=force)
    except FileNotFoundError:
        raise NoSuchObject(f"there is no folder {out.parent}") from None
    except PermissionError:
        raise NotPermitted(f"{out}: you may not write there") from None
    except OSError as error:
        raise UsageError(f"{out}: {error.strerror}") from None


def _publish(part: Path, out: Path, *, force: bool) -> None:
    if force:
        spare = part.with_suffix(".new")
        with suppress(FileNotFoundError):
            spare.unlink()
        os.link(part, spare)
        spare.replace(out)
        return
    try:
        # Unlike a rename, a link never replaces what somebody has put there meanwhile.
        os.link(part, out)
    except FileExistsError:
        raise Refused(f"{out} is there already", hint="--force replaces it") from None
