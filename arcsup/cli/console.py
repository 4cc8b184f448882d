"""The verb console: the guest's serial console on this terminal."""

import contextlib
import os
import select
import socket
import sys
from collections.abc import Iterator

import click

from arcsup.cli.session import Session, name_argument
from arcsup.control.client import vm_path
from arcsup.control.shapes import StatusJson
from arcsup.errors import ExitCode, NoSuchObject, NotPermitted, Refused

LEAVE = b"\x1d"
"""Ctrl-], as in telnet and virsh."""


@click.command()
@name_argument
@click.pass_obj
def console(session: Session, name: str) -> int:
    """Open a VM's serial console on this terminal; Ctrl-] leaves it.

    One at a time: a second one waits until the first has left.

    \b
    Example:
      arcsup console web
    """
    vm: StatusJson = session.client.get(vm_path(name))
    if vm["pid"] is None:
        raise Refused(f"{name} is {vm['state']}, it has no console", f"arcsup why {name}")
    if not vm["consoleSocket"]:
        raise NoSuchObject(f"{name} has no serial console")
    with _connect(name, vm["consoleSocket"]) as connection, raw_terminal():
        if sys.stdin.isatty():
            print(f"console of {name}; Ctrl-] leaves it\r", file=sys.stderr)
        relay(connection, sys.stdin.fileno(), sys.stdout.fileno())
    return ExitCode.OK


def _connect(name: str, path: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(path)
    except PermissionError:
        connection.close()
        raise NotPermitted(f"you may not use {path}", "run as root") from None
    except OSError as error:
        connection.close()
        raise Refused(
            f"the console of {name} does not answer: {(error.strerror or str(error)).lower()}",
            f"arcsup status {name}",
        ) from None
    return connection


def relay(connection: socket.socket, source: int, sink: int) -> None:
    """Copy between descriptors and the console until either side ends or Ctrl-] is typed.

    The end of ``source`` (a pipe) does not end the console: what the guest answers is wanted.
    """
    readable: list[int] = [connection.fileno(), source]
    while True:
        ready, _, _ = select.select(readable, [], [])
        if connection.fileno() in ready:
            try:
                output = connection.recv(4096)
            except ConnectionResetError:
                return
            if not output:
                return
            _write_all(sink, output)
        if source in ready:
            typed = os.read(source, 4096)
            before, leave, _ = typed.partition(LEAVE)
            try:
                connection.sendall(before)
            except BrokenPipeError:
                return
            if leave:
                return
            if not typed:
                readable.remove(source)


def _write_all(sink: int, content: bytes) -> None:
    while content:
        content = content[os.write(sink, content) :]


@contextlib.contextmanager
def raw_terminal() -> Iterator[None]:
    """Hand every key to the guest while inside, Ctrl-C too; does nothing without a terminal."""
    if not sys.stdin.isatty():
        yield
        return
    import termios
    import tty

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setraw(descriptor)
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
        print(file=sys.stderr)
