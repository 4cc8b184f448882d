"""Programs that outlive the daemon: started behind a gate, known by identity, watched by pidfd.

The gate: a program is started as a shell that waits for one line on its standard input before it
becomes the program. The daemon writes the pid into its ownership journal first and opens the gate
then; if the daemon dies in between, the shell reads EOF and exits. So no program of ours ever
runs without being known, and whatever must be done to a pid before it runs has its place.

Identity is (boot id, pid, start time): a pid alone is reused. Sources: proc_pid_stat(5) field 22,
pidfd_open(2), proc_sys_kernel(5) random/boot_id.
"""

import errno
import os
import resource
import signal
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Self

import trio
from attrs import frozen

from arcsup.errors import Terminal
from arcsup.host.accounts import Account
from arcsup.vm.private_tmp import MOUNT, NAMESPACE
from arcsup.vm.privileges import dropping_to, environment_of

_GATE = 'cd / && read -r _ && exec "$@" </dev/null'
"""Standard input of the program itself is /dev/null; its working directory holds no mount busy."""


_APPENDING = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW

_PASSED_ON = frozenset(
    {
        *("PATH", "LANG", "LANGUAGE", "TZ", "TMPDIR"),
        *("HOME", "LOGNAME", "USER", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME"),
        *("DISPLAY", "XAUTHORITY", "WAYLAND_DISPLAY", "DBUS_SESSION_BUS_ADDRESS"),
        *("PULSE_SERVER", "PULSE_COOKIE", "PIPEWIRE_REMOTE", "PIPEWIRE_RUNTIME_DIR"),
        *("LIBGL_DRIVERS_PATH", "LIBVA_DRIVERS_PATH", "VK_DRIVER_FILES", "VK_ICD_FILENAMES"),
    }
)
"""What tells programs of the language, of the user's session, and of drivers for what they draw."""

_PASSED_ON_BEGINNINGS = ("LC_", "__EGL_", "__GLX_", "MESA_", "QEMU_")


def inherited_environment() -> dict[str, str]:
    """Return what of the daemon's environment the programs that it starts may have.

    Anything else may be a secret of whoever started the daemon, and QEMU's user reads it in /proc.
    """
    return {
        key: value
        for key, value in os.environ.items()
        if key in _PASSED_ON or key.startswith(_PASSED_ON_BEGINNINGS)
    }


_NO_SUCH_PROCESS = frozenset({errno.ESRCH, errno.EINVAL, errno.ENOENT})
"""What pidfd_open(2) says of a pid that is free, or a thread's by now (EINVAL, ENOENT)."""


@frozen
class ProcessId:
    """Who a process is, for as long as the host is up. ``start_time`` is in clock ticks."""

    boot_id: str
    pid: int
    start_time: int


@frozen
class ProcessEnd:
    """How a process ended; both None when it was not our child and nobody could learn it."""

    code: int | None = None
    signal: int | None = None

    def __str__(self) -> str:
        if self.signal is not None:
            return f"signal {signal.Signals(self.signal).name}"
        return "an unknown status" if self.code is None else f"exit code {self.code}"


class Process:
    """A running program, child or not, held by its pidfd."""

    def __init__(self, identity: ProcessId, pidfd: int) -> None:
        self.identity = identity
        self._pidfd = pidfd
        self._end: ProcessEnd | None = None
        # trio lets one task at a time wait for a descriptor.
        self._waiting = trio.Lock()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.identity.pid

    @property
    def ended(self) -> bool:
        """Whether somebody has waited for its end and seen it."""
        return self._end is not None

    @classmethod
    def find(cls, identity: ProcessId, *, boot_id: str) -> Self | None:
        """Take hold of a process that was started earlier; None when it is no longer there.

        Raises OSError where that cannot be seen: without a free descriptor, say. It may run then.
        """
        if identity.boot_id != boot_id:
            return None
        try:
            pidfd = os.pidfd_open(identity.pid)
        except OSError as error:
            if error.errno in _NO_SUCH_PROCESS:
                return None
            raise
        with ExitStack() as held:
            held.callback(os.close, pidfd)
            # Only after the pidfd is held is it certain that the pid cannot change hands.
            if read_start_time(identity.pid) != identity.start_time:
                return None
            held.pop_all()
        return cls(identity, pidfd)

    def send(self, number: signal.Signals) -> None:
        """Send a signal; nothing happens when the process has ended."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, number)

    async def wait(self) -> ProcessEnd:
        """Wait until it has ended, and reap it if it is our child."""
        async with self._waiting:
            if self._end is None:
                await trio.lowlevel.wait_readable(self._pidfd)
                self._end = self._reap()
            return self._end

    def _reap(self) -> ProcessEnd:
        try:
            status = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED)
        except ChildProcessError:
            return ProcessEnd()
        if status is None or status.si_code == os.CLD_EXITED:
            return ProcessEnd(code=status.si_status if status else None)
        return ProcessEnd(signal=status.si_status)

    def close(self) -> None:
        """Let go of the pidfd. The program runs on."""
        os.close(self._pidfd)


class GatedProcess:
    """A program that has not begun yet. ``open_gate`` lets it begin; closing ends it unbegun."""

    def __init__(self, process: Process, gate: int) -> None:
        self.process = process
        self._gate: int | None = gate

    def open_gate(self) -> None:
        """Let the program begin."""
        if self._gate is not None:
            with suppress(BrokenPipeError):  # It was killed in the meantime; ``wait`` tells.
                os.write(self._gate, b"\n")
        self.close_gate()

    def close_gate(self) -> None:
        """End a program that has not begun; no effect on one that has."""
        if self._gate is not None:
            os.close(self._gate)
            self._gate = None

    def abandon(self) -> None:
        """End and reap a program that has not begun; one that has runs on, and is held."""
        if self._gate is None:
            return
        self.close_gate()
        _reap_shell(self.process.pid)
        self.process.close()


def _reap_shell(pid: int) -> None:
    """End a child that waits at its gate: nothing keeps it from dying at once."""
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def limit_locked_memory(pid: int, size: int) -> None:
    """Let a program lock, and devices pin for it, so many bytes (RLIMIT_MEMLOCK).

    Raises Terminal where the daemon may not allow it as much.
    """
    try:
        resource.prlimit(pid, resource.RLIMIT_MEMLOCK, (size, size))
    except PermissionError:
        raise Terminal(
            f"QEMU may not lock the {size // 2**20} MiB that its devices need",
            "give the daemon LimitMEMLOCK=infinity, or CAP_SYS_RESOURCE",
        ) from None


def start_gated(
    argv: Sequence[str],
    *,
    boot_id: str,
    output: Path,
    pass_fds: Sequence[int] = (),
    environment: Mapping[str, str] | None = None,
    account: Account | None = None,
    private_tmp: bool = False,
) -> GatedProcess:
    """Start ``argv`` behind its gate, in a session of its own, appending output to a file.

    It is ``account`` (None: this process's user) from the moment that it is the program.
    ``private_tmp``: with a /tmp of its own, which is made while it waits.
    Raises Terminal when it cannot even be forked or the output file cannot be opened, OSError
    where no descriptor is left to hold it by.
    """
    reader, writer = os.pipe()
    try:
        namespace, gate = (NAMESPACE, f"{MOUNT} && {_GATE}") if private_tmp else ((), _GATE)
        shell = (*namespace, "/bin/sh", "-c", gate, "sh")
        pid = os.posix_spawnp(
            shell[0],
            [*shell, *dropping_to(account), *argv],
            environment_of(
                account, inherited_environment() if environment is None else environment
            ),
            file_actions=[
                (os.POSIX_SPAWN_DUP2, reader, 0),
                (os.POSIX_SPAWN_OPEN, 1, output, _APPENDING, 0o640),
                (os.POSIX_SPAWN_DUP2, 1, 2),
                # Onto itself: glibc clears close-on-exec, which is how a descriptor is passed.
                *((os.POSIX_SPAWN_DUP2, fd, fd) for fd in pass_fds),
            ],
            setsid=True,
            setsigmask=(),
            setsigdef=(signal.SIGPIPE, signal.SIGINT, signal.SIGTERM, signal.SIGHUP),
        )
    except OSError as error:
        os.close(writer)
        raise Terminal(f"{argv[0]} could not be started: {error.strerror}") from error
    finally:
        os.close(reader)
    try:
        return GatedProcess(_hold_child(pid, boot_id), writer)
    except OSError:
        # No descriptor is left to see it by. Nobody would know of it, nor would it read EOF.
        os.close(writer)
        _reap_shell(pid)
        raise


def _hold_child(pid: int, boot_id: str) -> Process:
    """Take hold of a child that nobody has reaped. Raises OSError."""
    start_time = read_start_time(pid)
    if start_time is None:
        raise AssertionError("a child that nobody has reaped has an entry in /proc")
    return Process(ProcessId(boot_id, pid, start_time), os.pidfd_open(pid))


def read_start_time(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot; None when there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The second field is the name in parentheses, which may hold spaces and parentheses itself.
    state, *fields = text.rpartition(")")[2].split()
    return None if state in "ZX" else int(fields[18])


def read_account(pid: int | None = None) -> tuple[int, int] | None:
    """Return the user and the group that a process (None: this one) has, saved ones included.

    None where it has several, or there is no such process. Source: proc_pid_status(5).
    """
    try:
        text = Path(f"/proc/{'self' if pid is None else pid}/status").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    ids = [set(line.split()[1:]) for line in text.splitlines() if line.startswith(("Uid:", "Gid:"))]
    if any(len(each) != 1 for each in ids):
        return None
    uid, gid = (int(each.pop()) for each in ids)
    return uid, gid


def find_processes_holding(path: Path) -> Iterator[int]:
    """Yield the pids that have the file open, as far as /proc lets us look."""
    try:
        wanted = path.stat()
    except FileNotFoundError:
        return
    for descriptor in _find_open_files():
        try:
            found = descriptor.stat()
        except OSError:
            continue  # A process that ended while we looked, or somebody else's.
        if stat.S_ISREG(found.st_mode) and (found.st_dev, found.st_ino) == (
            wanted.st_dev,
            wanted.st_ino,
        ):
            yield int(descriptor.parts[2])


def _find_open_files() -> Iterator[Path]:
    """Yield /proc/PID/fd/N. Raises OSError where we lack what it takes to look."""
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
                yield from list((process / "fd").iterdir())


async def end_process(process: Process, *, grace: float) -> ProcessEnd:
    """Terminate, and kill after ``grace`` seconds. Raises TooSlowError if even that fails.

    A process in uninterruptible sleep cannot be killed before the kernel lets it go.
    """
    process.send(signal.SIGTERM)
    # A stopped process gets no signal but SIGKILL until it is continued.
    process.send(signal.SIGCONT)
    with trio.move_on_after(grace):
        return await process.wait()
    process.send(signal.SIGKILL)
    with trio.fail_after(grace):
        return await process.wait()


@contextmanager
def closing_gate(gated: GatedProcess) -> Iterator[GatedProcess]:
    """Never leave a shell waiting at its gate, whatever happens in the block.

    Where the block fails nobody is left who would reap it and let go of it.
    """
    try:
        yield gated
    except BaseException:
        gated.abandon()
        raise
    finally:
        gated.close_gate()
