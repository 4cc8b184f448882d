"""Files and devices that belong to a VM's QEMU while it runs, and to their owner afterwards.

The record says what is changed, and what it was, before anything is: after a crash at any
instruction the next daemon puts it back. A file counts as the same by device and inode, never by
its name. What a VM alone writes is given to its user; what several may read is given to the group
that all of them have, and put back when the last of them has ended.
"""

import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path

import trio
from attrs import evolve, frozen

from arcsup.errors import Terminal
from arcsup.host.accounts import Account
from arcsup.vm.chains import ImageId, Link, Upper, check_base, find_base, find_link
from arcsup.vm.image_files import has_qcow2_magic
from arcsup.vm.layers import Layer
from arcsup.vm.qcow2 import LONGEST_CHAIN
from arcsup.vm.reach import Found, find_file

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
    qcow2 image builds upon is wanted too; ``bases`` are those that the VM's file names, from the
    top, and with ``raw_base`` the first of them is raw. ``said`` is the format of a base in the
    header above it. ``thrown_away`` is an image that was made for this run alone.
    """

    what: str
    path: Path
    access: Access
    own_file: bool = False
    is_qcow2: bool = False
    bases: tuple[Path, ...] = ()
    raw_base: bool = False
    said: str = ""
    thrown_away: bool = False


@frozen
class Ownership:
    """Whose a file is; ``mode`` is the permission bits: no set-user-ID, which nobody gets back."""

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

    ``hidden`` are folders that the VM's programs do not see; ``links`` is what images that were
    lent before build upon.
    """

    account: Account
    reading_gid: int
    allowed: tuple[Path, ...]
    hidden: tuple[Path, ...] = ()
    links: tuple[Link, ...] = ()


def find_loans(
    wanted: Iterable[WantedFile],
    terms: Terms,
    running: Mapping[tuple[int, int], Loan],
    opened: ExitStack,
) -> tuple[list[tuple[Loan, int]], tuple[Link, ...]]:
    """Return what must be lent, each with a descriptor that ``opened`` closes; changes nothing.

    The second part is what the images build upon, which must be kept before anything is lent.
    ``running`` are loans that are out already: what such a file was before is in them. Blocks.
    Raises Terminal for a file that a VM may not have.
    """
    loans: dict[tuple[int, int], tuple[Loan, int]] = {}
    links: list[Link] = []
    for walked in _walk(wanted, terms, opened):
        links += walked.links
        status = walked.found.status
        identity = (status.st_dev, status.st_ino)
        loan = _judge(walked.file, walked.found, terms, running.get(identity))
        # Named twice, as a disk and as another's base: the one that may write counts.
        if loan is not None and (identity not in loans or walked.file.access is Access.OWN):
            loans[identity] = (loan, walked.found.descriptor)
    return list(loans.values()), tuple(links)


def find_layers(
    image: WantedFile, terms: Terms, opened: ExitStack
) -> tuple[list[Layer], tuple[Link, ...]]:
    """Return an image and all that it builds upon, from the top, as far as that may be believed.

    ``opened`` closes the descriptors. The second part is what must be kept before any of it is
    handed over. Blocks. Raises Terminal as ``find_loans`` does.
    """
    walked = list(_walk((image,), terms, opened))
    for it in walked:
        written = it.file.access is Access.OWN
        if written or not terms.account.may(it.found.status, os.R_OK):
            _require_one_name(it.file, it.found.status)
    layers = [Layer(it.found.path, it.found.descriptor, it.found.status, it.raw) for it in walked]
    return layers, tuple(link for it in walked for link in it.links)


@frozen
class _Walked:
    """A file that was found, what that tells of images, and whether it is a raw one."""

    file: WantedFile
    found: Found
    links: tuple[Link, ...]
    raw: bool


def _walk(wanted: Iterable[WantedFile], terms: Terms, opened: ExitStack) -> Iterator[_Walked]:
    ahead: list[tuple[WantedFile, Upper | None]] = [(file, None) for file in wanted]
    while ahead:
        file, upper = ahead.pop(0)
        found = find_file(file.what, file.path, terms.account, terms.allowed)
        opened.callback(os.close, found.descriptor)
        _require_in_sight(file, found, terms)
        if not file.own_file:
            _require_image(file, found, terms)
        image, raw = ImageId.of(found), True
        links: list[Link] = []
        if upper is not None:
            check_base(upper, image, found.status)
            links += () if upper.thrown_away else (Link(upper.image, base=image),)
        if not file.own_file and (file.is_qcow2 or file.access is Access.OWN):
            known = find_link(image, terms.links)
            raw = _is_raw(file, found, known)
            if below := _find_below(file, found, image, known):
                ahead.append(below)
            elif not file.thrown_away:
                links.append(Link(image, raw=raw))
        yield _Walked(file, found, tuple(links), raw)


def _is_raw(file: WantedFile, found: Found, known: Link | None) -> bool:
    """Tell whether an image is raw: one of the VM's file by that, a base by what was known."""
    if _BASE_OF not in file.what:
        return not file.is_qcow2
    if known is not None:
        return known.raw
    # A base that was never lent: no guest has written to it, and what is above says how to read it.
    if file.said == "raw":
        return True
    with open(f"/proc/self/fd/{found.descriptor}", "rb") as image:
        return not has_qcow2_magic(image)


def _find_below(
    file: WantedFile, found: Found, image: ImageId, known: Link | None
) -> tuple[WantedFile, Upper] | None:
    """Return the next layer below an image, and who says so; None where there is none.

    Raises Terminal for a chain that is too long, or leads to something that is no file.
    """
    is_base = _BASE_OF in file.what
    # A guest that writes to a raw disk writes what looks like a header as it likes.
    if not file.is_qcow2 or (is_base and _is_raw(file, found, known)):
        return None
    if (base := find_base(file.what, file.path, found.descriptor)) is None:
        return None
    path, said = base
    if file.what.count(_BASE_OF) >= LONGEST_CHAIN:
        raise Terminal(
            f"{file.what.partition(_BASE_OF)[0]}: builds upon more than {LONGEST_CHAIN} images",
            "qemu-img rebase shortens the chain",
        )
    named = file.bases[0] if file.bases else None
    below = WantedFile(
        f"{file.what}{_BASE_OF}",
        path,
        Access.READ,
        is_qcow2=not file.raw_base,
        bases=file.bases[1:],
        said=said,
    )
    return below, Upper(file.what, image, found.status, known, named, file.thrown_away)


def _judge(file: WantedFile, found: Found, terms: Terms, known: Loan | None) -> Loan | None:
    # No image is a program, and set-user-ID bits may be from whom an earlier loan gave it to.
    status, mode = found.status, stat.S_IMODE(found.status.st_mode) & 0o777
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
    if lent == before and stat.S_IMODE(status.st_mode) == mode:
        return None
    _require_one_name(file, status)
    return Loan(str(found.path), status.st_dev, status.st_ino, before, lent)


def _require_one_name(file: WantedFile, status: os.stat_result) -> None:
    if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
        raise Terminal(
            f"{file.what}: {file.path} has {status.st_nlink} names (hard links)",
            "QEMU must not get at a file by another name than the one that was judged: make a copy",
        )


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


def put_back(
    loans: Iterable[Loan], running: Mapping[tuple[int, int], Loan]
) -> tuple[dict[Loan, str], list[str]]:
    """Give files back to their owners. Blocks.

    Returns those that could not be given back, with the reason, and what is said of those that
    are left as they are: somebody else has given them to another owner since they were lent.
    One that another VM still has stays as it is: that VM's loan knows the owner too.
    """
    failed: dict[Loan, str] = {}
    left: list[str] = []
    for loan in loans:
        if loan.identity in running:
            continue
        try:
            left += _put_back(loan)
        except FileNotFoundError:
            continue
        except OSError as error:
            failed[loan] = f"{loan.path}: {error.strerror}"
    return failed, left


def _put_back(loan: Loan) -> Iterator[str]:
    descriptor = os.open(loan.path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if (status.st_dev, status.st_ino) != loan.identity:
            return
        if not _is_as_lent(status, loan):
            yield (
                f"{loan.path} belongs to user {status.st_uid} and group {status.st_gid} by now,"
                f" and was lent by user {loan.before.uid} and group {loan.before.gid}: it is left"
            )
            return
        _hand_over_content(descriptor, loan.lent.uid, loan.before)
        change_owner(descriptor, loan.before)
    finally:
        os.close(descriptor)


def _is_as_lent(status: os.stat_result, loan: Loan) -> bool:
    """Tell whether a file has the owner that we gave it, or, half put back, the one before."""
    owner, lent, before = (status.st_uid, status.st_gid), loan.lent, loan.before
    if owner == (before.uid, before.gid):
        return True
    # Its group is the VM's to change where it is the owner.
    return status.st_uid == lent.uid if lent.uid != before.uid else owner == (lent.uid, lent.gid)


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
