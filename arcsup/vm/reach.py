"""Finding a file that a VM names without being led astray: for a daemon that is root.

Whoever can write into a folder of images could put a link there that leads to another file, and
have root give that one away. So the way is walked one component after the other, by descriptor:
links count only where root alone can have made them, and what is found is held, not named again.
Sources: openat(2), path_resolution(7), symlink(7).
"""

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

from attrs import frozen

from arcsup.errors import Terminal
from arcsup.host.accounts import Account
from arcsup.host.trust import judge

_MOST_LINKS = 40
"""As many as the kernel itself follows (path_resolution(7))."""


@frozen
class Found:
    """A file at the end of its way, held by an O_PATH descriptor that the caller closes.

    ``path`` is its own name, without links. ``inside`` tells whether the way went through one of
    the allowed folders.
    """

    path: Path
    descriptor: int
    status: os.stat_result
    inside: bool


@frozen
class Bounds:
    """Where a daemon that is root makes and finds the files of a VM that somebody else wrote.

    ``account`` is whom the VM's programs run as, ``allowed`` are the folders for images, ``own`` is
    the folder of what the daemon itself has made for a VM to read.
    """

    account: Account
    allowed: tuple[Path, ...]
    own: Path | None = None


def find_file(what: str, path: Path, account: Account, allowed: Sequence[Path]) -> Found:
    """Walk to a file as ``account`` has to; ``what`` names it in the errors.

    Raises Terminal for what is not there, a folder that the account cannot pass, ``..``, and a
    link that somebody else than root could have made.
    """
    if ".." in path.parts:
        raise Terminal(f"{what}: {path} goes up", "write the path without ..")
    identities = {(s.st_dev, s.st_ino) for s in map(_stat_folder, allowed) if s is not None}
    at = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    ahead, gone, inside, links = list(path.parts[1:]), Path("/"), False, 0
    try:
        while ahead:
            folder = os.fstat(at)
            inside = inside or (folder.st_dev, folder.st_ino) in identities
            if not account.may(folder, os.X_OK):
                _refuse_passage(what, gone, account)
            name = ahead.pop(0)
            step = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
            status = os.fstat(step)
            if not stat.S_ISLNK(status.st_mode):
                os.close(at)
                at, gone = step, gone / name
                continue
            target = os.readlink("", dir_fd=step)
            os.close(step)
            links += 1
            if links > _MOST_LINKS or not _is_roots(gone / name, status, folder):
                raise Terminal(
                    f"{what}: {gone / name} is a link that leads elsewhere",
                    f"write the path that it leads to: {target}",
                )
            ahead = [*Path(target).parts, *ahead]
            if target.startswith("/"):
                os.close(at)
                at = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                ahead, gone = ahead[1:], Path("/")
        real = Path(f"/proc/self/fd/{at}").readlink()
        return Found(real, at, os.fstat(at), inside)
    except OSError as error:
        os.close(at)
        raise Terminal(f"{what}: {path}: {error.strerror}", "correct the path") from error
    except Terminal:
        os.close(at)
        raise


def check_path(what: str, path: Path, bounds: Bounds, *, written: bool) -> None:
    """Refuse a path that a VM may not name, before anything is made or opened for it.

    What is written, or made, must be in a folder for images; what everybody may read is read from
    anywhere. The answer tells nothing of folders that the VM's user cannot pass. Blocks.
    Raises Terminal.
    """
    if ".." in path.parts:
        raise Terminal(f"{what}: {path} goes up", "write the path without ..")
    if path.is_relative_to(bounds.allowed[0]):
        return
    if bounds.own is not None and path.is_relative_to(bounds.own) and not written:
        return
    folder = find_file(what, path.parent, bounds.account, bounds.allowed)
    try:
        within = _is_within(folder, bounds)
        linked = within and _is_link(path.name, folder.descriptor)
    finally:
        os.close(folder.descriptor)
    if within and not linked:
        return
    if linked or not written:
        found = find_file(what, path, bounds.account, bounds.allowed)
        os.close(found.descriptor)
        if found.inside or found.status.st_mode & stat.S_IROTH:
            return
    raise outside_of_images(what, path, bounds.allowed)


def outside_of_images(what: str, path: Path, allowed: Sequence[Path]) -> Terminal:
    """Return the refusal of a file that is not in a folder for images."""
    return Terminal(
        f"{what}: {path} is outside of the folders for images",
        f"move it to {allowed[0]}, or name its folder in imageDirs of arcsup.yaml",
    )


@contextmanager
def open_folder_of(what: str, path: Path, bounds: Bounds) -> Iterator[Path]:
    """Yield a path of the folder in which ``path`` is to be made; nobody can exchange it.

    Below the first allowed folder, which is arcsup's own, missing folders are made: their QEMU,
    another user, can pass them. Raises Terminal, OSError.
    """
    check_path(what, path, bounds, written=True)
    if path.is_relative_to(bounds.allowed[0]):
        _make_folders(bounds.allowed[0], path.relative_to(bounds.allowed[0]).parts[:-1])
    folder = find_file(what, path.parent, Account.current(), bounds.allowed)
    try:
        if not _is_within(folder, bounds):
            raise outside_of_images(what, path, bounds.allowed)
        yield Path(f"/proc/{os.getpid()}/fd/{folder.descriptor}")
    finally:
        os.close(folder.descriptor)


def _is_within(folder: Found, bounds: Bounds) -> bool:
    if folder.inside:
        return True
    found = (folder.status.st_dev, folder.status.st_ino)
    statuses = map(_stat_folder, bounds.allowed)
    return any(found == (it.st_dev, it.st_ino) for it in statuses if it is not None)


def _is_link(name: str, folder: int) -> bool:
    try:
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return stat.S_ISLNK(status.st_mode)


def _make_folders(top: Path, names: Sequence[str]) -> None:
    """Make the folders that are missing; a link is left for the walk to judge."""
    top.mkdir(mode=0o711, parents=True, exist_ok=True)
    at = os.open(top, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in names:
            made = False
            with suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=at)
                made = True
            step = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
            os.close(at)
            at = step
            if not stat.S_ISDIR(os.fstat(at).st_mode):
                return
            if made:
                # A umask takes that away from what mkdir gives.
                Path(f"/proc/self/fd/{at}").chmod(0o711)
    finally:
        os.close(at)


def _stat_folder(folder: Path) -> os.stat_result | None:
    try:
        return folder.stat()
    except OSError:
        return None


def _is_roots(path: Path, link: os.stat_result, folder: os.stat_result) -> bool:
    """A link's own mode is always rwxrwxrwx: its folder says who can replace it."""
    return link.st_uid == 0 and not judge(path.parent, folder)


def _refuse_passage(what: str, folder: Path, account: Account) -> NoReturn:
    raise Terminal(
        f"{what}: QEMU runs as user {account.uid}, who cannot pass through {folder}",
        f"move the file, or: chmod o+x {folder}",
    )
