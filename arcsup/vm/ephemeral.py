"""Disks for one run: what the guest writes goes to an overlay that is thrown away at its end.

The image itself is only read, so several VMs can run on it at once. What becomes of the overlays
is settled when QEMU has ended (``settling``).
"""

import os
from collections.abc import Iterator
from pathlib import Path

import trio
from attrs import evolve

from arcsup.errors import Refused
from arcsup.host.accounts import Account
from arcsup.model import Argv, Disk, DiskFormat, Vm, VmName
from arcsup.places import Places
from arcsup.vm.disks import resolve_image
from arcsup.vm.empty_image import make_empty_image
from arcsup.vm.image_changes import check_committable
from arcsup.vm.image_files import telling
from arcsup.vm.looking import look_at
from arcsup.vm.qemu_img import find_virtual_size
from arcsup.vm.removal import remove_trees


def with_overlays(vm: Vm, places: Places) -> Vm:
    """Return the VM as it is built: ephemeral disks are overlays of what the file names."""
    return evolve(
        vm,
        disks=tuple(
            _overlay_of(vm.name, index, disk, places) if disk.ephemeral else disk
            for index, disk in enumerate(vm.disks)
        ),
    )


def _overlay_of(name: VmName, index: int, disk: Disk, places: Places) -> Disk:
    return evolve(
        disk,
        path=str(places.overlays_of(name) / f"disk{index}.qcow2"),
        base=str(resolve_image(disk.path, places.images)),
        format=DiskFormat.QCOW2,
        size_mib=None,
    )


def overlay_command(overlay: Disk, disk: Disk, path: str) -> Argv:
    """Return the command that makes the overlay of an ephemeral disk."""
    base = ("-b", str(overlay.base), "-F", disk.format.value)
    return ("qemu-img", "create", "-q", "-f", "qcow2", *base, path)


async def create_overlays(vm: Vm, places: Places, account: Account | None = None) -> None:
    """Make a new overlay for each ephemeral disk, as ``account`` where that is another user.

    Raises Terminal, Transient, Refused.
    """
    await remove_overlays(vm.name, places)
    for disk, overlay in pair_overlays(vm, places):
        path = Path(overlay.path)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        base, driver = Path(overlay.base or ""), disk.format.value
        size = await look_at(str(base), find_virtual_size, base, driver)

        def command(
            place: str, overlay: Disk = overlay, disk: Disk = disk, size: int = size
        ) -> Argv:
            # Unsafe for qemu-img is safe for us: it does not open the base, nor what that names.
            return (*overlay_command(overlay, disk, place), "-u", "-o", f"size={size}")

        image = await make_empty_image(command, str(path), account)
        with telling(path):
            await trio.to_thread.run_sync(_write_new, path, image)


def _write_new(path: Path, content: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(path, flags, 0o600), "wb") as stream:
        stream.write(content)


async def remove_overlays(name: VmName, places: Places) -> None:
    """Throw away what a VM has written to its ephemeral disks. May be done twice."""
    await remove_trees(places.overlays_of(name))


def pair_overlays(vm: Vm, places: Places) -> Iterator[tuple[Disk, Disk]]:
    """Yield each ephemeral disk with its overlay."""
    for disk, built in zip(vm.disks, with_overlays(vm, places).disks, strict=True):
        if disk.ephemeral:
            yield disk, built


async def check_savable(vm: Vm, places: Places) -> None:
    """Raise Refused where what a VM writes could not be kept. Terminal, Transient."""
    if not any(disk.ephemeral for disk in vm.disks):
        raise Refused(
            f"{vm.name} has no ephemeral disk: what it writes is kept anyway", "leave --save away"
        )
    for disk in vm.disks:
        if disk.ephemeral:
            await check_committable(resolve_image(disk.path, places.images))
