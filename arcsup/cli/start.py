"""The verb start: VMs by name, or from a file; as their files say, or in a mode for one run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

import click

from arcsup.cli.modes import ModeOptions, as_json, mode_options
from arcsup.cli.operate import is_file, no_wait_option, operate, read_vm_file, timeout_option
from arcsup.cli.session import Session, complete_vm_names
from arcsup.cli.start_view import start_view, wants_view
from arcsup.control.client import vm_path
from arcsup.control.shapes import StartJson, StatusJson


@click.command()
@click.argument(
    "names", nargs=-1, required=True, metavar="NAME|FILE...", shell_complete=complete_vm_names
)
@mode_options
@click.option("--view", is_flag=True, help="Show the screen in a window, as `arcsup view` does.")
@click.option("--keep", is_flag=True, help="Copy FILE into the VM directory.")
@no_wait_option
@timeout_option
@click.pass_obj
def start(
    session: Session,
    names: tuple[str, ...],
    view: bool,
    keep: bool,
    no_wait: bool,
    timeout: float,
    **switches: Unpack[ModeOptions],
) -> int:
    """Start VMs and wait until they run.

    A FILE has a slash in it or ends in .yaml or .yml; a file of the VM directory means its VM. Any
    other, of arcsup or LibVF.IO, is run without being put there: such a VM is listed with its
    file, outlives the daemon, and is forgotten once it was stopped, powered off, or the host
    restarted. --keep makes it one of the VM directory's.

    The switches are for this run: they hold while it crashes and restarts, over a restart of the
    daemon too, and are gone once the VM was stopped. A VM never starts without a GPU that it asks
    for, unless its file calls that optional or --disable-gpu is given.

    A LibVF.IO file with startintro is shown in a window, as with --view, unless it is started
    with --preinstall, --safe-mode or --no-wait.

    \b
    Example:
      arcsup start web
      arcsup start ./windows.yaml --preinstall
      arcsup start ./try.yaml --keep --no-wait
    """
    wait = None if no_wait else timeout
    mode = as_json(switches)
    plain = not (mode["preinstall"] or mode["safeMode"] or no_wait)

    def act(target: str) -> StatusJson:
        if is_file(target):
            status = _start_file(session, Path(target), mode, wait, keep=keep)
        else:
            status = post_start(session, target, mode, wait)
        if view or (plain and is_file(target) and wants_view(Path(target))):
            start_view(session, status)
        return status

    return operate(session, _match(session, names), act)


def _match(session: Session, names: Sequence[str]) -> list[str]:
    """Return names, and files by their absolute paths, each once."""
    found: list[str] = []
    for name in names:
        found += [str(Path(name).absolute())] if is_file(name) else session.match([name])
    return list(dict.fromkeys(found))


def post_start(session: Session, name: str, mode: StartJson, wait: float | None) -> StatusJson:
    """Have a VM started and return its status; ``wait``: seconds to wait until it runs."""
    status: StatusJson = session.client.post(
        vm_path(name, "start"), {**mode}, wait_query(wait), patience=wait or 0
    )
    return status


def wait_query(wait: float | None) -> dict[str, str] | None:
    """Return what makes the daemon answer once it is done, or at once."""
    return None if wait is None else {"wait": f"{wait:g}"}


def _start_file(
    session: Session, file: Path, mode: StartJson, wait: float | None, *, keep: bool
) -> StatusJson:
    source = read_vm_file(file)
    body = {"file": str(file), "source": source, **mode}
    if not keep:
        status: StatusJson = session.client.post(
            "/v1/vms", body, wait_query(wait), patience=wait or 0
        )
        return status
    # Not a verb's everyday business, and it takes the libraries that read files.
    from arcsup.cli.keep import find_place, keep_file

    place = find_place(session, file, source)
    # Running first: a file that appears in the directory would be started without the switches.
    name = session.client.post("/v1/vms", body)["name"]
    keep_file(file, source, place)
    return post_start(session, name, mode, wait)
