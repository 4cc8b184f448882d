"""The VM directory -> a snapshot of what its files ask for. The only input of this room.

Reading is level-triggered: every call looks at the whole directory, and what has not changed since
the previous snapshot is not read again. Nothing is ever written.
"""

import hashlib
import os
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path

from attrs import evolve, field, frozen

from arcsup.model import Vm, VmName
from arcsup.spec.faults import Fault, Problems
from arcsup.spec.files import (
    WRITER_LIMIT,
    Key,
    Unsettled,
    Unusable,
    key_of,
    read_file,
    tell_insecurity,
)
from arcsup.spec.native import Parsed, read_vm
from arcsup.spec.nodes import decode
from arcsup.spec.together import Source, check_together

REMOVAL_GRACE = 0.5
"""Seconds that a file must be away to count as removed: editors remove a file and make it again."""

LOOK_AGAIN = 0.05
LOOK_SELDOM = 2.0
"""Seconds after which to look again at a file that was still being written: at first, and when that
has gone on for long."""


NEVER_SETTLES = (
    f"has been written to for more than {WRITER_LIMIT:g} s without a pause; it is read as soon as"
    " it is left alone; fuser(1) tells who has it open"
)


class DirectoryState(StrEnum):
    """Whether a VM directory can be believed. In all states but PRESENT the old entries stay.

    REPLACED_EMPTY: another directory without VM files is in its place, as when it was unmounted.
    """

    PRESENT = "present"
    MISSING = "missing"
    UNREADABLE = "unreadable"
    REPLACED_EMPTY = "replaced-empty"


@frozen
class Entry:
    """A VM file. ``vm`` is None exactly when there are faults.

    ``last_good`` is the version to run: ``vm``, or while that is None the last one that had no
    faults. ``digest`` is the SHA-256 of the text in hex, "" when the file could not be read.
    ``gone_at`` is when the file was first missed (seconds, as ``now``), None while it is there.
    """

    file: Path
    name: VmName
    text: str
    digest: str
    vm: Vm | None
    last_good: Vm | None
    faults: tuple[Fault, ...] = ()
    warnings: tuple[str, ...] = ()
    gone_at: float | None = None


@frozen
class _File:
    """A file by itself, before it is compared with the others."""

    path: Path
    parsed: Parsed
    text: str = ""
    digest: str = ""
    key: Key | None = None
    gone_at: float | None = None


@frozen
class Snapshot:
    """What the VM directory says, and what the next look needs to know about this one.

    ``entries`` are in the order of their standing: who was there first comes first. ``reason``
    tells a person why ``directory`` is not PRESENT. ``unsettled`` files are being written, since
    when (seconds, as ``now``); they have their previous version, or no entry yet, and a fault after
    WRITER_LIMIT. ``findings`` are about things that are no VM files. ``look_again_at`` is when to
    look again even if nothing reports a change.
    """

    directory: DirectoryState
    reason: str = ""
    entries: Mapping[Path, Entry] = field(factory=dict)
    findings: tuple[Fault, ...] = ()
    unsettled: Mapping[Path, float] = field(factory=dict)
    look_again_at: float | None = None
    identity: tuple[int, int] | None = None
    files: Mapping[Path, _File] = field(factory=dict, repr=False)


@frozen
class Circumstances:
    """What reading depends on besides the files.

    ``images`` is what relative image paths hang off. ``system``: act only on what nobody but root
    can change. ``last_good`` are the versions that ran before the daemon started, by name.
    ``resolve`` takes the links out of an image's path.
    """

    machine_id: str
    images: Path
    system: bool = False
    last_good: Mapping[VmName, Vm] = field(factory=dict)
    resolve: Callable[[Path], str] = os.path.realpath


def read_directory(
    vms: Path, previous: Snapshot | None, circumstances: Circumstances, now: float
) -> Snapshot:
    """Return what the VM files ask for; ``previous`` itself when nothing has changed.

    ``now`` is the time of day in seconds. Never raises OSError: what cannot be read is told.
    """
    try:
        directory = os.open(vms, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return _keep(previous, DirectoryState.MISSING, f"{vms} is not there; run: mkdir -p {vms}")
    except NotADirectoryError:
        return _keep(previous, DirectoryState.UNREADABLE, f"{vms} is no directory")
    except OSError as error:
        reason = f"{vms} cannot be read: {error.strerror}"
        return _keep(previous, DirectoryState.UNREADABLE, reason)
    try:
        return _look(vms, directory, previous, circumstances, now)
    except OSError as error:
        reason = f"{vms} cannot be read: {error.strerror}"
        return _keep(previous, DirectoryState.UNREADABLE, reason)
    finally:
        os.close(directory)


def _keep(previous: Snapshot | None, state: DirectoryState, reason: str) -> Snapshot:
    """Return the previous entries under a directory that cannot be believed."""
    if previous is None:
        return Snapshot(state, reason)
    if (previous.directory, previous.reason) == (state, reason):
        return previous
    # The identity stays: an empty directory seen a second time must not pass for the old one.
    return evolve(previous, directory=state, reason=reason, look_again_at=None)


def _look(
    vms: Path, directory: int, previous: Snapshot | None, given: Circumstances, now: float
) -> Snapshot:
    status = os.fstat(directory)
    identity = (status.st_dev, status.st_ino)
    names, findings = _list(vms, directory)
    before = previous.files if previous is not None else {}
    replaced = previous is not None and previous.identity not in {None, identity}
    if replaced and before and not names:
        reason = f"{vms} was replaced by an empty directory (unmounted?); its VMs are kept"
        return _keep(previous, DirectoryState.REPLACED_EMPTY, reason)
    insecure = tell_insecurity(status) if given.system else ""
    files: dict[Path, _File] = {}
    unsettled: dict[Path, float] = {}
    for name in names:
        path = vms / name
        old = before.get(path)
        if insecure:
            files[path] = _unusable(path, f"{vms} {insecure}", old)
            continue
        found = _read(path, directory, vms, old, given, now)
        if isinstance(found, Unsettled):
            # The clock may have been set back meanwhile.
            since = min(now, previous.unsettled.get(path, now) if previous is not None else now)
            unsettled[path] = since
            found = old if now - since <= WRITER_LIMIT else _unusable(path, NEVER_SETTLES, old)
        if found is not None:
            files[path] = found
    files |= _gone(before, {*files, *unsettled}, files, now)
    if previous is not None and _is_same(previous, files, findings, unsettled, identity):
        return previous
    return Snapshot(
        DirectoryState.PRESENT,
        entries=_compare(files, previous, given),
        findings=findings,
        unsettled=unsettled,
        look_again_at=_next_look(files, unsettled, now),
        identity=identity,
        files=files,
    )


def _is_same(
    previous: Snapshot,
    files: Mapping[Path, _File],
    findings: tuple[Fault, ...],
    unsettled: Mapping[Path, float],
    identity: tuple[int, int],
) -> bool:
    return (
        previous.directory is DirectoryState.PRESENT
        and previous.identity == identity
        and previous.findings == findings
        and not unsettled
        and not previous.unsettled
        and previous.files.keys() == files.keys()
        and all(previous.files[path] is file for path, file in files.items())
    )


def _list(vms: Path, directory: int) -> tuple[list[str], tuple[Fault, ...]]:
    """Return the names of VM files, and findings about names that may be meant as such."""
    names: list[str] = []
    findings: list[Fault] = []
    with os.scandir(directory) as entries:
        for name in sorted(entry.name for entry in entries):
            if name.startswith(".") or not name.lower().endswith((".yaml", ".yml")):
                continue
            if not name.isprintable():
                shown = vms / name.encode("unicode_escape").decode()
                message = "the name holds what cannot be shown, rename the file"
                findings.append(Fault(shown, 1, 1, "", message))
            elif not name.endswith(".yaml"):
                message = f"is not read, rename it to {Path(name).stem}.yaml"
                findings.append(Fault(vms / name, 1, 1, "", message))
            else:
                names.append(name)
    return names, tuple(findings)


def _read(
    path: Path, directory: int, vms: Path, old: _File | None, given: Circumstances, now: float
) -> _File | Unsettled | None:
    """Return a file as it is now, ``old`` itself when it has not changed, None when it is away."""
    try:
        key = key_of(os.stat(path.name, dir_fd=directory))
    except FileNotFoundError:
        if not path.is_symlink():
            return None  # it went between listing and looking
        key = None
    except OSError:
        key = None  # read_file tells why
    if old is not None and key is not None and old.key == key and old.gone_at is None:
        return old
    found = read_file(path, directory, vms, now, system=given.system)
    if isinstance(found, Unsettled):
        return found
    if isinstance(found, Unusable):
        return _unusable(path, found.message, old)
    digest = hashlib.sha256(found.data).hexdigest()
    if old is not None and old.digest == digest:
        return evolve(old, key=found.key, gone_at=None)
    try:
        text = decode(found.data)
    except Problems:
        text = ""
    parsed = read_vm(found.data, path, given.machine_id)
    return _File(path, parsed, text, digest, found.key)


def _unusable(path: Path, message: str, old: _File | None) -> _File:
    name = old.parsed.name if old is not None else VmName(path.stem)
    file = _File(path, Parsed(name, None, (Fault(path, 1, 1, "", message),)))
    return old if old == file else file


def _gone(
    before: Mapping[Path, _File], there: set[Path], files: Mapping[Path, _File], now: float
) -> dict[Path, _File]:
    """Return the files that are away, for not long enough to be believed removed."""
    names = {file.parsed.name for file in files.values()}
    gone: dict[Path, _File] = {}
    for path, file in before.items():
        # A file that has another name now is moved, not removed.
        if path in there or file.parsed.name in names:
            continue
        since = min(now, file.gone_at) if file.gone_at is not None else now
        if now - since < REMOVAL_GRACE:
            gone[path] = file if file.gone_at == since else evolve(file, gone_at=since)
    return gone


def _next_look(
    files: Mapping[Path, _File], unsettled: Mapping[Path, float], now: float
) -> float | None:
    times = [file.gone_at + REMOVAL_GRACE for file in files.values() if file.gone_at is not None]
    # Who has been writing for a minute is not done in the next twentieth of a second.
    times += [now + min(LOOK_SELDOM, max(LOOK_AGAIN, now - it)) for it in unsettled.values()]
    if any(file.key is None and file.digest for file in files.values()):
        times.append(now + LOOK_AGAIN)
    return min(times, default=None)


def _compare(
    files: Mapping[Path, _File], previous: Snapshot | None, given: Circumstances
) -> dict[Path, Entry]:
    """Return the entries in the order of their standing, with the faults between them."""
    before = previous.entries if previous is not None else {}
    places = {path: place for place, path in enumerate(before)}

    def standing(file: _File) -> tuple[int, int, Path]:
        old = before.get(file.path)
        if old is not None and old.vm is not None:
            rank = 0 if old.digest == file.digest else 1
        else:
            rank = 2 if _last_good(file, before, given) is not None else 3
        return rank, places.get(file.path, len(places)), file.path

    ordered = sorted(files.values(), key=standing)
    sources = [
        Source(
            file.path,
            file.parsed.name,
            file.text,
            file.parsed.vm,
            _last_good(file, before, given),
        )
        for file in ordered
    ]
    contested = check_together(sources, lambda image: given.resolve(given.images / image))
    entries: dict[Path, Entry] = {}
    for file, source in zip(ordered, sources, strict=True):
        faults = file.parsed.faults or contested.get(file.path, ())
        vm = None if faults else file.parsed.vm
        entry = Entry(
            file=file.path,
            name=file.parsed.name,
            text=file.text,
            digest=file.digest,
            vm=vm,
            last_good=vm or source.standing,
            faults=faults,
            warnings=file.parsed.warnings,
            gone_at=file.gone_at,
        )
        old = before.get(file.path)
        entries[file.path] = old if old is not None and old == entry else entry
    return entries


def _last_good(file: _File, before: Mapping[Path, Entry], given: Circumstances) -> Vm | None:
    """Return the version that runs: of this file, else of the file that had the name before."""
    if file.path in before:
        return before[file.path].last_good
    for entry in before.values():
        if entry.name == file.parsed.name:
            return entry.last_good
    return given.last_good.get(file.parsed.name) if not before else None
