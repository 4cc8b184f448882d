"""What becomes of the overlays of ephemeral disks when QEMU has ended: thrown away, or kept.

``stop --save`` has an overlay committed to the image: into a finished copy that takes its place.
"""

import os
from datetime import UTC, datetime
from pathlib import Path

import trio

from arcsup.durable import sync_folder
from arcsup.errors import ArcsupError, Refused, Terminal
from arcsup.model import Disk, VmName
from arcsup.places import Places
from arcsup.vm.chains import Link, find_image
from arcsup.vm.ephemeral import pair_overlays, remove_overlays
from arcsup.vm.image_changes import commit_image, find_base
from arcsup.vm.managed import ManagedVm, Workshop
from arcsup.vm.qemu_img import Report
from arcsup.vm.record import Failure
from arcsup.vm.saving import save_overlay


async def settle_overlays(vm: ManagedVm, workshop: Workshop) -> dict[str, object]:
    """Keep or throw away what an ended QEMU has written; return what changes in the record.

    May be done twice: until the record says otherwise, what is to be kept is committed again.
    What cannot be kept where it belongs is put beside it, and the VM fails.
    """
    if not vm.record.save or vm.running is None:
        await remove_overlays(vm.name, workshop.places)
        return {"save": False}
    for disk, overlay in pair_overlays(vm.running, workshop.places):
        path = Path(overlay.path)
        if not path.exists():
            continue
        try:
            await _save(vm, workshop, disk, overlay)
        except ArcsupError as error:
            await _keep_link(workshop, path, Path(overlay.base or ""))
            spare = await trio.to_thread.run_sync(_put_aside, vm.name, path, workshop.places)
            why = f"{error.message}; what it wrote is in {spare}"
            workshop.tell(vm.name, "not-saved", why)
            vm.not_saved = why
    await remove_overlays(vm.name, workshop.places)
    # Also of an earlier time, whose changes could not be recorded.
    failed = {"failure": Failure(vm.not_saved, vm.record.source.digest)} if vm.not_saved else {}
    return {"save": False, **failed}


async def _save(vm: ManagedVm, workshop: Workshop, disk: Disk, overlay: Disk) -> None:
    shown = -1

    def show(percent: float) -> None:
        nonlocal shown
        if int(percent) > shown:
            shown = int(percent)
            vm.reason = f"what it wrote is being saved to {disk.path}: {shown} %"
            workshop.changed()

    show(0.0)
    path = Path(overlay.path)
    if workshop.accounts is None:
        base = await _save_as_oneself(overlay, path, show)
    else:
        launch = vm.record.launch
        account = launch.account if launch is not None else None
        account = account or workshop.accounts.shared
        base = await save_overlay(vm, workshop, disk, path, account, show)
    workshop.tell(vm.name, "saved", f"what it wrote is in {base} now")


async def _save_as_oneself(overlay: Disk, path: Path, show: Report) -> Path:
    """Save it where nobody but this process's user has anything to lose."""
    expected = Path(overlay.base or "").resolve()
    if await find_base(path) != expected:
        raise Refused(f"{path} builds upon another image than {expected}")
    # What the base itself builds upon was so before this run, which could only read it.
    return await commit_image(path, show, trusted=lambda _: True)


async def _keep_link(workshop: Workshop, overlay: Path, base: Path) -> None:
    """Record what an overlay that becomes an image was made upon: a guest wrote its header.

    Raises Terminal.
    """

    def look() -> Link:
        return Link(find_image(overlay), base=find_image(base))

    async with workshop.records.lending:
        try:
            link = await trio.to_thread.run_sync(look)
        except OSError as error:
            raise Terminal(f"{error.filename}: {error.strerror}", "put it back") from error
        await trio.to_thread.run_sync(workshop.records.chains.save, (link,))


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
