"""What verbs share: the client, VM names with globs and completion, durations, many VMs at once."""

import re
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Generic, TypeVar

import click
from click.shell_completion import CompletionItem

from arcsup.control.client import Client, find_socket
from arcsup.control.shapes import VmJson
from arcsup.errors import ArcsupError, ExitCode, NoSuchObject, SpecError

T = TypeVar("T")
"""What is gathered for each VM."""


class Session:
    """One call of the command line; ``run`` is the runtime directory that was named, if any."""

    def __init__(self, run: str | None) -> None:
        self.run = run
        self.client = Client(find_socket(run))

    def list_vms(self) -> list[VmJson]:
        """Return all VMs."""
        vms: list[VmJson] = self.client.get("/v1/vms")
        return vms

    def match(self, patterns: Sequence[str]) -> list[str]:
        """Return the names that ``patterns`` (names or globs) mean, each once, in their order.

        A plain name stands for itself, whether it exists or not. Raises NoSuchObject for a glob
        that matches nothing.
        """
        known: list[str] | None = None
        names: dict[str, None] = {}
        for pattern in patterns:
            if not is_glob(pattern):
                names[pattern] = None
                continue
            if known is None:
                known = [vm["name"] for vm in self.list_vms()]
            matched = [name for name in known if fnmatchcase(name, pattern)]
            if not matched:
                raise NoSuchObject(
                    f"no VM matches {pattern!r}", "arcsup list shows those there are"
                )
            names.update(dict.fromkeys(matched))
        return list(names)


def is_glob(pattern: str) -> bool:
    """Tell whether ``pattern`` is a glob rather than a name."""
    return any(character in pattern for character in "*?[")


def complete_vm_names(
    ctx: click.Context, _param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Return the VMs whose names begin so, for the shell; silently none without a daemon."""
    try:
        vms = Session(ctx.find_root().params.get("run")).list_vms()
    except ArcsupError:
        return []
    return [
        CompletionItem(vm["name"], help=vm["state"])
        for vm in vms
        if vm["name"].startswith(incomplete)
    ]


name_argument = click.argument("name", metavar="NAME", shell_complete=complete_vm_names)
names_argument = click.argument(
    "names", nargs=-1, required=True, metavar="NAME...", shell_complete=complete_vm_names
)
optional_names_argument = click.argument(
    "names", nargs=-1, metavar="[NAME]...", shell_complete=complete_vm_names
)

_UNITS = {"ms": 0.001, "": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def take_duration(_ctx: click.Context, _param: click.Parameter, value: str | None) -> float | None:
    """Return the seconds that an option means (30, 30s, 5m, 500ms); a callback for click."""
    if value is None:
        return None
    seconds = parse_duration(value)
    if seconds is None:
        raise click.BadParameter(f"expected a duration such as 30, 30s or 5m, got {value!r}")
    return seconds


def parse_duration(text: str) -> float | None:
    """Return seconds, None where ``text`` is no duration."""
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)(ms|s|m|h|d|)", text, re.ASCII)
    return None if match is None else float(match[1]) * _UNITS[match[2]]


class Outcome(Generic[T]):
    """What came of one VM: ``value``, or ``error``."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.value: T | None = None
        self.error: ArcsupError | None = None


def do_for_each(names: Sequence[str], act: Callable[[str], T]) -> list[Outcome[T]]:
    """Call ``act`` for all names at once and return what came of each, in their order.

    A VM that takes its time to stop does not hold up the others.
    """
    outcomes = [Outcome[T](name) for name in names]

    def do(outcome: Outcome[T]) -> None:
        try:
            outcome.value = act(outcome.name)
        except ArcsupError as error:
            outcome.error = error

    if len(outcomes) == 1:
        do(outcomes[0])
        return outcomes
    # Daemon threads, so that Ctrl-C ends the program at once.
    threads = [threading.Thread(target=do, args=(outcome,), daemon=True) for outcome in outcomes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def worst(codes: Iterable[int]) -> int:
    """Return the exit code for several VMs: the highest is the one that says most."""
    return max(codes, default=ExitCode.OK)


def collect(outcomes: Sequence[Outcome[T]]) -> list[T]:
    """Return what went well."""
    return [outcome.value for outcome in outcomes if outcome.value is not None]


def tell_failures(outcomes: Sequence[Outcome[T]]) -> list[int]:
    """Tell what did not go well, on stderr, and return the exit codes."""
    errors = [outcome.error for outcome in outcomes if outcome.error is not None]
    for error in errors:
        if isinstance(error, SpecError):
            # FILE:LINE:COL at the beginning of a line is what editors jump to.
            print(error.message, file=sys.stderr)
        else:
            tell_error(error.message, error.hint)
    return [error.exit_code for error in errors]


def tell_note(message: str) -> None:
    """Write what is worth knowing of something that was done to stderr."""
    print(f"arcsup: note: {message}", file=sys.stderr)


def tell_error(message: str, hint: str = "") -> None:
    """Write what went wrong, and what to do now, to stderr."""
    print(f"arcsup: {message}", file=sys.stderr)
    if hint:
        print(f"  hint: {hint}", file=sys.stderr)
