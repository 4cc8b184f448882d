"""The verbs gpu and inventory: what this host has, from its daemon or by looking ourselves."""

import sys
from collections.abc import Sequence
from typing import Unpack

import click

from arcsup.cli.fullness import measure_fullness
from arcsup.cli.gpu_look import look_at_gpus, look_options, or_dash, tell_faults
from arcsup.cli.gpu_slices import adopt, release, unquarantine
from arcsup.cli.gpu_types import types
from arcsup.cli.gpu_views import print_gpu, print_tree
from arcsup.cli.output import output_options, print_data, print_json, print_table, print_yaml
from arcsup.cli.places import PlaceOptions
from arcsup.cli.session import Session
from arcsup.control.shapes import GpuJson
from arcsup.errors import DaemonUnreachable, ExitCode, NoSuchObject


@click.group(invoke_without_command=True)
@click.pass_context
def gpu(ctx: click.Context) -> None:
    """See the host's GPUs, what they offer, what is cut from them, and whose it is.

    A slice is what one GPU request of a VM gets: a mediated device, a vendor's vGPU, a virtual
    function or a whole function. VMs get theirs by themselves; these verbs look, and settle what
    arcsup must not decide alone.

    \b
    Example:
      arcsup gpu list --offline
      arcsup gpu show 41:00.0
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        ctx.exit(ExitCode.USAGE)


for _verb in (types, adopt, release, unquarantine):
    gpu.add_command(_verb)


@gpu.command("list")
@click.option("--tree", is_flag=True, help="Draw it by NUMA node and card.")
@look_options
@output_options
@click.pass_obj
def list_(
    session: Session, tree: bool, offline: bool, output: str, **options: Unpack[PlaceOptions]
) -> int:
    """List GPUs: what each is, what it offers and how full it is.

    Virtual functions are counted with their card. A GPU that VMs cannot use says why; --offline
    looks at the device tree without asking the daemon.

    \b
    Example:
      arcsup gpu list --tree
    """
    seen = look_at_gpus(session, offline=offline, options=options)
    gpus = seen["gpus"]
    if print_data(output, gpus, [gpu["address"] for gpu in gpus]):
        return ExitCode.OK
    if tree:
        print_tree(seen)
    elif gpus:
        headers, rows = tabulate(gpus, wide=output == "wide")
        print_table(headers, rows)
    else:
        print("no GPUs, and nothing else that offers mediated devices", file=sys.stderr)
    tell_faults(seen)
    return ExitCode.OK


def tabulate(gpus: Sequence[GpuJson], *, wide: bool) -> tuple[list[str], list[list[str]]]:
    """Return the headers and rows of ``gpu list``."""
    headers = ["ADDRESS", "NAME", "DRIVER", "NODE", "OFFERS", "FULL"]
    headers += ["IDS", "CLASS", "GROUP", "VFS", "RULE"] if wide else []
    rows = []
    for card in gpus:
        full = measure_fullness(card)
        row = [
            card["address"],
            card["name"],
            card["driver"] or "-",
            or_dash(card["numaNode"]),
            ", ".join(card["backends"]) or "-",
            full.describe() if full else "-",
        ]
        if wide:
            row += [
                f"{card['vendor']}:{card['device']}" if card["vendor"] else "-",
                card["class"] or "-",
                or_dash(card["iommuGroup"]),
                f"{card['vfs']['enabled']} of {card['vfs']['total']}",
                card.get("rule", "-"),
            ]
        state = "usable" if card["usable"] else "not usable"
        rows.append([*row, f"{state}: {card['why']}" if card["why"] else state])
    return [*headers, "STATE"], rows


@gpu.command()
@click.argument("address", metavar="ADDRESS")
@look_options
@output_options
@click.pass_obj
def show(
    session: Session, address: str, offline: bool, output: str, **options: Unpack[PlaceOptions]
) -> int:
    """Show one GPU in full, by its address or that of a VF or slice of it.

    Exits with 4 when there is none of that address.

    \b
    Example:
      arcsup gpu show 0000:41:00.0
    """
    seen = look_at_gpus(session, offline=offline, options=options)
    card = find_card(seen["gpus"], address)
    if not print_data(output, card, [card["address"]]):
        print_gpu(card)
    return ExitCode.OK


@click.command()
@look_options
@output_options
@click.pass_obj
def inventory(session: Session, offline: bool, output: str, **options: Unpack[PlaceOptions]) -> int:
    """Write down all that planning needs to know of this host.

    The daemon is asked where there is one; it knows which slices are whose.

    \b
    Example:
      arcsup inventory -o json > host.json
    """
    try:
        seen = look_at_gpus(session, offline=offline, options=options)
    except DaemonUnreachable:
        seen = look_at_gpus(session, offline=True, options=options)
    if output == "json":
        print_json(seen)
    elif output == "yaml":
        print_yaml(seen)
    elif output == "name":
        print(seen["host"])
    else:
        print_tree(seen)
        tell_faults(seen)
    return ExitCode.OK


def find_card(gpus: Sequence[GpuJson], named: str) -> GpuJson:
    """Return the card with an address, or with a VF or slice of that address or uuid.

    The domain may be left out, or have the eight digits that nvidia-smi writes. NoSuchObject.
    """
    wanted = normalise(named)
    for card in gpus:
        names = [card["address"], *(piece["id"] for piece in card["slices"])]
        names += [function["address"] for function in card["vfs"].get("functions", ())]
        if wanted in names or named in names:
            return card
    raise NoSuchObject(f"there is no GPU {named}", "arcsup gpu list shows those there are")


def normalise(address: str) -> str:
    """Return a PCI address as the kernel writes it; anything else in lower case."""
    address = address.lower()
    domain, _, rest = address.rpartition(":")[0].rpartition(":")
    if address.count(":") == 1:
        return f"0000:{address}"
    if address.count(":") == 2 and len(domain) == 8 and domain.startswith("0000"):
        return f"{domain[4:]}:{rest}:{address.rpartition(':')[2]}"
    return address
