"""The verbs gpu adopt, release and unquarantine: an operator's word about single slices."""

import sys

import click
from click.shell_completion import CompletionItem

from arcsup.cli.output import output_options, print_data
from arcsup.cli.session import Session, complete_vm_names
from arcsup.control.shapes import InventoryJson
from arcsup.errors import ArcsupError, ExitCode


def _complete_slices(
    ctx: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Return the slices that there are; none when the daemon cannot say."""
    session = Session(ctx.find_root().params.get("run"))
    try:
        seen: InventoryJson = session.client.get("/v1/inventory")
    except ArcsupError:
        return []
    pieces = [piece for card in seen["gpus"] for piece in card["slices"]]
    return [
        CompletionItem(piece["id"], help=piece["vm"] or piece["type"])
        for piece in pieces
        if piece["id"].startswith(incomplete)
    ]


@click.command()
@click.argument("slice_id", metavar="ID", shell_complete=_complete_slices)
@click.option(
    "--vm",
    "name",
    metavar="NAME",
    required=True,
    shell_complete=complete_vm_names,
    help="The VM that gets it.",
)
@click.pass_obj
def adopt(session: Session, slice_id: str, name: str) -> int:
    """Give a VM a slice that somebody else has made.

    ID is a mediated device's uuid, or the address of a function that has a vGPU or is bound to a
    vfio driver; `arcsup gpu list --tree` shows them. Nothing is made or changed: from now on the
    slice is kept for the VM, which starts with it; once it has, the slice counts as made for it
    and is removed when the VM stays down.

    Exits with 4 when there is no such slice or VM, with 6 when the slice is in use or has an
    owner already, the VM is up, or asks for no such slice.

    \b
    Example:
      arcsup gpu adopt 83b8f4f2-509f-382f-3c1e-e6bfe0fa1001 --vm web
    """
    session.client.post("/v1/gpus/adopt", {"id": slice_id.lower(), "vm": name})
    print(f"{slice_id} is {name}'s")
    return ExitCode.OK


@click.command()
@click.argument("slice_id", metavar="ID", shell_complete=_complete_slices)
@click.pass_obj
def release(session: Session, slice_id: str) -> int:
    """Let go of a slice and leave it as it is.

    arcsup never touches it again, nor a device that it cannot give back. The VM that had it gets
    another when it starts. Exits with 4 when arcsup has no such slice, with 6 while a VM uses it.

    \b
    Example:
      arcsup gpu release 83b8f4f2-509f-382f-3c1e-e6bfe0fa1001
    """
    session.client.post("/v1/gpus/release", {"id": slice_id.lower()})
    print(f"{slice_id} is nobody's")
    return ExitCode.OK


@click.command()
@click.argument("slice_id", metavar="[ID]", required=False)
@output_options
@click.pass_obj
def unquarantine(session: Session, slice_id: str | None, output: str) -> int:
    """Try again what failed twice in a row, or was lost.

    ID is a slice, PARENT/TYPE, PARENT for all of its types, or the address of a device that is
    there and lost, after a reset of it that nothing told of. Without it, what is quarantined or
    lost is listed. Exits with 4 when it is neither.

    \b
    Example:
      arcsup gpu unquarantine
      arcsup gpu unquarantine 0000:41:00.0
      arcsup gpu unquarantine 0000:41:00.0/nvidia-64
    """
    if slice_id is None:
        found: list[str] = session.client.get("/v1/gpus/quarantine")
        nothing = "nothing is quarantined"
    else:
        found = session.client.post("/v1/gpus/unquarantine", {"id": slice_id})
        nothing = ""
    if not print_data(output, found, found):
        print("\n".join(found) if found else nothing, file=sys.stdout if found else sys.stderr)
    return ExitCode.OK
