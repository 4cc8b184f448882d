"""Where the copy of a running VM's disk goes: made and named by the daemon, which may be root."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from attrs import frozen

from arcsup.errors import Refused, Terminal
from arcsup.host.accounts import Account
from arcsup.vm.image_files import part_of, publish
from arcsup.vm.loans import Ownership
from arcsup.vm.managed import ManagedVm, Workshop
from arcsup.vm.reach import find_file


@frozen
class NewImage:
    """An image that has no name yet: ``part`` is written, ``publish`` gives it the name."""

    target: Path
    place: Path
    """``target``, by way of the folder that was looked at."""
    part: IO[bytes]
    owner: Ownership

    def publish(self) -> None:
        """Make it durable and give it its name. Refused when that is taken meanwhile; blocks."""
        os.fchown(self.part.fileno(), self.owner.uid, self.owner.gid)
        os.fchmod(self.part.fileno(), self.owner.mode & 0o666)
        if not publish(self.part, self.place):
            raise _taken(self.target)


@contextmanager
def new_image(vm: ManagedVm, workshop: Workshop, source: Path, target: Path) -> Iterator[NewImage]:
    """Yield an image to be, owned like ``source``; unless it is published, nothing of it is left.

    Who may use the control socket is not root: where QEMU is not either, an image is only made in
    a folder for images. Raises Refused, Terminal.
    """
    try:
        folder = _open_folder(target, workshop)
        try:
            # By descriptor: what was looked at is what is written to, whoever moves it meanwhile.
            place = Path(f"/proc/{os.getpid()}/fd/{folder}") / target.name
            if os.path.lexists(place):
                raise _taken(target)
            with part_of(place) as part:
                yield NewImage(target, place, part, _home_of(vm, source))
        finally:
            os.close(folder)
    except OSError as error:
        raise Terminal(f"{target}: {error.strerror}", "check its folder, and its space") from error


def _open_folder(target: Path, workshop: Workshop) -> int:
    """Return a descriptor of the folder that an image goes to. OSError, Refused, Terminal."""
    if workshop.accounts is None:
        return os.open(target.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    allowed = (workshop.places.images, *workshop.image_folders)
    found = find_file(str(target), target.parent, Account.current(), allowed)
    if found.inside or any(folder.exists() and found.path.samefile(folder) for folder in allowed):
        return found.descriptor
    os.close(found.descriptor)
    raise Refused(
        f"{target} is outside of the folders for images",
        f"copy it to {allowed[0]}, or name its folder in imageDirs of arcsup.yaml",
    )


def _home_of(vm: ManagedVm, source: Path) -> Ownership:
    """Return whose an image is while no VM runs on it."""
    status = source.stat()
    for loan in vm.record.loans:
        if loan.identity == (status.st_dev, status.st_ino):
            return loan.before
    return Ownership(status.st_uid, status.st_gid, status.st_mode)


def _taken(target: Path) -> Refused:
    return Refused(f"{target} is there already", "choose another name, or move it away")
