"""Whether a run in a mode can begin: what it needs beside the VM's file is there."""

from pathlib import Path

from arcsup.errors import Refused, SpecError
from arcsup.model import DiskFormat, Vm
from arcsup.opening import open_named
from arcsup.places import Places
from arcsup.plan.mode import Mode, Purpose
from arcsup.vm.disks import GUEST_TOOLS, resolve_image


def check_mode(mode: Mode, vm: Vm, file: Path, places: Places, *, again: bool) -> None:
    """Raise for what a run in ``mode`` lacks, before anything is recorded or made.

    ``again``: a run in the same mode did not come up, so what it has made is there. Raises
    SpecError for what ``file`` must say, Refused for what the host must have.
    """
    if mode.purpose is Purpose.PREINSTALL:
        image = resolve_image(GUEST_TOOLS, places.images)
        if not image.is_file():
            raise Refused(f"there is no guest-tools ISO {image}", "arcsup guest-tools build")
    if mode.purpose is Purpose.CREATE:
        for medium in (*mode.media, *([mode.base] if mode.base else [])):
            _check_medium(medium)
        _check_disk(vm, file, places, again=again)
        if mode.base is not None and vm.disks[0].format is not DiskFormat.QCOW2:
            raise SpecError(f"{file}:1:1: disks[0].format: only qcow2 can lie over a cloud image")


def _check_medium(medium: str) -> None:
    try:
        with open_named(Path(medium), or_block_device=True) as stream:
            stream.read(1)
    except OSError as error:
        raise Refused(
            f"{medium}: the daemon cannot read it: {error.strerror}",
            "name an image that the daemon's user may read",
        ) from error


def _check_disk(vm: Vm, file: Path, places: Places, *, again: bool) -> None:
    if not vm.disks:
        raise SpecError(f"{file}:1:1: disks: expected a disk to install on, got none")
    disk = vm.disks[0]
    if disk.readonly or disk.base is not None:
        what = "readonly" if disk.readonly else "base"
        raise SpecError(f"{file}:1:1: disks[0].{what}: not for a disk to install on")
    path = resolve_image(disk.path, places.images)
    if path.exists() and not again:
        raise Refused(
            f"the disk {path} is there already, and nothing is installed over it",
            "start the VM, or remove the disk or name another in the file",
        )
    if not path.parent.is_dir() and not path.is_relative_to(places.images):
        raise Refused(f"there is no folder {path.parent}", f"mkdir -p {path.parent}")
