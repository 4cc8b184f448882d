"""Which files of a VM are outside of the folders for images: the system's daemon refuses them.

What a start judges file by file (``vm.loans``, ``vm.belongings``) is said of the paths alone here,
so that it can be told before; a file that is not there yet counts as well.
"""

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from arcsup.model import Vm
from arcsup.vm.disks import resolve_image


def warn_of_outside(vm: Vm, images: Path, folders: Sequence[Path]) -> Iterator[str]:
    """Yield a sentence for each folder of files that VMs of the system's daemon may not have.

    ``images`` is what relative paths hang off, ``folders`` are those of imageDirs.
    """
    outside: dict[Path, list[str]] = {}
    for what, path in _list_files(vm, images):
        if not _is_inside(path, (images, *folders)):
            outside.setdefault(path.parent, []).append(what)
    for folder, files in outside.items():
        yield (
            f"{', '.join(files)}: {folder} is outside of the folders for images, where QEMU is not "
            f"root: name it in imageDirs of arcsup.yaml, or use {images}"
        )


def _list_files(vm: Vm, images: Path) -> Iterator[tuple[str, Path]]:
    """Yield what a VM may only have in a folder for images."""
    for index, disk in enumerate(vm.disks):
        path = resolve_image(disk.path, images)
        if not (disk.readonly and _is_public(path)):
            yield f"disks[{index}]", path
        if disk.base is not None and not _is_public(base := resolve_image(disk.base, images)):
            yield f"disks[{index}].base", base
    for what, read in _list_read(vm):
        path = resolve_image(read, images)
        if path.exists() and not _is_public(path):
            yield what, path
    for index, share in enumerate(vm.shares):
        yield f"shares[{index}]", resolve_image(share.path, images)
    if vm.display.password_file is not None:
        yield "display.passwordFile", resolve_image(vm.display.password_file, images)


def _list_read(vm: Vm) -> Iterator[tuple[str, str]]:
    for index, cdrom in enumerate(vm.cdroms):
        yield f"cdroms[{index}]", cdrom
    if vm.boot is not None:
        yield "boot.kernel", vm.boot.kernel
        if vm.boot.initrd is not None:
            yield "boot.initrd", vm.boot.initrd


def _is_public(path: Path) -> bool:
    try:
        return bool(path.stat().st_mode & stat.S_IROTH)
    except OSError:
        return False


def _is_inside(path: Path, folders: Sequence[Path]) -> bool:
    ways = (path, Path(os.path.realpath(path)))
    allowed = [it for folder in folders for it in (folder, Path(os.path.realpath(folder)))]
    return any(way.is_relative_to(folder) for way in ways for folder in allowed)
