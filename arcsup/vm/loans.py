"""Files and devices that belong to a VM's QEMU while it runs, and to their owner afterwards.

The record says what is changed, and what it was, before anything is: after a crash at any
instruction the next daemon puts it back. A file counts as the same by device and inode, never by
its name. What a VM alone writes is given to its user; what several may read is given to the group
that all of them have, and put back when the last of them has ended.
"""

import os
import re
import stat
import struct
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import IO

import trio
from attrs import evolve, frozen

from arcsup.errors import Terminal
from arcsup.host.accounts import Account
from arcsup.vm.image_files import QCOW2_MAGIC
from arcsup.vm.reach import Found, find_file

LONGEST_CHAIN = 32
"""Images that may build upon one another."""

LONGEST_NAME = 1023
"""Bytes of a base's name (QEMU, docs/interop/qcow2.txt: "must not be longer than 1023 bytes")."""

_HEADER = struct.Struct(">4sIQI52xQ")
"""magic, version, backing_file_offset, backing_file_size, incompatible_features (at byte 72)."""

_EXTERNAL_DATA = 1 << 2

_PROTOCOL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
"""What QEMU takes for a driver or a URL at the beginning of a name."""

_BASE_OF = ", its base"


class Access(StrEnum):
    """What a QEMU does with a file."""

    OWN = "own"
    READ = "read"
    USE = "use"
    """Read and write beside its owner: a device that a viewer of the host opens too."""


@frozen
class WantedFile:
    """A file that a VM's programs open. ``own_file`` is one that arcsup itself has made or chosen.

    Anything else must be in a folder for images, unless everybody may read it anyway. What a
    qcow2 image says that it builds upon is wanted too.
    """

    what: str
    path: Path
    access: Access
    own_file: bool = False
    is_qcow2: bool = False


@frozen
class Ownership:
    """Whose a file is; ``mode`` is the permission bits."""

    uid: int
    gid: int
    mode: int


@frozen
class Loan:
    """A file that belongs to a VM's user for now; ``before`` is put back."""

    path: str
    device: int
    inode: int
    before: Ownership
    lent: Ownership

    @property
    def identity(self) -> tuple[int, int]:
        """Which file it is."""
        return self.device, self.inode


@frozen
class Terms:
    """How files are lent: to whom, with which group for what is shared, from which folders.

    ``hidden`` are folders that the VM's programs do not see.
    """

    account: Account
    reading_gid: int
    allowed: tuple[Path, ...]
    hidden: tuple[Path, ...] = ()


def find_loans(
    wanted: Iterable[WantedFile],
    terms: Terms,
    running: Mapping[tuple[int, int], Loan],
    opened: ExitStack,
) -> list[tuple[Loan, int]]:
    """Return what must be lent, each with a descriptor that ``opened`` closes; changes nothing.

    ``running`` are loans that are out already: what such a file was before is in them. Blocks.
    Raises Terminal for a file that a VM may not have.
    """
    loans: dict[tuple[int, int], tuple[Loan, int]] = {}
    ahead = list(wanted)
    while ahead:
        file = ahead.pop(0)
        found = find_file(file.what, file.path, terms.account, terms.allowed)
        opened.callback(os.close, found.descriptor)
        _require_in_sight(file, found, terms)
        identity = (found.status.st_dev, found.status.st_ino)
        loan = _judge(file, found, terms, running.get(identity))
        if file.is_qcow2 and (base := find_base(file.what, file.path, found.descriptor)):
            ahead.append(base)
        # Named twice, as a disk and as another's base: the one that may write counts.
        if loan is not None and (identity not in loans or file.access is Access.OWN):
            loans[identity] = (loan, found.descriptor)
    return list(loans.values())


def find_base(what: str, path: Path, descriptor: int) -> WantedFile | None:
    """Return what a qcow2 image builds upon; None for nothing, and for an image of another kind.

    Raises Terminal for a chain that is too long, or leads to something that is no file.
    """
    if what.count(_BASE_OF) > LONGEST_CHAIN:
        raise Terminal(
            f"{what.partition(_BASE_OF)[0]}: builds upon more than {LONGEST_CHAIN} images",
            "qemu-img rebase shortens the chain",
        )
    with open(f"/proc/self/fd/{descriptor}", "rb") as image:
        name = read_base_name(f"{what}: {path}", image)
    if name is None:
        return None
    if _PROTOCOL.match(name):
        raise Terminal(f"{what}: {path} builds upon {name!r}, which is no file", "rebase it")
    return WantedFile(what + _BASE_OF, path.parent / name, Access.READ, is_qcow2=True)


def read_base_name(what: str, image: IO[bytes]) -> str | None:
    """Return the name of the file that an open qcow2 image builds upon; None where there is none.

    Raises Terminal where it keeps its data outside, or the header makes no sense.
    """
    header = image.read(_HEADER.size)
    if len(header) < _HEADER.size or not header.startswith(QCOW2_MAGIC):
        return None
    _magic, version, offset, size, features = _HEADER.unpack(header)
    if version >= 3 and features & _EXTERNAL_DATA:
        raise Terminal(f"{what} keeps its data in another file", "convert it with qemu-img")
    if offset == 0:
        return None
    image.seek(offset)
    name = image.read(size)
    if len(name) != size or not 0 < size <= LONGEST_NAME or b"\0" in name:
        raise Terminal(f"{what}: its qcow2 header is damaged", "qemu-img check tells more")
    return os.fsdecode(name)


def _judge(file: WantedFile, found: Found, terms: Terms, known: Loan | None) -> Loan | None:
    # No image is a program, and set-user-ID bits may be from whom an earlier loan gave it to.
    status, mode = found.status, stat.S_IMODE(found.status.st_mode) & 0o777
    if not file.own_file:
        _require_image(file, found, terms)
    uid, gid = status.st_uid, status.st_gid
    if file.own_file and not _is_device(status):
        # root's own: what an earlier loan of it left to somebody else is not kept.
        uid, gid, mode = 0, 0, mode & 0o750
    before = known.before if known is not None else Ownership(uid, gid, mode)
    account = terms.account
    if file.access is Access.OWN:
        lent = Ownership(account.uid, status.st_gid, mode | 0o600)
    elif account.may(status, os.R_OK if file.access is Access.READ else os.R_OK | os.W_OK):
        lent = Ownership(status.st_uid, status.st_gid, mode)
    elif file.access is Access.USE:
        lent = Ownership(status.st_uid, account.gid, mode | 0o060)
    else:
        lent = Ownership(status.st_uid, terms.reading_gid, mode | 0o040)
    if lent == before:
        return None
    if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
        raise Terminal(
            f"{file.what}: {file.path} has {status.st_nlink} names (hard links)",
            "its owner is changed for QEMU, which must not reach another name: make a copy",
        )
    return Loan(str(found.path), status.st_dev, status.st_ino, before, lent)


def _is_device(status: os.stat_result) -> bool:
    return stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode)


def _require_in_sight(file: WantedFile, found: Found, terms: Terms) -> None:
    for folder in terms.hidden:
        if found.path.is_relative_to(folder):
            raise Terminal(
                f"{file.what}: {found.path} is in {folder}, and the VM has one of its own",
                f"move it to {terms.allowed[0]}",
            )


def _require_image(file: WantedFile, found: Found, terms: Terms) -> None:
    mode = found.status.st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        raise Terminal(f"{file.what}: {file.path} is no file and no block device", "correct it")
    everybody_reads = file.access is Access.READ and mode & stat.S_IROTH
    if found.inside or everybody_reads:
        return
    raise Terminal(
        f"{file.what}: {file.path} is outside of the folders for images",
        f"move it to {terms.allowed[0]}, or name its folder in imageDirs of arcsup.yaml",
    )


async def lend(loans: Sequence[tuple[Loan, int]]) -> None:
    """Change the owners. What a crash leaves half done is done again, or put back."""

    def change() -> None:
        for loan, descriptor in loans:
            _hand_over_content(descriptor, loan.before.uid, loan.lent)
            change_owner(descriptor, loan.lent)

    await trio.to_thread.run_sync(change)


def change_owner(descriptor: int, to: Ownership) -> None:
    """Change the file that an O_PATH descriptor holds, wherever its name leads by now."""
    # fchown(2) refuses O_PATH; the link in /proc leads to the very file (proc(5)).
    magic = Path(f"/proc/self/fd/{descriptor}")
    os.chown(magic, to.uid, to.gid)
    # What was lent is never to run as its owner; records of older versions may say so.
    magic.chmod(to.mode & 0o777)


def put_back(loans: Iterable[Loan], running: Mapping[tuple[int, int], Loan]) -> dict[Loan, str]:
    """Give files back to their owners; return those that could not be, with the reason. Blocks.

    One that another VM still has stays as it is: that VM's loan knows the owner too.
    """
    failed = {}
    for loan in loans:
        if loan.identity in running:
            continue
        try:
            _put_back(loan)
        except FileNotFoundError:
            continue
        except OSError as error:
            failed[loan] = f"{loan.path}: {error.strerror}"
    return failed


def _put_back(loan: Loan) -> None:
    descriptor = os.open(loan.path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if (status.st_dev, status.st_ino) != loan.identity:
            return
        _hand_over_content(descriptor, loan.lent.uid, loan.before)
        change_owner(descriptor, loan.before)
    finally:
        os.close(descriptor)


def _hand_over_content(folder: int, giver: int, to: Ownership) -> None:
    """Do the same for the files of a lent folder, as far as they are plainly the giver's."""
    if not stat.S_ISDIR(os.fstat(folder).st_mode):
        return
    for entry in Path(f"/proc/self/fd/{folder}").iterdir():
        descriptor = os.open(entry.name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        try:
            status = os.fstat(descriptor)
            plain = stat.S_ISREG(status.st_mode) and status.st_nlink == 1
            if plain and status.st_uid == giver:
                change_owner(descriptor, evolve(to, mode=stat.S_IMODE(status.st_mode) & 0o777))
        finally:
            os.close(descriptor)
