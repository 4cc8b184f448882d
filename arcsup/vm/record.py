"""What is kept on disk about each VM: the operator's intent and the ownership journal.

One JSON file per VM in STATE/vms, replaced atomically and fsynced *before* the deed that it
tells of, so that after a crash at any instruction the next daemon finds every process that is
ours, finishes or undoes what was half done, and never starts a second QEMU for a VM.

While a QEMU runs, its VM's runtime folder has a copy. The state directory may lose a record, or get
an older one back from a backup; the runtime folder goes with the host's boot, as every QEMU does.
Nothing is decided by the copy: who adopts that QEMU, or cleans up after it, learns from it what it
has.
"""

import json
import logging
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import cattrs
import trio
from attrs import evolve, field, frozen
from cattrs.preconf.json import make_converter

from arcsup.durable import sync_folder, write_durably
from arcsup.errors import NotPermitted, NotRecorded, Terminal
from arcsup.host.accounts import Account
from arcsup.host.cgroups import Limits
from arcsup.host.owned import OwnedSlice
from arcsup.model import Argv, LastExit, VmName
from arcsup.plan.mode import NORMAL, Mode
from arcsup.plan.plan import Intent
from arcsup.plan.restart import Budget
from arcsup.vm.chains import ChainStore
from arcsup.vm.loans import Loan
from arcsup.vm.process import ProcessId

logger = logging.getLogger(__name__)

FORMAT = 1
"""Version of the file's layout; a newer one is refused rather than misread."""


@frozen
class Source:
    """A VM file's text as it was when it was good, and where it was."""

    file: str
    text: str
    digest: str


@frozen
class OwnedProcess:
    """A program that was started for a VM. ``role`` is "qemu" or a helper's name."""

    role: str
    identity: ProcessId


@frozen
class Launch:
    """A QEMU that was started, or was about to be.

    ``text`` is the VM that it was started with, in the file's own form; ``processes`` is empty
    until their pids are known, and none of them begins before they are written here. ``frames``
    are the paths that a Looking Glass client reads, one for each monitor. ``account`` is whom they
    run as, None for the daemon's own user. ``limits`` is what they may take together, ``cgroup``
    the control group that they have for themselves, "" for none (yet). ``private_tmp`` tells
    whether they have a /tmp of their own.
    ``ready_at`` is when it was found running (monotonic clock of ``boot_id``), None before.
    """

    boot_id: str
    text: str
    argv: Argv = ()
    processes: tuple[OwnedProcess, ...] = ()
    devices: tuple[str, ...] = ()
    numa_node: int | None = None
    frames: Argv = ()
    account: Account | None = None
    limits: Limits | None = None
    cgroup: str = ""
    private_tmp: bool = False
    started_at: float = 0.0
    ready_at: float | None = None


@frozen
class Failure:
    """Why arcsup gave up; it holds until the file's text is another than ``digest``."""

    because: str
    digest: str


@frozen
class Record:
    """Everything that must survive the daemon about one VM.

    ``intent_boot`` and ``halted_boot`` limit what ends with the host's uptime: a start of a VM
    without autostart, and a guest's power-off. Budget times are on ``budget_boot``'s clock.
    ``since`` is when it came up or went down last. ``transient`` is a VM whose file is not in the
    VM directory: it is forgotten once it was stopped, and ``lasting`` ones (made by `create`) when
    the operator stops them or the host restarts. ``mode`` is that of the run that the operator
    asked for; it is set back once that is over.
    ``save``: what it writes to its ephemeral disks is kept when it ends.
    """

    name: VmName
    source: Source
    transient: bool = False
    lasting: bool = False
    mode: Mode = NORMAL
    intent: Intent = Intent.NONE
    intent_boot: str = ""
    halted: str = ""
    halted_boot: str = ""
    failure: Failure | None = None
    budget: Budget = Budget()
    budget_boot: str = ""
    retry_at: float | None = None
    restarts: int = 0
    last_exit: LastExit | None = None
    launch: Launch | None = None
    slices: tuple[OwnedSlice, ...] = ()
    save: bool = False
    loans: tuple[Loan, ...] = ()
    since: datetime | None = None
    format: int = field(default=FORMAT)

    @property
    def slices_in_use(self) -> tuple[OwnedSlice, ...]:
        """Return what a QEMU has or gets, without what only waits to be given back."""
        return tuple(owned for owned in self.slices if not owned.left_over)


FRESH: dict[str, Any] = {"failure": None, "halted": "", "budget": Budget(), "retry_at": None}
"""What a person's start takes back: every earlier reason to stay down."""

_converter = make_converter(forbid_extra_keys=True)


COPY = "record.json"
"""The name of the copy in the runtime folder, which only the daemon's user can enter."""

WHAT_TO_DO = (
    "it tells which QEMU belongs to the VM: end that QEMU, then remove the file,"
    " and start the daemon again"
)
"""With a record that cannot be used: nobody but its reader knows what it told of."""


class RecordStore:
    """The directory of records. Writes of one VM never overtake each other.

    ``known`` is what is on disk; ``chains`` what images build upon. ``lending`` is held while
    files change owners, which two VMs may share, and ``chains`` is used; ``choosing`` while one of
    them takes a user that nobody else may have. ``run_of`` returns a VM's runtime folder, for the
    copies; None keeps none.
    """

    def __init__(self, directory: Path, run_of: Callable[[str], Path] | None = None) -> None:
        self.known: dict[VmName, Record] = {}
        self._run_of = run_of
        self.lending = trio.Lock()
        self.choosing = trio.Lock()
        self._directory = directory
        self.chains = ChainStore(directory.parent / "image-chains.json")
        self._directory_file = directory.parent / "vm-directory.json"
        self._locks: dict[VmName, trio.Lock] = {}

    def load_all(self) -> tuple[dict[VmName, Record], dict[VmName, str]]:
        """Read every record; the second part says which could not be read, and why.

        Such a VM must not be started by guess: the record may tell of a QEMU that still runs.
        """
        self.prepare()
        records: dict[VmName, Record] = {}
        unreadable: dict[VmName, str] = {}
        for path in sorted(self._directory.glob("*.json")):
            name = VmName(path.stem)
            try:
                records[name] = _read(path)
            except Terminal as error:
                unreadable[name] = f"{error.message}; {error.hint}"
        self.known = dict(records)
        return records, unreadable

    def prepare(self) -> None:
        """Make the directory, and remove what a write that was cut short has left."""
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        for leftover in self._directory.glob(".*.arcsup"):
            leftover.unlink()

    # Which directory the VM files were in last: its device and inode.

    def known_directory(self) -> tuple[int, int] | None:
        """Return the identity that was kept of the directory of VM files, None if none was."""
        try:
            device, inode = json.loads(self._directory_file.read_text())
        except (FileNotFoundError, ValueError, TypeError):
            return None
        return device, inode

    def keep_directory(self, identity: tuple[int, int]) -> None:
        """Keep the identity of the directory of VM files. Raises NotRecorded."""
        _replace(self._directory_file, json.dumps(identity))

    def forget_directory(self) -> None:
        """Forget it: whatever directory is there next is believed."""
        self._directory_file.unlink(missing_ok=True)

    async def save(self, record: Record) -> None:
        """Make ``record`` durable. Raises NotRecorded when the disk refuses."""
        copy = None
        if record.launch is not None and self._run_of is not None:
            copy = self._run_of(record.name) / COPY
        await self._save(record, copy)

    async def save_uncopied(self, record: Record) -> None:
        """Do the same where another QEMU runs than the record tells of: the copy is that one's."""
        await self._save(record, None)

    async def _save(self, record: Record, copy: Path | None) -> None:
        write = partial(_write_with_copy, self.path_of(record.name), copy, record)
        await self._in_turn(record.name, write)
        self.known[record.name] = record

    def load_copy(self, name: VmName) -> Record | None:
        """Return what the VM's runtime folder tells of its launch, None for nothing. Blocks.

        Raises Terminal where it cannot be read.
        """
        if self._run_of is None or not (copy := self._run_of(name) / COPY).exists():
            return None
        return _read(copy)

    async def remove(self, name: VmName) -> None:
        """Forget a VM durably. Raises NotRecorded when the disk refuses."""
        await self._in_turn(name, partial(_unlink, self.path_of(name)))
        self.known.pop(name, None)
        # Somebody who already waits for it writes next, and nobody may write beside.
        if not self._locks[name].locked():
            del self._locks[name]

    async def _in_turn(self, name: VmName, write: "partial[None]") -> None:
        async with self._locks.setdefault(name, trio.Lock()):
            # A thread, because fsync takes as long as the disk likes.
            await trio.to_thread.run_sync(write)

    def path_of(self, name: VmName) -> Path:
        """Return where the record of a VM is."""
        return self._directory / f"{name}.json"


class ReadOnlyRecords(RecordStore):
    """The same records for who only looks: nothing that changes is kept."""

    def prepare(self) -> None:
        """Leave the directory as it is. Raises NotPermitted where it may not be read."""
        try:
            next(self._directory.iterdir(), None)
        except FileNotFoundError:
            return
        except PermissionError:
            raise NotPermitted(
                f"{self._directory}: you may not read which VMs have what", "run this as root"
            ) from None

    def keep_directory(self, identity: tuple[int, int]) -> None:
        """Keep nothing."""

    def forget_directory(self) -> None:
        """Forget nothing."""

    async def save(self, record: Record) -> None:
        """Keep nothing."""

    async def save_uncopied(self, record: Record) -> None:
        """Keep nothing."""

    async def remove(self, name: VmName) -> None:
        """Remove nothing."""


def _read(path: Path) -> Record:
    try:
        raw: Any = json.loads(path.read_text())
        if not isinstance(raw, dict):
            raise TypeError("it holds no JSON object")
        if isinstance(version := raw.get("format"), int) and version > FORMAT:
            raise Terminal(
                f"{path} was written by a newer arcsup",
                "install that version again, or end its VMs, remove the file and start the daemon",
            )
        return _with_boots(_converter.structure(raw, Record))
    except (OSError, ValueError, TypeError, RecursionError, cattrs.BaseValidationError) as error:
        raise Terminal(
            f"{path} cannot be read: {error}",
            WHAT_TO_DO,
        ) from error


def _with_boots(record: Record) -> Record:
    """Return a record whose slices tell their boot: those of older journals have their QEMU's."""
    if record.launch is None:
        return record
    boot = record.launch.boot_id
    return evolve(record, slices=tuple(evolve(it, boot=it.boot or boot) for it in record.slices))


def _write(path: Path, record: Record) -> None:
    _replace(path, json.dumps(_converter.unstructure(record), indent=1))


def _write_with_copy(path: Path, copy: Path | None, record: Record) -> None:
    _write(path, record)
    if copy is not None and copy.parent.is_dir():
        _write_copy(copy, record)


def _write_copy(copy: Path, record: Record) -> None:
    """Have the copy tell what the record does, or nothing: an older one would be believed."""
    new = copy.with_name(f".{copy.name}.arcsup")
    try:
        # Not synced: it ends with the host's boot.
        new.write_text(json.dumps(_converter.unstructure(record)))
        new.replace(copy)
    except OSError as error:
        logger.warning("%s: %s", copy, error.strerror, extra={"VM": record.name})
        for stale in (new, copy):
            with suppress(OSError):  # Then the folder is gone, or cannot be written by anybody.
                stale.unlink(missing_ok=True)


def _replace(path: Path, content: str) -> None:
    try:
        write_durably(path, content, 0o640)
    except OSError as error:
        raise _not_recorded(path, error) from error


def _unlink(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
        sync_folder(path.parent)
    except OSError as error:
        raise _not_recorded(path, error) from error


def _not_recorded(path: Path, error: OSError) -> NotRecorded:
    return NotRecorded(
        f"{path} cannot be written: {error.strerror}",
        "nothing is started or stopped that could not be recorded first",
    )
