"""Verbs about VM files, which need no daemon: check, qemu, schema."""

import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack

import click

from arcsup.cli.modes import as_mode, mode_options
from arcsup.cli.operate import is_file, read_vm_file
from arcsup.cli.output import output_options, print_data, print_json
from arcsup.cli.places import PlaceOptions, as_daemon_has_them, find_places, place_options
from arcsup.cli.session import Session, complete_vm_names, tell_error
from arcsup.control.client import vm_path
from arcsup.errors import (
    DaemonUnreachable,
    ExitCode,
    NoSuchObject,
    NotPermitted,
    Terminal,
    Transient,
)
from arcsup.places import Places

if TYPE_CHECKING:
    from arcsup.model import Vm
    from arcsup.spec.config import Config
    from arcsup.spec.faults import Fault
    from arcsup.vm.preview import Preview


class Finding(TypedDict):
    """One thing that ``check`` has to say; ``severity`` is fault or warning."""

    file: str
    line: int
    column: int
    path: str
    message: str
    severity: str


@click.command()
@click.argument(
    "paths", nargs=-1, type=click.Path(path_type=Path, readable=False), metavar="[PATH]..."
)
@place_options
@output_options
@click.pass_obj
def check(
    session: Session, paths: tuple[Path, ...], output: str, **options: Unpack[PlaceOptions]
) -> int:
    """Look for faults in VM files; needs no daemon.

    PATH is a VM file or a directory of them; without one, the VM directory and the configuration
    are checked. Each fault is a line FILE:LINE:COL: PATH: what is wrong, what is expected. Exits
    with 1 when there are any. Warnings are about what a start would refuse or change here, such
    as images that are outside of STATE/images and imageDirs where the daemon is root, and about
    entries of the configuration that are of no effect on this host.

    \b
    Example:
      arcsup check examples/*.yaml
    """
    places, config = find_places(session.run, **options)
    findings = list(_check(places, paths, config.image_dirs))
    if not paths:
        findings += _check_configuration(places, config)
    faults = [finding for finding in findings if finding["severity"] == "fault"]
    files = list(dict.fromkeys(finding["file"] for finding in findings))
    if not print_data(output, findings, files):
        for finding in findings:
            print(_format(finding))
        if not faults:
            print("no faults", file=sys.stderr)
    return ExitCode.FAILED if faults else ExitCode.OK


def _check(places: Places, paths: Sequence[Path], image_dirs: Sequence[Path]) -> Iterator[Finding]:
    if not paths:
        # The daemon of the system acts only on files that nobody but root can change.
        yield from _check_directory(places, places.vms, image_dirs, system=places.system)
    for path in paths:
        if path.is_dir():
            yield from _check_directory(places, path, image_dirs, system=False)
    yield from _check_files(places, [path for path in paths if not path.is_dir()], image_dirs)


def _check_configuration(places: Places, config: "Config") -> list[Finding]:
    """Warn of entries that count for nothing: who excludes a card must know that it is none."""
    from arcsup.void_entries import find_void_gpus, find_void_usb

    found = find_void_gpus(config, places.config, places.sysfs)
    found += find_void_usb(config, places.config, places.sysfs)
    return [_tell(fault, severity="warning") for fault in found]


def _check_directory(
    places: Places, path: Path, image_dirs: Sequence[Path], *, system: bool
) -> Iterator[Finding]:
    import time

    from arcsup.spec.directory import Circumstances, DirectoryState, read_directory

    # The machine id makes uuids, which are no fault whatever they are; reading it may write it.
    given = Circumstances(machine_id="", images=places.images, system=system)
    snapshot = read_directory(path, None, given, time.time())
    if snapshot.directory is DirectoryState.UNREADABLE and path.is_dir():
        raise NotPermitted(snapshot.reason, "run as root")
    if snapshot.directory is not DirectoryState.PRESENT:
        raise NoSuchObject(snapshot.reason)
    yield from (_tell(fault) for fault in snapshot.findings)
    for entry in snapshot.entries.values():
        yield from (_tell(fault) for fault in entry.faults)
        yield from (_warn(entry.file, warning) for warning in entry.warnings)
        yield from _check_places(entry.file, entry.vm, places, image_dirs)
    for file in snapshot.unsettled:
        yield _warn(file, f"{file}: is being written; check it again")


def _check_files(
    places: Places, paths: Sequence[Path], image_dirs: Sequence[Path]
) -> Iterator[Finding]:
    import os

    from arcsup.spec.native import read_vm
    from arcsup.spec.together import Source, check_together

    texts = {path: read_vm_file(path) for path in paths}
    parsed = {path: read_vm(text, path, "") for path, text in texts.items()}
    sources = [Source(path, vm.name, texts[path], vm.vm) for path, vm in parsed.items()]
    contested = check_together(sources, lambda image: os.path.realpath(places.images / image))
    for path, vm in parsed.items():
        yield from (_tell(fault) for fault in vm.faults or contested.get(path, ()))
        yield from (_warn(path, warning) for warning in vm.warnings)
        yield from _check_places(path, vm.vm, places, image_dirs)


def _check_places(
    file: Path, vm: "Vm | None", places: Places, image_dirs: Sequence[Path]
) -> Iterator[Finding]:
    """Warn of files that a VM of the system's daemon would be refused at its start."""
    from arcsup.vm.outside import warn_of_outside

    if vm is not None and places.system:
        for warning in warn_of_outside(vm, places.images, image_dirs):
            yield _warn(file, warning)


def _tell(fault: "Fault", *, severity: str = "fault") -> Finding:
    return {
        "file": str(fault.file),
        "line": fault.line,
        "column": fault.column,
        "path": fault.path,
        "message": fault.message,
        "severity": severity,
    }


def _warn(file: Path, warning: str) -> Finding:
    message = warning.removeprefix(f"{file}: ")
    return {
        "file": str(file),
        "line": 1,
        "column": 1,
        "path": "",
        "message": message,
        "severity": "warning",
    }


def _format(finding: Finding) -> str:
    where = f"{finding['file']}:{finding['line']}:{finding['column']}"
    words = ["warning" if finding["severity"] == "warning" else "", finding["path"]]
    return ": ".join([where, *(word for word in words if word), finding["message"]])


@click.command()
@click.argument("what", metavar="NAME|FILE", shell_complete=complete_vm_names)
@click.option(
    "-o",
    "--output",
    type=click.Choice(["shell", "argv", "json"]),
    default="shell",
    show_default=True,
    help="Ready to paste, one argument per line, or an array.",
)
@mode_options
@place_options
@click.pass_obj
def qemu(
    session: Session,
    what: str,
    output: str,
    preinstall: bool,
    safe_mode: bool,
    disable_gpu: bool,
    **options: Unpack[PlaceOptions],
) -> int:
    """Print the exact QEMU command line of a VM.

    Nothing is made or started, and no daemon is needed; where one runs, it says where its folders
    are. For a shell, what QEMU needs beside it comes first: its folders and helper programs.

    The switches are those of `arcsup start`: the command line is that of such a run.

    The GPUs in it are those that the VM would get now; a mediated device is named by the uuid that
    it would have. Exits with 3, and says why, when a device that the VM needs is not there.

    \b
    Example:
      arcsup qemu web
      arcsup qemu ./try.yaml -o argv
    """
    # Needs the libraries of the daemon, which is why it is imported here.
    from arcsup.offline import preview_offline

    places, config = find_places(session.run, **as_daemon_has_them(session, options))
    file = Path(what).absolute() if is_file(what) else _find_file(session, places, what)
    text = read_vm_file(file)
    mode = as_mode({"preinstall": preinstall, "safe_mode": safe_mode, "disable_gpu": disable_gpu})
    try:
        preview = preview_offline(text, file, places, config, mode)
    except (Transient, Terminal) as error:
        tell_error(error.message, error.hint)
        return ExitCode.NOT_AS_DESIRED
    if output == "json":
        print_json(list(preview.argv))
    elif output == "argv":
        print("\n".join(preview.argv))
    else:
        print(format_script(preview))
    return ExitCode.OK


def _find_file(session: Session, places: Places, name: str) -> Path:
    """Return the file of a VM: the daemon knows it, else it is looked for in the VM directory."""
    try:
        return Path(session.client.get(vm_path(name))["file"])
    except DaemonUnreachable:
        file = places.vms / f"{name}.yaml"
    if Path(name).name != name or not file.exists():
        raise NoSuchObject(f"there is no VM {name}: no daemon knows it, and there is no {file}")
    return file


def format_script(preview: "Preview") -> str:
    """Return a shell script: what must be there first, and after an empty line QEMU itself."""
    lines = [shlex.join(command) for command in preview.prepare]
    lines += [f"{format_shell(helper)} &" for helper in preview.helpers]
    # A helper that was just started may not listen yet.
    lines += [
        f"until test -S {shlex.quote(str(path))}; do sleep 0.1; done" for path in preview.sockets
    ]
    return "\n".join([*lines, "", format_shell(preview.argv)])


def format_shell(argv: Iterable[str]) -> str:
    """Return a command line for a shell, each option with its value on a line of its own."""
    lines: list[str] = []
    for word in argv:
        # The first word is the program; a value goes on its option's line.
        if not lines or word.startswith("-"):
            lines.append(shlex.quote(word))
        else:
            lines[-1] += f" {shlex.quote(word)}"
    return " \\\n  ".join(lines)


@click.command()
def schema() -> int:
    """Print the JSON Schema of VM files, for editors.

    Editors with a YAML language server complete keys and mark mistakes by it, when a file's first
    line names it: `# yaml-language-server: $schema=vm.schema.json`. `arcsup check` finds more, as
    what two VMs cannot both have.

    \b
    Example:
      arcsup schema > vm.schema.json
    """
    from arcsup.spec.schema import vm_schema

    print_json(vm_schema())
    return ExitCode.OK
