"""The verb logs: a VM's console and QEMU's own words, from the files that the daemon writes."""

import re
import sys
import time
from pathlib import Path

import click

from arcsup.cli.session import Session, name_argument
from arcsup.control.shapes import ReportJson
from arcsup.errors import DaemonUnreachable, ExitCode, NoSuchObject, NotPermitted
from arcsup.places import Places

POLL = 0.2
"""Seconds between looks at the files; the standard library has no inotify."""

BLOCK = 1 << 16

# What a terminal acts on: control sequences (ECMA-48), operating system commands, lone controls.
_CONTROLS = re.compile(
    rb"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[@-_a-z]?"
    rb"|[\x00-\x08\x0b-\x1f\x7f]"
)


class Tail:
    """One log file, read on from where the last read ended, across rotation and truncation."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._inode = -1
        self._position = 0

    def read_last(self, lines: int) -> bytes:
        """Return the last ``lines`` lines, b"" where there is no file."""
        try:
            with self.path.open("rb") as stream:
                size = stream.seek(0, 2)
                start, found = size, b""
                while start > 0 and found.count(b"\n") <= lines:
                    start = max(start - BLOCK, 0)
                    stream.seek(start)
                    found = stream.read(size - start)
                self._inode = self.path.stat().st_ino
                self._position = size
        except FileNotFoundError:
            return b""
        return b"".join(found.splitlines(keepends=True)[-lines:]) if lines else b""

    def read_new(self) -> bytes:
        """Return what has come since the last read."""
        try:
            with self.path.open("rb") as stream:
                status = self.path.stat()
                if status.st_ino != self._inode or status.st_size < self._position:
                    self._inode, self._position = status.st_ino, 0
                stream.seek(self._position)
                new = stream.read(BLOCK)
                self._position += len(new)
        except FileNotFoundError:
            return b""
        return new


@click.command()
@name_argument
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes until Ctrl-C.")
@click.option(
    "-n",
    "--lines",
    type=click.IntRange(0),
    default=100,
    show_default=True,
    help="How many lines of each log to begin with.",
)
@click.option("--console", "only", flag_value="console", help="Only the guest's serial console.")
@click.option("--qemu", "only", flag_value="qemu", help="Only what QEMU itself wrote.")
@click.option(
    "--log-dir",
    type=click.Path(path_type=Path, readable=False),
    metavar="DIR",
    help="Where the logs are; by default the daemon is asked.",
)
@click.option("--raw", is_flag=True, help="Leave the guest's terminal control sequences in.")
@click.pass_obj
def logs(
    session: Session,
    name: str,
    follow: bool,
    lines: int,
    only: str | None,
    log_dir: Path | None,
    raw: bool,
) -> int:
    """Show a VM's logs: the guest's serial console and QEMU's messages.

    They are kept when the VM is gone, and can be read without a daemon.

    \b
    Example:
      arcsup logs web -f --console
    """
    directory = find_logs(session, name, log_dir)
    kinds = [only] if only else ["qemu", "console"]
    tails = [Tail(directory / f"{kind}.log") for kind in kinds]
    writer = _Writer(headed=len(tails) > 1, raw=raw)
    try:
        for tail in tails:
            writer.write(tail, tail.read_last(lines))
        while follow:
            time.sleep(POLL)
            for tail in tails:
                while new := tail.read_new():
                    writer.write(tail, new)
    except PermissionError:
        raise NotPermitted(f"you may not read the logs in {directory}", "run as root") from None
    return ExitCode.OK


def find_logs(session: Session, name: str, log_dir: Path | None = None) -> Path:
    """Return the VM's log directory: in ``log_dir``, else of the daemon, else the default place.

    Raises NoSuchObject when there are no logs of that name.
    """
    log = log_dir or _ask_log_dir(session)
    # A name is one path component; anything else would lead out of the directory.
    directory = log / name if Path(name).name == name and name not in {"", ".."} else None
    if directory is not None and directory.is_dir():
        return directory
    raise NoSuchObject(f"there are no logs of {name} in {log}", f"arcsup why {name}")


def _ask_log_dir(session: Session) -> Path:
    try:
        report: ReportJson = session.client.get("/v1/daemon")
    except DaemonUnreachable:
        return Places.default().log
    return Path(report["places"]["log"])


class _Writer:
    """Writes logs to stdout, under the name of the one they are from, as ``tail`` does."""

    def __init__(self, *, headed: bool, raw: bool) -> None:
        self._headed = headed
        self._raw = raw
        self._current: Tail | None = None

    def write(self, tail: Tail, content: bytes) -> None:
        """Write what came from one log."""
        if not content:
            return
        out = sys.stdout.buffer
        if self._headed and self._current is not tail:
            out.write(b"" if self._current is None else b"\n")
            out.write(f"==> {tail.path.name} <==\n".encode())
        self._current = tail
        out.write(content if self._raw else strip_controls(content))
        out.flush()


def strip_controls(content: bytes) -> bytes:
    """Return a log without what would move, colour or clear the reader's terminal."""
    return _CONTROLS.sub(b"", content)
