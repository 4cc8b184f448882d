"""Writing to the device tree in a process of its own, because the kernel may never answer.

A write to an mdev's ``remove``, to ``sriov_numvfs`` or to a driver's ``unbind`` sleeps where no
signal reaches it for as long as somebody has the device open (drivers/vfio/vfio_main.c,
drivers/pci/iov.c). In the daemon it would hold up everything, and even its end. So a helper
writes; when it does not come back in time it is left to the kernel and reaped whenever it ends.
"""

import errno
import os
import re
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import trio
from attrs import frozen

from arcsup.errors import ArcsupError, Stuck, Terminal, Transient

# Standard programs, because they start ten times as fast as Python. A helper that finds its daemon
# dead writes nothing: the next daemon has its own view by then. The text goes in one write(2).
_WRITE = '[ "$PPID" = "$1" ] || exit 0; exec dd of="$2" bs=4096 conv=nocreat status=none'

_OUTPUT_LIMIT = 1 << 16
_PAUSE = 0.02
_LONGEST_PAUSE = 0.25
"""Seconds between two looks for what no event tells of: at first, and at most."""

_HOLD_AGAIN = 1.0
"""Seconds after which a descriptor is asked for again, to wait for a helper by."""

_STUCK_HINT = "it may be waiting for a program that has the device open; the kernel log tells"

_MARK = "ARCSUP_WORKS_ON"
"""In a helper's environment, which it keeps through exec(2): what it works on."""

_REAL_UID = re.compile(rb"^Uid:\t(\d+)", re.MULTILINE)

_unanswered: Counter[str] = Counter()
"""What helpers that were left to the kernel still work on, each with how many of them: asking again
would only add another."""


@frozen
class HelperEnd:
    """How a helper ended (negative: by that signal) and what it said on both its outputs."""

    code: int
    output: str


@frozen
class Word:
    """What an errno means at one file: which error it is, why, and what to do."""

    error: type[ArcsupError]
    because: str
    hint: str = ""


_EVERYWHERE: Mapping[int, Word] = {
    errno.EACCES: Word(Terminal, "only root may do that", "run arcsup's daemon as root"),
    errno.EROFS: Word(
        Terminal,
        "the device tree is mounted read-only here",
        "in a systemd unit set ProtectKernelTunables=no; in a container mount /sys writable",
    ),
}


async def write_sysfs(path: str, text: str, *, seconds: float) -> None:
    """Write ``text`` to an attribute in one system call.

    Raises OSError with the kernel's errno, or Stuck when there is no answer within ``seconds``.
    """
    command = ["sh", "-c", _WRITE, "sh", str(os.getpid()), path]
    end = await run_helper(command, seconds=seconds, what=path, text=text)
    if end.code:
        raise _failure(path, end)


async def read_sysfs(path: str, *, seconds: float) -> str:
    """Return an attribute without white space around it, for those whose read takes a lock.

    Reading ``driver_override`` waits for the device's lock, which a stuck unbind holds
    (drivers/pci/pci-sysfs.c). Raises OSError or Stuck.
    """
    end = await run_helper(["cat", path], seconds=seconds, what=path)
    if end.code:
        raise _failure(path, end)
    return end.output.strip()


def _failure(path: str, end: HelperEnd) -> OSError | Transient:
    """Return the kernel's answer from what a standard program said of it, in strerror(3)'s words.

    They are "dd: error writing 'PATH': WORDS", with " (os error 5)" behind them in some builds.
    """
    words = end.output.strip().rpartition(": ")[2].partition(" (os error")[0]
    for number in errno.errorcode:
        if os.strerror(number) == words:
            return OSError(number, words, path)
    return Transient(f"{path}: the helper ended with {end.code}: {end.output.strip()[-200:]}")


async def run_helper(
    argv: Sequence[str], *, seconds: float, what: str, text: str = ""
) -> HelperEnd:
    """Run a program to its end, or raise Stuck; ``what`` it works on is named in that.

    ``text`` is its standard input.

    It is killed when time is up or the caller is cancelled, which ends all but what sleeps in the
    kernel. While that lasts, the same is Stuck at once. Raises Transient when it cannot be started.
    """
    if is_unanswered(what):
        raise Stuck(f"{what}: the kernel has still not answered an earlier attempt", _STUCK_HINT)
    # A file in memory, not a pipe: nobody has to read it, and a grandchild cannot keep it open.
    output = os.memfd_create("output")
    try:
        pid = _spawn(argv, what, text, output)
        pidfd = _hold(pid, what)
        status = None
        try:
            with trio.move_on_after(seconds):
                await trio.lowlevel.wait_readable(pidfd)
                status = _take_status(pidfd)
        finally:
            if status is None:
                # Also when cancelled: what sleeps in the kernel does so whoever has lost interest.
                _unanswered[what] += 1
                _abandon(pid, pidfd, what)
            else:
                os.close(pidfd)
        if status is None:
            raise Stuck(f"{what}: the kernel has not answered within {seconds:g} s", _STUCK_HINT)
        return HelperEnd(status, os.pread(output, _OUTPUT_LIMIT, 0).decode(errors="replace"))
    finally:
        os.close(output)


def _hold(pid: int, what: str) -> int:
    """Return a helper's pidfd. Raises Transient, and ends it, where none can be had."""
    try:
        return os.pidfd_open(pid)
    except OSError as error:
        _unanswered[what] += 1
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        trio.lowlevel.spawn_system_task(_reap_unheld, pid, what)
        raise Transient(f"{what}: a helper cannot be waited for: {error.strerror}") from error


async def _reap_unheld(pid: int, what: str) -> None:
    """Reap a killed helper for which there was no descriptor to wait by."""
    pidfd = -1
    while pidfd < 0:
        await trio.sleep(_HOLD_AGAIN)
        with suppress(OSError):  # The pid is still its own: nobody has reaped it.
            pidfd = os.pidfd_open(pid)
    await _reap(pidfd, what)


def _spawn(argv: Sequence[str], what: str, text: str, output: int) -> int:
    given = os.memfd_create("input")
    os.pwrite(given, text.encode(), 0)
    environment = {"LC_ALL": "C", "PATH": os.environ.get("PATH", os.defpath), _MARK: what}
    try:
        return os.posix_spawnp(
            argv[0],
            list(argv),
            environment,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, given, 0),
                (os.POSIX_SPAWN_DUP2, output, 1),
                (os.POSIX_SPAWN_DUP2, output, 2),
            ],
            # Its own session: one signal ends what it started too, and ^C is not for it.
            setsid=True,
            setsigmask=(),
            setsigdef=(signal.SIGPIPE, signal.SIGINT, signal.SIGTERM, signal.SIGHUP),
        )
    except OSError as error:
        raise Transient(f"{argv[0]} could not be started: {error.strerror}") from error
    finally:
        os.close(given)


def is_unanswered(path: str) -> bool:
    """Tell whether the kernel still owes an answer to a write that was given up."""
    return _unanswered[path] > 0


def unanswered_writes() -> frozenset[str]:
    """Return what the kernel still owes an answer to: attributes, and tools by name."""
    return frozenset(+_unanswered)


async def await_earlier_helpers(*, seconds: float, proc: Path = Path("/proc")) -> None:
    """Find what helpers of a daemon that has died still work on, and let them end.

    To be called before anything is decided: until then the device tree shows what they are just
    changing. What is not ended within ``seconds`` is unanswered, as if we had asked ourselves.
    """
    ended = []
    for pidfd, what in _find_helpers(proc):
        _unanswered[what] += 1
        ended.append(trio.Event())
        trio.lowlevel.spawn_system_task(_await_earlier, pidfd, what, ended[-1])
    with trio.move_on_after(seconds):
        for event in ended:
            await event.wait()


def _find_helpers(proc: Path) -> Iterator[tuple[int, str]]:
    """Yield each helper on this host as a pidfd, for the caller to close, and what it works on.

    None is missed: a helper bears its mark before it looks whether its daemon lives.
    """
    for process in proc.glob("[1-9]*"):
        try:
            pidfd = os.pidfd_open(int(process.name))
        except ProcessLookupError:
            continue  # It has ended meanwhile.
        what = _read_mark(process / "environ")
        if what is None or not _is_own(process / "status"):
            os.close(pidfd)
        else:
            yield pidfd, what


def _read_mark(environ: Path) -> str | None:
    mark = f"{_MARK}=".encode()
    try:
        entries = environ.read_bytes().split(b"\0")
    except OSError:
        return None  # It has ended, or is somebody else's.
    found = (entry.removeprefix(mark) for entry in entries if entry.startswith(mark))
    return next(map(os.fsdecode, found), None)


def _is_own(status: Path) -> bool:
    """Tell whether a process is the daemon's own user's: a mark is no proof, anybody may bear it.

    By its real uid, because a set-uid program is root's by every other sign and keeps its caller's
    environment (proc_pid_status(5), "Uid").
    """
    try:
        uid = _REAL_UID.search(status.read_bytes())
    except OSError:
        return False  # It has ended.
    return uid is not None and int(uid[1]) == os.getuid()


async def _await_earlier(pidfd: int, what: str, ended: trio.Event) -> None:
    try:
        await trio.lowlevel.wait_readable(pidfd)
    finally:
        os.close(pidfd)
        _unanswered[what] -= 1
        ended.set()


def _abandon(pid: int, pidfd: int, what: str) -> None:
    """Kill a helper and have it reaped whenever it ends."""
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    trio.lowlevel.spawn_system_task(_reap, pidfd, what)


async def _reap(pidfd: int, what: str) -> None:
    try:
        await trio.lowlevel.wait_readable(pidfd)
    finally:
        # Also when the daemon ends first; what still sleeps then is init's.
        _take_status(pidfd)
        os.close(pidfd)
        _unanswered[what] -= 1


def _take_status(pidfd: int) -> int | None:
    """Reap a helper that has ended: its exit code, or its signal below 0; None while it runs."""
    status = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
    if status is None:
        return None
    return status.si_status if status.si_code == os.CLD_EXITED else -status.si_status


async def comes_true(look: Callable[[], bool], *, seconds: float) -> bool:
    """Look again and again until it is so, for facts that no event tells; False: not in time."""
    pause = _PAUSE
    with trio.move_on_after(seconds):
        while True:
            if look():
                return True
            await trio.sleep(pause)
            pause = min(1.5 * pause, _LONGEST_PAUSE)
    return look()


def explain(what: str, error: OSError, words: Mapping[int, Word]) -> ArcsupError:
    """Return an error for what the kernel answered; what ``words`` do not know is Transient."""
    number = error.errno or 0
    word = words.get(number) or _EVERYWHERE.get(number) or Word(Transient, "the kernel refused")
    name = errno.errorcode.get(number, str(number))
    return word.error(f"{what}: {word.because} ({name}: {os.strerror(number)})", word.hint)
