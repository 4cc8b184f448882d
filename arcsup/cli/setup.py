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
    from arcsup.setup.carry_out import Kept
    from arcsup.setup.host import Host
    from arcsup.setup.plan import SetupPlan


class ActionJson(TypedDict):
    """One thing to do, or done; ``why`` tells what kept it from being taken back."""

    kind: str
    what: str
    why: str


class SetupJson(TypedDict):
    """What setup plans, did or took back; ``notes`` is what only the user can do."""

    actions: list[ActionJson]
    kept: list[ActionJson]
    notes: list[str]


@click.command()
@click.option("--apply", "do_apply", is_flag=True, help="Do what the plan says.")
@click.option("--undo", "do_undo", is_flag=True, help="Take back all that setup did.")
@root_option
@place_options
@output_options
@click.pass_obj
def setup(
    session: Session,
    do_apply: bool,
    do_undo: bool,
    root: Path | None,
    output: str,
    **options: Unpack[PlaceOptions],
) -> int:
    """Make this host ready for VMs; without --apply, show what that takes.

    As root: packages, directories, configuration, group, kernel modules, the IOMMU on the
    kernel's command line, and the service. As anybody else: what a user may do for a session.
    Only what is missing is done, and nothing that is there is overwritten. --undo takes back
    exactly what was done, except for what others have changed since.

    \b
    Example:
      arcsup setup
      sudo arcsup setup --apply
    """
    if do_apply and do_undo:
        raise UsageError("--apply and --undo do not go together")
    host = find_host(session, root, **options)
    if do_undo:
        return _undo(host, output)
    return _apply(host, output) if do_apply else _show(host, output)


def _show(host: "Host", output: str) -> int:
    from arcsup.setup.carry_out import journal_of
    from arcsup.setup.plan import plan_setup

    plan = plan_setup(host, find_arcsup(host))
    pending = [entry.action for entry in journal_of(host).entries if not entry.done]
    told = _as_json(plan)
    again: list[ActionJson] = [
        {"kind": type(action).__name__, "what": f"{action} (again)", "why": "it did not end"}
        for action in pending
    ]
    told["actions"] = again + told["actions"]
    if not _print(output, told):
        for number, action in enumerate(told["actions"], 1):
            print(f"{number:3}. {action['what']}")
        if told["actions"]:
            print("nothing was changed; `arcsup setup --apply` does it", file=sys.stderr)
        _tell_rest(told)
    return ExitCode.OK


def _apply(host: "Host", output: str) -> int:
    from arcsup.setup.carry_out import apply_all, finish, journal_of
    from arcsup.setup.plan import plan_setup

    journal = journal_of(host)
    finish(host, journal, _tell)
    plan = plan_setup(host, find_arcsup(host))
    apply_all(host, journal, plan.actions, _tell)
    told = _as_json(plan)
    if not _print(output, told):
        _tell_rest(told)
    return ExitCode.OK


def _undo(host: "Host", output: str) -> int:
    from arcsup.setup.carry_out import journal_of, undo_all

    journal = journal_of(host)
    actions = [entry.action for entry in reversed(journal.entries)]
    kept = list(undo_all(host, journal, _tell))
    left = {id(item.action) for item in kept}
    told: SetupJson = {
        "actions": [
            {"kind": type(action).__name__, "what": str(action), "why": ""}
            for action in actions
            if id(action) not in left
        ],
        "kept": [_kept_as_json(item) for item in kept],
        "notes": [],
    }
    if not _print(output, told):
        if not actions:
            print("setup has done nothing here", file=sys.stderr)
        for item in told["kept"]:
            print(f"kept: {item['what']}: {item['why']}")
    return ExitCode.OK


def find_arcsup(host: "Host") -> Path:
    """Return the program that the service is to start, as a path of that host."""
    running = Path(sys.argv[0])
    if host.is_this and running.name in {"arcsup", "arcd"} and running.is_file():
        return running.absolute().with_name("arcsup")
    found = host.find_program("arcsup")
    return Path("/usr/bin/arcsup") if found is None else Path(host.tell(found))


def _as_json(plan: "SetupPlan") -> SetupJson:
    return {
        "actions": [
            {"kind": type(action).__name__, "what": str(action), "why": ""}
            for action in plan.actions
        ],
        "kept": [],
        "notes": list(plan.notes),
    }


def _kept_as_json(kept: "Kept") -> ActionJson:
    return {"kind": type(kept.action).__name__, "what": str(kept.action), "why": kept.why}


def _print(output: str, told: SetupJson) -> bool:
    return print_data(output, told, [action["kind"] for action in told["actions"]])


def _tell(what: str) -> None:
    print(f"setup: {what}", file=sys.stderr)


def _tell_rest(told: SetupJson) -> None:
    if not told["actions"]:
        print("nothing is missing that setup can do", file=sys.stderr)
    for note in told["notes"]:
        print(f"  → {note}")
