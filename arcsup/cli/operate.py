"""Verbs that change what a VM does: stop, kill, adopt, restart, reset, pause, resume, clear, wait.

They differ in one word on the socket and in their help; factories make them.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import click

from arcsup.cli.session import (
    Session,
    collect,
    do_for_each,
    names_argument,
    take_duration,
    tell_failures,
    tell_note,
    worst,
)
from arcsup.cli.waiting import telling_what_for
from arcsup.control.client import vm_path
from arcsup.control.shapes import StatusJson
from arcsup.errors import NoSuchObject, NotPermitted, UsageError

DEFAULT_TIMEOUT = "300s"
FILE_LIMIT = 1 << 20
"""Bytes of a VM file; the daemon takes no more."""

timeout_option = click.option(
    "--timeout",
    metavar="DURATION",
    default=DEFAULT_TIMEOUT,
    show_default=True,
    callback=take_duration,
    help="How long to wait until it is done.",
)
no_wait_option = click.option("--no-wait", is_flag=True, help="Do not wait until it is done.")


def operate(session: Session, targets: Sequence[str], act: Callable[[str], StatusJson]) -> int:
    """Do ``act`` for every VM, write each VM's state, and return the worst exit code.

    A target is a VM's name, or the absolute path of its file.
    """
    with telling_what_for(session, targets):
        outcomes = do_for_each(targets, act)
    for vm in collect(outcomes):
        print(f"{vm['name']}: {vm['state']}")
        if vm["state"] == "stopped" and vm["lastExit"] is not None and vm["lastExit"]["forced"]:
            took = f"its plug was pulled ({vm['lastExit']['detail']})"
            tell_note(f"{vm['name']}: the guest did not power down: {took}")
    return worst(tell_failures(outcomes))


def _post(session: Session, verb: str, wait: float | None, name: str, **more: str) -> StatusJson:
    query = more if wait is None else {"wait": f"{wait:g}", **more}
    path = vm_path(name, verb)
    answer: StatusJson = session.client.post(path, query=query, patience=wait or 0)
    return answer


def _make_settling(verb: str, text: str) -> click.Command:
    """Return a verb that waits for its effect."""

    @click.command(verb, help=text)
    @names_argument
    @no_wait_option
    @timeout_option
    @click.pass_obj
    def command(session: Session, names: tuple[str, ...], no_wait: bool, timeout: float) -> int:
        wait = None if no_wait else timeout
        return operate(session, session.match(names), partial(_post, session, verb, wait))

    return command


def _make_immediate(verb: str, text: str) -> click.Command:
    """Return a verb that is done when the daemon answers."""

    @click.command(verb, help=text)
    @names_argument
    @click.pass_obj
    def command(session: Session, names: tuple[str, ...]) -> int:
        return operate(session, session.match(names), partial(_post, session, verb, None))

    return command


@click.command()
@names_argument
@click.option("--save", is_flag=True, help="Keep what was written to ephemeral disks.")
@no_wait_option
@timeout_option
@click.pass_obj
def stop(
    session: Session, names: tuple[str, ...], save: bool, no_wait: bool, timeout: float
) -> int:
    """Ask the guest to power down, then insist.

    The VM stays stopped, across daemon restarts and reboots, until `arcsup start`. With --save,
    what it wrote to disks with `ephemeral: true` becomes the content of their images; that takes
    as long as copying them.

    \b
    Example:
      arcsup stop web --timeout 90s
      arcsup stop windows --save
    """
    more = {"save": "1"} if save else {}
    act = partial(_post, session, "stop", None if no_wait else timeout, **more)
    return operate(session, session.match(names), act)


kill = _make_settling(
    "kill",
    """Pull the plug: end QEMU at once; the guest may lose data.

    The VM stays stopped until `arcsup start`.

    \b
    Example:
      arcsup kill web
    """,
)
adopt = _make_settling(
    "adopt",
    """Go on with a QEMU that the daemon does not know any more.

    When the state directory has lost a VM's record, or got an older one back from a backup, the
    VM's QEMU runs on, and no second one is started: the VM is `waiting`, and `arcsup why` tells the
    process. This takes it over as it is, with its devices, and supervises it again; the guest
    notices nothing. It is refused (exit code 6) when the QEMU's monitor does not answer, or nothing
    tells any more what it has; then `arcsup stop` or `arcsup kill` ends it.

    \b
    Example:
      arcsup adopt web
    """,
)
restart = _make_settling(
    "restart",
    """Stop as `stop` does, then start with the file as it is now.

    This is what applies a change that a running VM cannot take on (`arcsup list` calls it
    pending). The switches of `arcsup start`, such as --disable-gpu, end with the run before.

    \b
    Example:
      arcsup restart 'web-*'
    """,
)
reset = _make_immediate(
    "reset",
    """Press the reset button; QEMU goes on.

    The guest gets no chance to write what it has in memory. The VM's process, its sockets and its
    devices stay, and so does the version of the file that it was started with.

    \b
    Example:
      arcsup reset web
    """,
)
pause = _make_immediate(
    "pause",
    """Halt a VM's processors, until `arcsup resume`.

    Its memory and devices stay taken, and its clock stands still. A VM may also be paused by QEMU
    itself, when a disk of the host is full; `arcsup why` tells.

    \b
    Example:
      arcsup pause web
    """,
)
resume = _make_immediate(
    "resume",
    """Let a paused VM go on.

    Whether it was paused by `arcsup pause` or by QEMU because of a disk error; in that case the
    guest tries again what failed. Exits with 6 when the VM is not paused.

    \b
    Example:
      arcsup resume web
    """,
)
clear = _make_immediate(
    "clear",
    """Leave `failed`: try again, with a fresh restart budget.

    A VM has failed when it crashed more often than its `restart` allows, or when QEMU refused its
    command line; `arcsup why` says which. A change of its file does the same as this verb.

    \b
    Example:
      arcsup clear web
    """,
)


def is_file(text: str) -> bool:
    """Tell whether ``text`` means a VM file rather than a VM's name."""
    return "/" in text or text.endswith((".yaml", ".yml"))


def read_vm_file(file: Path) -> str:
    """Return the text of a VM file. Raises NoSuchObject, NotPermitted, UsageError."""
    try:
        with file.open("rb") as stream:
            content = stream.read(FILE_LIMIT + 1)
    except FileNotFoundError:
        raise NoSuchObject(f"there is no file {file}") from None
    except PermissionError:
        raise NotPermitted(f"{file}: you may not read it") from None
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}") from None
    if len(content) > FILE_LIMIT:
        raise UsageError(f"{file}: longer than {FILE_LIMIT} bytes, no VM file is")
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise UsageError(f"{file}: not UTF-8 text, so no VM file") from None


STATES = (
    *("invalid", "waiting", "starting", "running", "paused"),
    *("stopping", "stopped", "backoff", "failed", "gone"),
)


@click.command()
@names_argument
@click.option(
    "--for",
    "state",
    type=click.Choice(STATES),
    default="running",
    show_default=True,
    help="The state to wait for; gone: there is no such VM any more.",
)
@timeout_option
@click.pass_obj
def wait(session: Session, names: tuple[str, ...], state: str, timeout: float) -> int:
    """Wait until VMs are in a state.

    Exits with 124 when they are not within the timeout.

    \b
    Example:
      arcsup wait web --for stopped --timeout 2m
    """
    outcomes = do_for_each(
        session.match(names), lambda name: _wait_for(session, name, state, timeout)
    )
    return worst(tell_failures(outcomes))


def _wait_for(session: Session, name: str, state: str, timeout: float) -> bool:
    query = {"for": state, "timeout": f"{timeout:g}"}
    try:
        session.client.get(vm_path(name, "wait"), query, patience=timeout)
    except NoSuchObject:
        if state != "gone":
            raise
    return True
