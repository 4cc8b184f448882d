"""The lock of a VM, which its QEMU inherits, and QEMUs that no record tells of.

There are two lock files: one in the state directory, which outlives a wiped runtime directory, and
one in the VM's runtime folder. Whoever starts a QEMU or cleans up after one holds both; only their
holder may remove them.

What makes a process a VM's, so that no other QEMU is started beside it:

* It has one of the locks. The files are in folders that only the daemon's user can enter, so who
  has one open got it from the daemon, by inheritance. That holds for a lock file that was removed,
  too: the kernel still tells under which name it was opened. Others can have such a name shown for
  a file of theirs, in a mount namespace of their own, but not for one that is the daemon user's,
  0600 and locked. So QEMUs are found whose runtime folder was wiped, and those of older versions,
  which have no lock in the state directory.
* It is the daemon's user, or one that QEMUs run as, and its command line has the VM's uuid and
  names one of the VM's folders. A command line alone is what anybody can write; its user is not.
  So a QEMU is found that root has started from what `arcsup qemu` prints.

Nothing is concluded from the name of a control group, of a process or of a socket: two daemons of
one host give the same ones, and each user's own systemd makes scopes of any name.

A QEMU can hand its lock on to any program that takes descriptors, the journal's say. So what has
the lock is ended or adopted only if its command line says that it is this VM's QEMU: no program
that was handed a descriptor gets another command line by that.

Sources: proc_pid_fd(5), proc_pid_fdinfo(5) ("lock:"), proc_pid_status(5) ("Uid:"); flock(2).
"""

import errno
import fcntl
import os
import re
import stat
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

from attrs import frozen

from arcsup.errors import Transient
from arcsup.host.accounts import Accounts
from arcsup.host.holders import describe_process
from arcsup.model import VmName
from arcsup.places import Places
from arcsup.vm.process import Process, ProcessId, read_account, read_start_time

LOOK_AGAIN = 1.0
"""Seconds between two looks at a lock whose holder cannot be seen."""

_PROC = Path("/proc")

# For reading: a lock is taken on a read-only file system, too (flock(2)).
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class LockHeld(Transient):
    """A QEMU that no record tells of has the VM's lock: nothing was started or cleaned."""


def lock_files(places: Places, name: VmName) -> tuple[Path, Path]:
    """Return a VM's lock files, in the order in which they are taken."""
    return places.state / "vms" / f"{name}.lock", places.run_of(name) / "lock"


@contextmanager
def vm_lock(places: Places, name: VmName) -> Iterator[tuple[int, ...]]:
    """Hold a VM's lock and yield its descriptors, for its QEMU to inherit.

    Raises LockHeld when somebody else has it, OSError where a file cannot be made.
    """
    with ExitStack() as held:
        descriptors = []
        for path in lock_files(places, name):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptors.append(_lock(path, os.O_CREAT, places, name))
            held.callback(os.close, descriptors[-1])
        yield tuple(descriptors)


@contextmanager
def hold_for_removal(places: Places, name: VmName) -> Iterator[None]:
    """Hold what there is of a VM's lock; nothing is made for it, so a full disk is no obstacle.

    Raises LockHeld when somebody else has it.
    """
    with ExitStack() as held:
        for path in lock_files(places, name):
            with suppress(FileNotFoundError):
                held.callback(os.close, _lock(path, 0, places, name))
        yield


def _lock(path: Path, create: int, places: Places, name: VmName) -> int:
    while True:
        descriptor = os.open(path, _FLAGS | create, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise LockHeld(f"somebody has the lock of VM {name}", f"arcsup why {name}") from None
        if _is_at(descriptor, path):
            return descriptor
        # Its holder removed it between our opening and our locking: this lock keeps nobody out.
        os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        there = path.lstat()
    except FileNotFoundError:
        return False
    ours = os.fstat(descriptor)
    return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)


def is_held(places: Places, name: VmName) -> bool:
    """Tell whether somebody has a VM's lock; nothing is made for the look."""
    return any(map(_is_locked, lock_files(places, name)))


def _is_locked(path: Path) -> bool:
    try:
        descriptor = os.open(path, _FLAGS)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def names_held(places: Places) -> Iterator[VmName]:
    """Yield the VMs whose lock somebody has, as far as the lock files are there."""
    names = {path.stem for path in (places.state / "vms").glob("*.lock")}
    names |= {path.parent.name for path in places.run.glob("*/lock")}
    yield from (VmName(name) for name in sorted(names) if is_held(places, VmName(name)))


@frozen
class Stray:
    """What keeps a VM from being started: a process that no record tells of.

    ``identity`` is None for one that cannot be seen, in another PID namespace say. ``is_qemu``:
    it is the VM's QEMU, so it may be ended and adopted. ``has_lock`` is False for one that is
    known by its user and its command line alone.
    """

    identity: ProcessId | None = None
    program: str = ""
    is_qemu: bool = False
    has_lock: bool = True
    since: datetime | None = None

    @property
    def pid(self) -> int | None:
        """Its pid, None for one that cannot be seen."""
        return None if self.identity is None else self.identity.pid

    def is_there(self) -> bool:
        """Tell whether it has not ended, as far as it can be seen."""
        known = self.identity
        return known is None or read_start_time(known.pid) == known.start_time

    def __str__(self) -> str:
        if self.identity is None:
            return "a process that cannot be seen has the VM's lock, and no record tells of it"
        if not self.is_qemu:
            return f"{self.program} has the VM's lock, and is no QEMU of it"
        what = "has the VM's lock" if self.has_lock else "has the VM's uuid and folders"
        return f"QEMU {self.identity.pid} {what}, and no record tells of it"


def what_to_do(name: VmName, stray: Stray) -> str:
    """Say how to go on from there."""
    if stray.is_qemu:
        return f"`arcsup adopt {name}` goes on with it, `arcsup stop {name}` or `kill` ends it"
    if stray.identity is None:
        return "find who has it (`lslocks`), and end that"
    return f"see what process {stray.identity.pid} is, and end it: after that the VM can be started"


@frozen
class Sought:
    """Whose QEMUs are looked for, and by whom they may run.

    ``uuids`` are those of the VMs that may be known by their command line; ``known`` are the
    processes that records tell of; ``accounts`` is None where all is the daemon's user.
    """

    places: Places
    boot_id: str
    uuids: Mapping[VmName, UUID]
    known: Collection[ProcessId] = ()
    accounts: Accounts | None = None


def find_strays(sought: Sought) -> dict[VmName, tuple[Stray, ...]]:
    """Return who is the QEMU of a VM, or has its lock, though no record tells of it.

    Looks into every process, which takes some 10 ms with a hundred of them. Raises OSError where it
    cannot be looked at all.
    """
    found: dict[VmName, tuple[Stray, ...]] = {}
    locks, accounted_for = _lock_names(sought.places), set[VmName]()
    for pid in _pids():
        identity = _identify(pid, sought)
        if identity is None:
            continue
        if identity in sought.known or pid == os.getpid():
            accounted_for.update(_find_held(pid, locks))
            continue
        argv = _read_argv(_PROC / str(pid))
        names = dict.fromkeys(_find_held(pid, locks), True)
        for name in _named_by(argv, sought):
            if name not in names and _runs_as_ours(pid, sought.accounts):
                names[name] = False
        for name, has_lock in names.items():
            is_qemu = not has_lock or _says_name(argv, name)
            stray = _make_stray(identity, is_qemu=is_qemu, has_lock=has_lock)
            found[name] = (*found.get(name, ()), stray)
    for name in names_held(sought.places):
        if name not in found and name not in accounted_for:
            found[name] = (Stray(),)
    return found


def find_stray(sought: Sought, name: VmName) -> Stray | None:
    """Return who keeps VM ``name`` from being started, a QEMU of it first; None for nobody."""
    found = find_strays(sought).get(name, ())
    return next((stray for stray in found if stray.is_qemu), next(iter(found), None))


def find_double(sought: Sought) -> Stray | None:
    """Return a QEMU that runs by its command line alone, without a VM's lock; quicker.

    This is what is left to look for by who has taken the lock. Raises OSError.
    """
    for pid in _pids():
        argv = _read_argv(_PROC / str(pid))
        if next(_named_by(argv, sought), None) is None:
            continue
        identity = _identify(pid, sought)
        if identity is None or identity in sought.known:
            continue
        if _runs_as_ours(pid, sought.accounts):
            return _make_stray(identity, is_qemu=True, has_lock=False)
    return None


def _identify(pid: int, sought: Sought) -> ProcessId | None:
    start_time = read_start_time(pid)
    return None if start_time is None else ProcessId(sought.boot_id, pid, start_time)


def _make_stray(identity: ProcessId, *, is_qemu: bool, has_lock: bool) -> Stray:
    program, since = describe_process(identity.pid), _started_at(identity)
    return Stray(identity, program, is_qemu, has_lock, since)


def hold_process(stray: Stray, boot_id: str) -> Process | None:
    """Take hold of it; None when it cannot be seen, or is gone by now."""
    return None if stray.identity is None else Process.find(stray.identity, boot_id=boot_id)


def _lock_names(places: Places) -> re.Pattern[str]:
    """Return what the kernel tells as the name of an open lock file, removed or not."""
    run, state = map(re.escape, map(os.path.realpath, (places.run, places.state / "vms")))
    name = "[a-z0-9-]{1,63}"
    return re.compile(f"(?:{run}/({name})/lock|{state}/({name})\\.lock)(?: \\(deleted\\))?")


def _find_held(pid: int, locks: re.Pattern[str]) -> Iterator[VmName]:
    """Yield the VMs whose lock a process has, as far as /proc lets us look."""
    try:
        descriptors = list((_PROC / str(pid) / "fd").iterdir())
    except _OUT_OF_SIGHT:
        return
    for descriptor in descriptors:
        try:
            match = locks.fullmatch(str(descriptor.readlink()))
            # Nothing else is looked at more closely: a file may be on storage that never answers.
            if match is not None and _is_ours_and_locked(descriptor):
                yield VmName(match[1] or match[2])
        except _OUT_OF_SIGHT:
            continue
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:  # No lock has such a name.
                raise


_OUT_OF_SIGHT = (FileNotFoundError, ProcessLookupError, PermissionError)
"""Of a process that ended while we looked, or that we may not look into. Anything else, no
descriptor that is left say, tells nothing of it, and may not pass for having seen nothing."""


def _is_ours_and_locked(descriptor: Path) -> bool:
    status = descriptor.stat()
    if status.st_uid != os.geteuid() or status.st_mode != stat.S_IFREG | 0o600:
        return False
    # Not /proc/locks: in a PID namespace it leaves out those whose taker, a daemon, is gone.
    told = (descriptor.parent.with_name("fdinfo") / descriptor.name).read_text()
    return _FLOCK.search(told) is not None


_FLOCK = re.compile(r"^lock:\s+\d+: FLOCK\s+ADVISORY\s+WRITE\s", re.MULTILINE)


def _pids() -> Iterator[int]:
    names = (entry.name for entry in _PROC.iterdir())
    yield from (int(name) for name in names if name.isascii() and name.isdigit())


def _read_argv(process: Path) -> list[str]:
    try:
        return (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except _OUT_OF_SIGHT:
        return []


def _option(argv: list[str], option: str) -> str:
    """Return what follows an option of a command line, "" where it has none."""
    try:
        return argv[argv.index(option) + 1]
    except (ValueError, IndexError):
        return ""


def _says_name(argv: list[str], name: VmName) -> bool:
    return _option(argv, "-name").partition(",")[0] == f"guest={name}"


def _named_by(argv: list[str], sought: Sought) -> Iterator[VmName]:
    """Yield the VM whose uuid a command line has, if it names one of its folders, too."""
    uuid, places = _option(argv, "-uuid"), sought.places
    if not uuid:
        return
    for name in (name for name, known in sought.uuids.items() if str(known) == uuid):
        folders = (places.run_of(name), places.qemu_run_of(name), places.log_of(name))
        if any(f"{folder}/" in word for word in argv for folder in folders):
            yield name


def _runs_as_ours(pid: int, accounts: Accounts | None) -> bool:
    """Tell whether a process is the daemon's user, or one of QEMU's, in every respect.

    The owner of its folder in /proc does not tell: that is root's for one that may not be looked
    into, which every process can ask for (PR_SET_DUMPABLE).
    """
    account = read_account(pid)
    if account is None:
        return False
    uid, _gid = account
    return uid == os.geteuid() or (accounts is not None and accounts.has(uid))


def _started_at(identity: ProcessId) -> datetime:
    since_boot = identity.start_time / os.sysconf("SC_CLK_TCK")
    ago = time.clock_gettime(time.CLOCK_BOOTTIME) - since_boot
    return datetime.fromtimestamp(time.time() - ago, UTC)
