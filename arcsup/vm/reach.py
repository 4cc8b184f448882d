"""Finding a file that a VM names without being led astray: for a daemon that is root.

Whoever can write into a folder of images could put a link there that leads to another file, and
have root give that one away. So the way is walked one component after the other, by descriptor:
links count only where root alone can have made them, and what is found is held, not named again.
Sources: openat(2), path_resolution(7), symlink(7).
"""

import os
import stat
from collections.abc import Sequence
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
