"""The verb view: a VM's screen in a window of this session, for as long as the VM runs."""

import os
import select
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

import click

from arcsup.cli.session import Session, name_argument
from arcsup.cli.viewers import Viewers, choose_viewers
from arcsup.control.client import vm_path
from arcsup.control.shapes import StatusJson, ViewingJson
from arcsup.errors import ArcsupError, ExitCode, NotPermitted, Refused

GRACE = 5.0
"""Seconds a client may take to close its window."""

SETTLE = 1.0
"""Seconds that the daemon may need to tell that a VM has ended, once a client failed."""

RETRY = 1.0
"""Seconds after which a daemon that went away is asked again."""


@click.command()
@name_argument
@click.option("--print", "print_only", is_flag=True, help="Print the command, start nothing.")
@click.pass_obj
def view(session: Session, name: str, print_only: bool) -> int:
    """Show a VM's screen in a window, until the window is closed or the VM ends.

    Finds the client that fits: Looking Glass where the VM shares frames, remote-viewer for SPICE,
    a VNC viewer for VNC; and says what to install where there is none.

    \b
    Example:
      arcsup view web
      arcsup view web --print
    """
    vm: StatusJson = session.client.get(vm_path(name))
    viewers = find_viewers(vm)
    if print_only:
        for command in viewers.commands:
            print(shlex.join(command))
        return ExitCode.OK
    return run_viewers(session, vm, viewers)


def find_viewers(vm: StatusJson) -> Viewers:
    """Return the programs that show a VM. Raises Refused, NoSuchObject, NotPermitted."""
    viewing = vm["viewing"]
    if viewing is None:
        raise Refused(f"{vm['name']} is {vm['state']}", f"`arcsup start {vm['name']}` starts it")
    if {"preinstall", "safe-mode"} & set(vm["mode"]):
        # Whoever installs or mends the guest's end of the frames cannot see by them.
        viewing = {**viewing, "frames": []}
    viewers = choose_viewers(vm["name"], viewing, shutil.which)
    _check_access(viewing)
    return viewers


def _check_access(viewing: ViewingJson) -> None:
    for path in (viewing["socket"], *viewing["frames"]):
        if path and not os.access(path, os.R_OK | os.W_OK):
            raise NotPermitted(
                f"you may not use {path}",
                "name yourself in arcsup.yaml (viewer: USER), restart the daemon and the VM",
            )


def run_viewers(session: Session, vm: StatusJson, viewers: Viewers) -> int:
    """Start the programs, wait until all have ended, and end them when the VM does."""
    for note in viewers.notes:
        print(f"arcsup: {note}", file=sys.stderr)
    before = signal.signal(signal.SIGTERM, _leave)
    processes: list[subprocess.Popen[bytes]] = []
    try:
        processes.extend(map(_start, viewers.commands))
        with _watch_end(session, vm) as descriptor:
            ended = _wait(processes, descriptor)
    finally:
        _end(processes)
        signal.signal(signal.SIGTERM, before)
    if ended:
        return ExitCode.OK
    failed = [process for process in processes if process.returncode != 0]
    for process in failed:
        args = process.args if isinstance(process.args, list) else []
        print(
            f"arcsup: {shlex.join(map(str, args))} ended with {process.returncode}",
            file=sys.stderr,
        )
    return ExitCode.FAILED if failed else ExitCode.OK


def _leave(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _start(command: Sequence[str]) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(list(command), stdin=subprocess.DEVNULL)
    except OSError as error:
        raise ArcsupError(f"{command[0]} cannot be started: {error.strerror}") from error


def _wait(processes: Sequence[subprocess.Popen[bytes]], ended: int) -> bool:
    """Wait for the end of all, or of the VM; return whether it was the VM that ended."""
    running = {os.pidfd_open(process.pid): process for process in processes}
    try:
        while running:
            ready, _, _ = select.select([ended, *running], [], [])
            if ended in ready:
                return True
            for descriptor in ready:
                running.pop(descriptor).wait()
                os.close(descriptor)
        # A client that lost its connection may end before the daemon tells of QEMU's end.
        has_failed = any(process.returncode for process in processes)
        return has_failed and bool(select.select([ended], [], [], SETTLE)[0])
    finally:
        for descriptor in running:
            os.close(descriptor)


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def _watch_end(session: Session, vm: StatusJson) -> Iterator[int]:
    """Give a descriptor that becomes readable when the QEMU of ``vm`` has ended."""
    reader, writer = os.pipe()
    left = threading.Event()

    def watch() -> None:
        while not left.is_set():
            # A daemon that is away is no reason to close a window: the VM runs on.
            with suppress(ArcsupError):
                if _has_ended(session, vm):
                    break
            left.wait(RETRY)
        os.close(writer)

    # A daemon thread: an event stream that waits must not keep this process from ending.
    threading.Thread(target=watch, name="watch-end", daemon=True).start()
    try:
        yield reader
    finally:
        left.set()
        os.close(reader)


def _has_ended(session: Session, vm: StatusJson) -> bool:
    """Wait for the end of a VM's QEMU; False when the daemon ends its stream before."""
    query = {"vm": vm["name"]}
    kept = [number for number, _ in session.client.stream("/v1/events", query | {"follow": "0"})]
    now: StatusJson = session.client.get(vm_path(vm["name"]))
    if now["pid"] != vm["pid"]:
        return True
    since = str(max(kept, default=0))
    following = session.client.stream("/v1/events", query | {"follow": "1", "since": since})
    return any(event["kind"] == "ended" for _, event in following)
