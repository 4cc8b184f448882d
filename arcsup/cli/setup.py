"""The verb setup: make this host ready for VMs, and take that back."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack

import click

from arcsup.cli.doctor import find_host, root_option
from arcsup.cli.output import output_options, print_data
from arcsup.cli.places import PlaceOptions, place_options
from arcsup.cli.session import Session
from arcsup.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from arcsup.setup.actions import Action
    from arcsup.setup.carry_out import Failed, Kept
    from arcsup.setup.choices import Choices
    from arcsup.setup.host import Host
    from arcsup.setup.steps import SetupPlan


class ActionJson(TypedDict):
    """One thing to do, or done; ``why`` tells what kept it from being taken back."""

    kind: str
    what: str
    why: str


class SetupJson(TypedDict):
    """What setup plans, did or took back; ``notes`` is what only the user can do.

    ``failed`` is what did not work, and is tried again by the next run.
    """

    actions: list[ActionJson]
    kept: list[ActionJson]
    failed: list[ActionJson]
    notes: list[str]


def _take_mib(_ctx: click.Context, _param: click.Parameter, value: str | None) -> int:
    """Return the MiB of a size as VM files have it."""
    from arcsup.spec.units import parse_size

    try:
        return 0 if value is None else parse_size(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


@click.command()
@click.option("--apply", "do_apply", is_flag=True, help="Do what the plan says.")
@click.option("--undo", "do_undo", is_flag=True, help="Take back all that setup did.")
@click.option(
    "--gpu-sharing",
    type=click.Choice(["gvt-g", "sriov"]),
    help="Have Intel's graphics shared: GVT-g to Comet Lake, SR-IOV from Tiger Lake on.",
)
@click.option(
    "--hugepages", callback=_take_mib, metavar="SIZE", help="Set huge pages aside at each boot."
)
@click.option("--resume", "do_resume", is_flag=True, hidden=True)
@root_option
@place_options
@output_options
@click.pass_obj
def setup(
    session: Session,
    do_apply: bool,
    do_undo: bool,
    do_resume: bool,
    gpu_sharing: str | None,
    hugepages: int,
    root: Path | None,
    output: str,
    **options: Unpack[PlaceOptions],
) -> int:
    """Make this host ready for VMs; without --apply, show what that takes.

    As root: packages, directories, configuration, group and user, kernel modules, drivers, the
    IOMMU on the kernel's command line, and the service. As anybody else: what a user may do for a
    session. Only what is missing is done, and nothing that is there is overwritten. After a reboot
    that it asks for, it goes on by itself. --undo takes back exactly what was done, except for what
    others have changed since. A step that fails is told, and the others are done.

    A vendor's driver package in /var/lib/arcsup/vendor (NVIDIA's vGPU host driver, AMD's GIM,
    i915-sriov-dkms) is installed too, by its own installer or the package manager, and signed for
    Secure Boot.

    \b
    Example:
      arcsup setup
      sudo arcsup setup --apply
    """
    from arcsup.setup.choices import Choices, GpuSharing
    from arcsup.setup.lock import hold_setup

    if do_apply and do_undo:
        raise UsageError("--apply and --undo do not go together")
    host = find_host(session, root, **options)
    choices = Choices(GpuSharing(gpu_sharing) if gpu_sharing else None, hugepages)
    if not (do_undo or do_apply or do_resume):
        return _show(host, output, choices)
    with hold_setup(host):
        if do_undo:
            return _undo(host, output)
        return _apply(host, output, choices, resumed=do_resume)


def _show(host: "Host", output: str, choices: "Choices") -> int:
    from arcsup.setup.carry_out import journal_of, list_pending
    from arcsup.setup.plan import plan_setup

    plan = plan_setup(host, find_arcsup(host), choices)
    journal = journal_of(host)
    unfinished = [entry.action for entry in journal.entries if not entry.done]
    told = _as_json(plan)
    told["actions"] = [
        _action_as_json(action, again=action in unfinished)
        for action in (*list_pending(journal), *plan.actions)
    ]
    if not _print(output, told):
        for number, action in enumerate(told["actions"], 1):
            print(f"{number:3}. {action['what']}")
        if told["actions"]:
            print("nothing was changed; `arcsup setup --apply` does it", file=sys.stderr)
        _tell_rest(told)
    return ExitCode.OK


def _apply(host: "Host", output: str, choices: "Choices", *, resumed: bool) -> int:
    from arcsup.setup.carry_out import apply_all, finish, journal_of
    from arcsup.setup.plan import plan_setup
    from arcsup.setup.resume import end_resume

    journal = journal_of(host)
    failed = finish(host, journal, _tell)
    if resumed:
        # It runs once: what needs yet another reboot asks for it by itself.
        end_resume(host, journal, _tell)
    plan = plan_setup(host, find_arcsup(host), choices)
    failed += apply_all(host, journal, plan.actions, _tell)
    told = _as_json(plan)
    told["failed"] = [_left_as_json(item) for item in failed]
    if not _print(output, told):
        _tell_rest(told)
        _tell_failed(told, "`arcsup setup --apply` tries again")
    return ExitCode.FAILED if failed else ExitCode.OK


def _undo(host: "Host", output: str) -> int:
    from arcsup.setup.carry_out import Failed, journal_of, undo_all

    journal = journal_of(host)
    actions = [entry.action for entry in reversed(journal.entries)]
    left = list(undo_all(host, journal, _tell))
    stay = {id(item.action) for item in left} | {id(entry.action) for entry in journal.entries}
    told: SetupJson = {
        "actions": [_action_as_json(action) for action in actions if id(action) not in stay],
        "kept": [_left_as_json(item) for item in left if not isinstance(item, Failed)],
        "failed": [_left_as_json(item) for item in left if isinstance(item, Failed)],
        "notes": [],
    }
    if not _print(output, told):
        if not actions:
            print("setup has done nothing here", file=sys.stderr)
        for item in told["kept"]:
            print(f"kept: {item['what']}: {item['why']}")
        _tell_failed(told, f"`arcsup setup --undo` tries again; remove {journal.file} to give up")
    return ExitCode.FAILED if told["failed"] else ExitCode.OK


def find_arcsup(host: "Host") -> Path:
    """Return the program that the service is to start, as a path of that host."""
    running = Path(sys.argv[0])
    if host.is_this and running.name in {"arcsup", "arcd"} and running.is_file():
        return running.absolute().with_name("arcsup")
    found = host.find_program("arcsup")
    return Path("/usr/bin/arcsup") if found is None else Path(host.tell(found))


def _as_json(plan: "SetupPlan") -> SetupJson:
    return {
        "actions": [_action_as_json(action) for action in plan.actions],
        "kept": [],
        "failed": [],
        "notes": list(plan.notes),
    }


def _action_as_json(action: "Action", *, again: bool = False) -> ActionJson:
    what, why = (f"{action} (again)", "it did not end") if again else (str(action), "")
    return {"kind": type(action).__name__, "what": what, "why": why}


def _left_as_json(item: "Kept | Failed") -> ActionJson:
    return {"kind": type(item.action).__name__, "what": str(item.action), "why": item.why}


def _print(output: str, told: SetupJson) -> bool:
    return print_data(output, told, [action["kind"] for action in told["actions"]])


def _tell(what: str) -> None:
    print(f"setup: {what}", file=sys.stderr)


def _tell_failed(told: SetupJson, hint: str) -> None:
    for item in told["failed"]:
        print(f"failed: {item['what']}: {item['why']}")
    if told["failed"]:
        print(hint, file=sys.stderr)


def _tell_rest(told: SetupJson) -> None:
    if not told["actions"]:
        print("nothing is missing that setup can do", file=sys.stderr)
    for note in told["notes"]:
        print(f"  → {note}")
