"""The verb gpu types: what can be asked for, and why a VM gets this type and not that one."""

import sys
from pathlib import Path
from typing import Unpack

import click

from arcsup.cli.gpu_look import asks_daemon, client_of, look_at_gpus, look_options, or_dash
from arcsup.cli.operate import is_file, read_vm_file
from arcsup.cli.output import output_options, paint, print_data, print_table
from arcsup.cli.places import PlaceOptions, find_places
from arcsup.cli.session import Session, complete_vm_names
from arcsup.control.client import vm_path
from arcsup.control.shapes import TypeVerdictJson
from arcsup.errors import ExitCode


@click.command()
@click.option(
    "--for",
    "asking",
    metavar="NAME|FILE",
    shell_complete=complete_vm_names,
    help="Say of each why this VM gets it, or not.",
)
@look_options
@output_options
@click.pass_obj
def types(
    session: Session,
    asking: str | None,
    offline: bool,
    output: str,
    **options: Unpack[PlaceOptions],
) -> int:
    """List the vGPU types that can be asked for, and how many of each are left.

    With --for, every card and type is judged for each GPU that a VM asks for, as it is planned
    beside all other VMs; exits with 3 when there is one that it does not get.

    \b
    Example:
      arcsup gpu types -o json
      arcsup gpu types --for ./win11.yaml
    """
    if asking is not None:
        return _explain(session, asking, offline=offline, output=output, options=options)
    seen = look_at_gpus(session, offline=offline, options=options)
    found = [(card, kind) for card in seen["gpus"] for kind in card["types"]]
    if print_data(
        output,
        [{**kind, "card": card["address"]} for card, kind in found],
        list(dict.fromkeys(kind["id"] for _, kind in found)),
    ):
        return ExitCode.OK
    if not found:
        print("no vGPU types: `arcsup gpu list` shows what is there instead", file=sys.stderr)
        return ExitCode.OK
    rows = [
        [
            kind["id"],
            kind["name"],
            _show_memory(kind["vramMiB"]),
            or_dash(kind["available"]),
            or_dash(kind["max"]),
            card["address"],
        ]
        for card, kind in found
    ]
    print_table(["TYPE", "NAME", "MEMORY", "AVAILABLE", "MAX", "GPU"], rows)
    return ExitCode.OK


def _explain(
    session: Session, asking: str, *, offline: bool, output: str, options: PlaceOptions
) -> int:
    verdicts = _find_verdicts(session, asking, offline=offline, options=options)
    chosen = [verdict for verdict in verdicts if verdict["chosen"]]
    slots = {verdict["slot"] for verdict in verdicts}
    code = ExitCode.OK if len(chosen) == len(slots) else ExitCode.NOT_AS_DESIRED
    names = [verdict["type"] or verdict["card"] for verdict in chosen]
    if print_data(output, verdicts, names):
        return code
    if not verdicts:
        print("it asks for no GPU of this host", file=sys.stderr)
        return code
    rows = [
        [
            paint("●", "green") if verdict["chosen"] else " ",
            f"gpus[{verdict['slot']}]",
            verdict["type"] or "-",
            verdict["name"] or "-",
            _show_memory(verdict["vramMiB"]),
            verdict["card"] or "-",
            verdict["why"],
        ]
        for verdict in verdicts
    ]
    print_table(["", "SLOT", "TYPE", "NAME", "MEMORY", "GPU", "WHY"], rows)
    return code


def _find_verdicts(
    session: Session, asking: str, *, offline: bool, options: PlaceOptions
) -> list[TypeVerdictJson]:
    file = Path(asking).absolute() if is_file(asking) else None
    source = read_vm_file(file) if file else ""
    if asks_daemon(offline=offline, options=options):
        client = client_of(session, options)
        if file is None:
            found: list[TypeVerdictJson] = client.get(vm_path(asking, "types"))
        else:
            found = client.post("/v1/gpus/types", {"file": str(file), "source": source})
        return found
    # Only here, because it needs the libraries of the daemon.
    from arcsup.control.gpus import view_verdicts
    from arcsup.offline import explain_file_offline, explain_offline

    places, config = find_places(session.run, **options)
    if file is None:
        return view_verdicts(explain_offline(places, config, asking))
    return view_verdicts(explain_file_offline(places, config, file, source))


def _show_memory(mib: int | None) -> str:
    return "-" if mib is None else f"{mib} MiB"
