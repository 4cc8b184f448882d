"""Disks for one run: what the guest writes goes to an overlay that is thrown away at its end.

The image itself is only read, so several VMs can run on it at once. ``stop --save`` has the
overlay committed to the image when QEMU has ended: into a finished copy that takes its place.
"""

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import trio
from attrs import evolve

from arcsup.durable import sync_folder
from arcsup.errors import ArcsupError, Refused, Terminal
from arcsup.model import Argv, Disk, DiskFormat, Vm, VmName
from arcsup.places import Places
from arcsup.vm.disks import resolve_image
from arcsup.vm.image_changes import check_committable, commit_image, find_base
from arcsup.vm.managed import ManagedVm, Workshop
from arcsup.vm.qemu_img import change_image
from arcsup.vm.record import Failure
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


async def create_overlays(vm: Vm, places: Places) -> None:
    """Make a new overlay for each ephemeral disk. Terminal, Transient, Refused."""
    await remove_overlays(vm.name, places)
    for disk, overlay in _pairs(vm, places):
        path = Path(overlay.path)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _, *arguments, _ = overlay_command(overlay, disk, overlay.path)
        await change_image(path, *arguments)


async def remove_overlays(name: VmName, places: Places) -> None:
    """Throw away what a VM has written to its ephemeral disks. May be done twice."""
    await remove_trees(places.overlays_of(name))


def _pairs(vm: Vm, places: Places) -> Iterator[tuple[Disk, Disk]]:
    """Yield each ephemeral disk with its overlay."""
    for disk, built in zip(vm.disks, with_overlays(vm, places).disks, strict=True):
        if disk.ephemeral:
            yield disk, built


async def settle_overlays(vm: ManagedVm, workshop: Workshop) -> dict[str, object]:
    """Keep or throw away what an ended QEMU has written; return what changes in the record.

    May be done twice: until the record says otherwise, what is to be kept is committed again.
    What cannot be kept where it belongs is put beside it, and the VM fails.
    """
    if not vm.record.save or vm.running is None:
        await remove_overlays(vm.name, workshop.places)
        return {"save": False}
    for disk, overlay in _pairs(vm.running, workshop.places):
        path = Path(overlay.path)
        if not path.exists():
            continue
        try:
            await _save(vm, workshop, disk, overlay)
        except ArcsupError as error:
            spare = await trio.to_thread.run_sync(_put_aside, vm.name, path, workshop.places)
            why = f"{error.message}; what it wrote is in {spare}"
            workshop.tell(vm.name, "not-saved", why)
            vm.not_saved = why
    await remove_overlays(vm.name, workshop.places)
    # Also of an earlier time, whose changes could not be recorded.
    failed = {"failure": Failure(vm.not_saved, vm.record.source.digest)} if vm.not_saved else {}
    return {"save": False, **failed}


async def _save(vm: ManagedVm, workshop: Workshop, disk: Disk, overlay: Disk) -> None:
    expected = Path(overlay.base or "").resolve()
    if await find_base(Path(overlay.path)) != expected:
        raise Refused(f"{overlay.path} builds upon another image than {expected}")
    shown = -1

    def show(percent: float) -> None:
        nonlocal shown
        if int(percent) > shown:
            shown = int(percent)
            vm.reason = f"what it wrote is being saved to {disk.path}: {shown} %"
            workshop.changed()

    show(0.0)
    # What the base itself builds upon was so before this run, which could only read it.
    base = await commit_image(Path(overlay.path), show, trusted=lambda _: True)
    workshop.tell(vm.name, "saved", f"what it wrote is in {base} now")


def _put_aside(name: VmName, overlay: Path, places: Places) -> Path:
    """Make an overlay that could not be committed an image of its own."""
    now = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    spare = places.images / f"{name}-{overlay.stem}-unsaved-{now}.qcow2"
    try:
        # A link, unlike a rename, never replaces what is there.
        os.link(overlay, spare)
        sync_folder(spare.parent)
    except OSError as error:
        raise Terminal(
            f"{spare}: {error.strerror}", f"make room; what {name} wrote is still in {overlay}"
        ) from error
    return spare


async def check_savable(vm: Vm, places: Places) -> None:
    """Raise Refused where what a VM writes could not be kept. Terminal, Transient."""
    if not any(disk.ephemeral for disk in vm.disks):
        raise Refused(
            f"{vm.name} has no ephemeral disk: what it writes is kept anyway", "leave --save away"
        )
    for disk in vm.disks:
        if disk.ephemeral:
            await check_committable(resolve_image(disk.path, places.images))
