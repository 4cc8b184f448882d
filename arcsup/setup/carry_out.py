"""Doing what was planned, and taking it back: one action at a time, journalled before it is done.

Each action can be done again after a crash in its middle, and so can taking it back.
"""

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from attrs import evolve, frozen

from arcsup.durable import write_durably
from arcsup.errors import NotPermitted, Terminal
from arcsup.setup.actions import (
    Action,
    Command,
    CreateDirectory,
    CreateFile,
    CreateGroup,
    CreateUser,
    InstallPackages,
    ReplaceFile,
    RunCommand,
    SecureDirectory,
)
from arcsup.setup.commands import run_command
from arcsup.setup.groups import find_group, has_user
from arcsup.setup.host import Host, read_text
from arcsup.setup.journal import Entry, Journal
from arcsup.setup.packages import install_packages, remove_packages

T = TypeVar("T")
"""What doing or taking back tells."""

Tell = Callable[[str], None]
"""Told of each thing as it begins."""


@frozen
class Kept:
    """What was not taken back and is left to the user, and why."""

    action: Action
    why: str


@frozen
class Failed:
    """What could not be done or taken back, and why; the journal has it, to try it again."""

    action: Action
    why: str


def journal_of(host: Host) -> Journal:
    """Return the host's journal of setup. Raises Terminal when it cannot be read."""
    return Journal.load(host.places.state / "setup.json")


def apply_all(
    host: Host, journal: Journal, actions: Iterable[Action], tell: Tell
) -> tuple[Failed, ...]:
    """Do what is planned, in order; return what failed. Raises NotPermitted."""
    failed = []
    for action in actions:
        tell(str(action))
        journal.begin(action)
        try:
            journal.replace_last(_guarded(_do, host, journal.entries[-1]))
        except Terminal as error:
            failed.append(Failed(action, _tell_error(error)))
    return tuple(failed)


def list_pending(journal: Journal) -> tuple[Action, ...]:
    """Return what an earlier run began and `finish` ends.

    Not commands and packages: whether the host still lacks what they bring, only a plan can tell.
    """
    return tuple(entry.action for entry in journal.entries if _is_pending(entry))


def finish(host: Host, journal: Journal, tell: Tell) -> tuple[Failed, ...]:
    """Do what is pending again; return what failed. Raises NotPermitted."""
    failed = []
    for index, entry in enumerate(journal.entries):
        if not _is_pending(entry):
            continue
        tell(f"{entry.action} (again)")
        try:
            journal.entries[index] = _guarded(_do, host, entry)
        except Terminal as error:
            failed.append(Failed(entry.action, _tell_error(error)))
        journal.save()
    return tuple(failed)


def _is_pending(entry: Entry) -> bool:
    return not entry.done and not isinstance(entry.action, RunCommand | InstallPackages)


def undo_all(host: Host, journal: Journal, tell: Tell) -> Iterator[Kept | Failed]:
    """Take back everything, last first; yields what was not, and goes on with the rest.

    Raises NotPermitted.
    """
    for index in reversed(range(len(journal.entries))):
        entry = journal.entries[index]
        if _holds_journal(journal, entry):
            if journal.entries[index + 1 :]:
                # What failed is noted there.
                continue
            # Its own folder goes now, which is empty only without it.
            journal.file.unlink(missing_ok=True)
        tell(f"undo: {entry.action}")
        try:
            why = _guarded(_undo, host, entry)
        except Terminal as error:
            why = _tell_error(error)
            if entry.done:
                yield Failed(entry.action, why)
                continue
            # It may never have done anything that could be taken back.
        journal.forget(index)
        if why:
            yield Kept(entry.action, why)


def _holds_journal(journal: Journal, entry: Entry) -> bool:
    action = entry.action
    return isinstance(action, CreateDirectory) and journal.file.is_relative_to(action.path)


def _tell_error(error: Terminal) -> str:
    return f"{error.message}; {error.hint}" if error.hint else error.message


def take_back(host: Host, journal: Journal, chosen: Callable[[Action], bool], tell: Tell) -> None:
    """Take back what ``chosen`` is true of, last first, whether others have changed it or not.

    Raises ArcsupError at the first that fails.
    """
    for index in reversed(range(len(journal.entries))):
        entry = journal.entries[index]
        if chosen(entry.action):
            tell(f"undo: {entry.action}")
            _guarded(_undo, host, entry)
            journal.forget(index)


def _guarded(act: Callable[[Host, Entry], T], host: Host, entry: Entry) -> T:
    try:
        return act(host, entry)
    except PermissionError as error:
        raise NotPermitted(
            f"{error.filename}: {error.strerror}", "run it as root: sudo arcsup setup"
        ) from error
    except OSError as error:
        raise Terminal(
            f"{error.filename}: {error.strerror}", f"it was to {entry.action}"
        ) from error


def _do(host: Host, entry: Entry) -> Entry:
    packages: tuple[str, ...] = ()
    match entry.action:
        case CreateDirectory(path=path, mode=mode):
            Path(path).mkdir(exist_ok=True)
            # Not by mkdir: the umask would have its say.
            Path(path).chmod(mode)
        case SecureDirectory(path=path, uid=uid, mode=mode):
            os.chown(path, uid, -1)
            Path(path).chmod(mode)
        case CreateFile(path=path, content=content, mode=mode, then=then):
            if not os.path.lexists(path):
                write_durably(Path(path), content, mode)
            _run_all(host, then)
        case ReplaceFile(path=path, before=before, after=after, then=then):
            if not _replace(Path(path), before, after):
                raise Terminal(f"{path} was changed meanwhile", "run `arcsup setup` again")
            _run_all(host, then)
        case InstallPackages() as action:
            packages = install_packages(host, action)
        case CreateGroup() | CreateUser() as action:
            _create_account(host, action)
        case RunCommand(apply=argv):
            run_command(host, argv)
    return evolve(entry, done=True, packages=packages)


def _undo(host: Host, entry: Entry) -> str:
    """Take one action back; return why it was left, "" when it is gone."""
    match entry.action:
        case CreateDirectory(path=path):
            return _remove_directory(Path(path))
        case SecureDirectory() as action:
            return _restore_directory(action)
        case CreateFile(path=path, content=content, then=then):
            if not _remove_file(Path(path), content):
                return "it was changed since"
            _run_all(host, then)
        case ReplaceFile(path=path, before=before, after=after, then=then):
            if not _replace(Path(path), after, before):
                return "it was changed since"
            _run_all(host, then)
        case InstallPackages() as action:
            # Of a run that did not end, only what was asked for is known to be its doing.
            names = entry.packages if entry.done else action.packages
            remove_packages(host, action, names)
        case CreateGroup() | CreateUser() as action:
            return _remove_account(host, action)
        case RunCommand(undo=argv):
            run_command(host, argv)
    return ""


def _create_account(host: Host, action: CreateGroup | CreateUser) -> None:
    match action:
        case CreateGroup(name=name):
            if find_group(host, name) is None:
                run_command(host, ("groupadd", "--system", name))
        case CreateUser(name=name, groups=groups):
            command = ("useradd", "--system", "--user-group", "--no-create-home")
            nowhere = ("--home-dir", "/nonexistent", "--shell", "/usr/sbin/nologin")
            more = ("--groups", ",".join(groups)) if groups else ()
            if not has_user(host, name):
                run_command(host, (*command, *nowhere, *more, name))


def _remove_account(host: Host, action: CreateGroup | CreateUser) -> str:
    match action:
        case CreateGroup(name=name):
            group = find_group(host, name)
            if group is not None and group.members:
                return f"it has members: {', '.join(group.members)}"
            if group is not None:
                run_command(host, ("groupdel", name))
        case CreateUser(name=name):
            if has_user(host, name):
                run_command(host, ("userdel", name), "a process of it may run: stop its VMs first")
    return ""


def _run_all(host: Host, commands: tuple[Command, ...]) -> None:
    for command in commands:
        run_command(host, command)


def _replace(file: Path, before: str, after: str) -> bool:
    """Write ``after`` where ``before`` is; tell whether it is there now."""
    # Another file in place of a symlink would leave the one that it points to behind.
    file = file.resolve()
    found = read_text(file)
    if found == before:
        write_durably(file, after, stat.S_IMODE(file.stat().st_mode))
    return found in {before, after}


def _remove_file(file: Path, content: str) -> bool:
    """Remove a file that still holds ``content``; tell whether it is gone."""
    if read_text(file) == content:
        file.unlink(missing_ok=True)
    return not os.path.lexists(file)


def _remove_directory(folder: Path) -> str:
    if not folder.exists():
        return ""
    if any(folder.iterdir()):
        return "it is not empty"
    folder.rmdir()
    return ""


def _restore_directory(action: SecureDirectory) -> str:
    folder = Path(action.path)
    if not folder.exists():
        return ""
    status = folder.stat()
    if (status.st_uid, stat.S_IMODE(status.st_mode)) != (action.uid, action.mode):
        return "its owner or mode was changed since"
    folder.chmod(action.mode_before)
    os.chown(folder, action.uid_before, -1)
    return ""
