"""Reading verbs: list, status, show, why."""

import sys
from collections.abc import Sequence

import click

from arcsup.cli.output import (
    format_age,
    output_options,
    print_data,
    print_table,
    print_yaml,
)
from arcsup.cli.session import (
    Session,
    collect,
    do_for_each,
    is_glob,
    name_argument,
    names_argument,
    optional_names_argument,
    tell_failures,
    worst,
)
from arcsup.cli.status import print_report, print_status, print_why
from arcsup.control.client import vm_path
from arcsup.control.shapes import (
    ReportJson,
    SliceJson,
    StatusJson,
    VmJson,
    WhyJson,
)
from arcsup.errors import ExitCode, NoSuchObject


@click.command("list")
@optional_names_argument
@output_options
@click.pass_obj
def list_(session: Session, names: tuple[str, ...], output: str) -> int:
    """List VMs and their states.

    NAME may be a glob. Also called ls and ps.

    \b
    Example:
      arcsup list 'web-*' -o wide
    """
    vms = session.list_vms()
    if names:
        wanted = set(session.match(names))
        missing = wanted - {vm["name"] for vm in vms}
        if missing:
            raise NoSuchObject(
                f"there is no VM {min(missing)}", "arcsup list shows those there are"
            )
        vms = [vm for vm in vms if vm["name"] in wanted]
    if print_data(output, vms, [vm["name"] for vm in vms]):
        return ExitCode.OK
    if not vms:
        print("no VMs; put a VM file into the VM directory", file=sys.stderr)
        return ExitCode.OK
    headers, rows = tabulate(vms, wide=output == "wide")
    print_table(headers, rows)
    return ExitCode.OK


def tabulate(vms: Sequence[VmJson], *, wide: bool) -> tuple[list[str], list[list[str]]]:
    """Return the headers and rows of ``list``."""
    headers = ["NAME", "STATE", "AGE", "PID", "RESTARTS", "GPU"]
    headers += ["PENDING", "FILE", "REASON"] if wide else ["REASON"]
    rows = []
    for vm in vms:
        row = [
            vm["name"],
            vm["state"],
            format_age(vm["since"]),
            "-" if vm["pid"] is None else str(vm["pid"]),
            str(vm["restarts"]),
            ", ".join(describe_gpu(gpu) for gpu in vm["gpus"]) or "-",
        ]
        if wide:
            row += ["yes" if vm["pending"] else "no", vm["file"]]
        pending = "its file has changed: restart applies it" if vm["pending"] else ""
        notes = [vm["reason"] or pending, describe_mode(vm)]
        rows.append([*row, "; ".join(note for note in notes if note) or "-"])
    return headers, rows


def describe_mode(vm: VmJson) -> str:
    """Return how a VM's run differs from what its file asks for, "" where it does not."""
    return f"mode: {', '.join(vm['mode'])}" if vm["mode"] else ""


def describe_gpu(gpu: SliceJson) -> str:
    """Return the type of a GPU slice and its video memory."""
    memory = "" if gpu["vramMiB"] is None else f" ({gpu['vramMiB']} MiB)"
    return f"{gpu['type'] or gpu['kind']}{memory}"


@click.command()
@optional_names_argument
@output_options
@click.pass_obj
def status(session: Session, names: tuple[str, ...], output: str) -> int:
    """Show a VM in full: process, sockets, conditions, last events.

    Exits with 3 when a VM is not running. Without NAME the daemon itself is shown.

    \b
    Example:
      arcsup status web
    """
    if not names:
        report: ReportJson = session.client.get("/v1/daemon")
        if not print_data(output, report, ["arcsup"]):
            print_report(report, session.list_vms())
        return ExitCode.OK
    outcomes = do_for_each(session.match(names), lambda name: _get_status(session, name))
    found = collect(outcomes)
    single = len(names) == 1 and not is_glob(names[0])
    if found and not print_data(
        output, found[0] if single else found, [vm["name"] for vm in found]
    ):
        for number, vm in enumerate(found):
            if number:
                print()
            print_status(vm, wide=output == "wide")
    codes = [ExitCode.OK if vm["state"] == "running" else ExitCode.NOT_AS_DESIRED for vm in found]
    return worst([*codes, *tell_failures(outcomes)])


def _get_status(session: Session, name: str) -> StatusJson:
    vm: StatusJson = session.client.get(vm_path(name))
    return vm


@click.command()
@name_argument
@output_options
@click.pass_obj
def show(session: Session, name: str, output: str) -> int:
    """Show what a VM's file asks for, with every default filled in.

    That is the file's last version without faults, as arcsup understands it: the keys of a native
    file also where it is one of LibVF.IO. A VM that runs may still have an earlier one, or be in
    another mode; `arcsup status` tells, and `arcsup qemu` shows the command line.

    \b
    Example:
      arcsup show web > copy.yaml
    """
    definition = session.client.get(vm_path(name, "definition"))
    if not print_data(output, definition, [name]):
        print_yaml(definition)
    return ExitCode.OK


@click.command()
@names_argument
@output_options
@click.pass_obj
def why(session: Session, names: tuple[str, ...], output: str) -> int:
    """Tell why a VM is not as desired, and what happens next.

    Exits with 3 when it is not as desired.

    \b
    Example:
      arcsup why web
    """
    outcomes = do_for_each(session.match(names), lambda name: _get_why(session, name))
    found = collect(outcomes)
    single = len(names) == 1 and not is_glob(names[0])
    if found and not print_data(
        output, found[0] if single else found, [answer["name"] for answer in found]
    ):
        for answer in found:
            print_why(answer)
    codes = [ExitCode.OK if answer["asDesired"] else ExitCode.NOT_AS_DESIRED for answer in found]
    return worst([*codes, *tell_failures(outcomes)])


def _get_why(session: Session, name: str) -> WhyJson:
    answer: WhyJson = session.client.get(vm_path(name, "why"))
    return answer
