"""Other images in the CD-ROM drives of a running VM.

Source: QAPI blockdev-change-medium, query-block, blockdev-del, remove-fd.
"""

import logging
import re
import stat
from contextlib import ExitStack, suppress
from pathlib import Path

import trio
from attrs import evolve
from qemu.qmp import QMPError
from qemu.qmp.qmp_client import ExecuteError

from arcsup.errors import NotRecorded, Terminal, describe_os_error
from arcsup.model import ConditionType
from arcsup.vm.belongings import open_images
from arcsup.vm.disks import resolve_image
from arcsup.vm.loans import Access, WantedFile
from arcsup.vm.managed import ManagedVm, Workshop
from arcsup.vm.qmp import Qmp, take_list, take_number, take_word

logger = logging.getLogger(__name__)

DEADLINE = 10.0
"""Seconds for one drive. A guest may lock its tray; then the change stays pending."""


async def change_media(vm: ManagedVm, workshop: Workshop) -> None:
    """Bring the drives in line with the file; what the guest refuses is told and stays pending."""
    if vm.running is None or vm.qmp is None or len(vm.running.cdroms) != len(vm.vm.cdroms):
        return
    images = workshop.places.images
    for index, (old, new) in enumerate(zip(vm.running.cdroms, vm.vm.cdroms, strict=True)):
        if old == new:
            continue
        path = resolve_image(new, images)
        problem = await _change(vm, workshop, index, path)
        if problem:
            vm.set_condition(
                ConditionType.MEDIA_CHANGED, "Refused", f"cdroms[{index}]: {problem}", status=False
            )
            workshop.tell(vm.name, "media-refused", f"cdroms[{index}]: {path}: {problem}")
            return
        vm.running = evolve(
            vm.running,
            cdroms=(*vm.running.cdroms[:index], new, *vm.running.cdroms[index + 1 :]),
        )
        workshop.tell(vm.name, "media-changed", f"cdroms[{index}] is {path}")
    vm.set_condition(
        ConditionType.MEDIA_CHANGED, "Changed", "the drives hold what the file says", status=True
    )
    try:
        await vm.save_running(workshop)
    except NotRecorded as error:
        # The next daemon changes them once more, to the same.
        workshop.tell(vm.name, "trouble", error.message)
    workshop.changed()


async def _change(vm: ManagedVm, workshop: Workshop, index: int, path: Path) -> str:
    """Change one medium; return what is wrong, "" when nothing is."""
    try:
        # QEMU would block for ever on a FIFO.
        if not (stat.S_ISREG(path.stat().st_mode) or stat.S_ISBLK(path.stat().st_mode)):
            return "is no image"
        if vm.qmp is None:
            return "QEMU's monitor is silent"
        with ExitStack() as opened:
            given = await _open_for_user(vm, workshop, index, path, opened)
            with trio.fail_after(DEADLINE):
                await _insert(vm.qmp, f"cd{index}", path, given)
    except Terminal as error:
        return f"{error.message} ({error.hint})"
    except OSError as error:
        return describe_os_error(error)
    except QMPError as error:
        return str(error)
    except trio.TooSlowError:
        return f"QEMU did not answer within {DEADLINE:g} s"
    return ""


async def _open_for_user(
    vm: ManagedVm, workshop: Workshop, index: int, path: Path, opened: ExitStack
) -> int | None:
    """Open an image for a QEMU that may not do so itself; None where it may. Raises Terminal."""
    launch = vm.record.launch
    if launch is None or launch.account is None:
        return None
    wanted = WantedFile(f"cdroms[{index}]", path, Access.READ)
    ((medium,),) = await open_images((wanted,), workshop, launch.account, opened)
    return medium[1]


async def _insert(qmp: Qmp, drive: str, path: Path, given: int | None) -> None:
    """Put a medium in a drive, ``given`` as a descriptor or by its name. Raises QMPError."""
    former = await _find_set(qmp, drive)
    filename = str(path) if given is None else await qmp.add_descriptor(given, str(path))
    change = {"id": drive, "filename": filename, "format": "raw", "force": True}
    try:
        await qmp.execute("blockdev-change-medium", change)
    finally:
        # What is in use stays open, and nothing else of the set.
        if given is not None:
            await qmp.execute("remove-fd", {"fdset-id": int(filename.rpartition("/")[2])})
    # The medium that it had at the start is a node of the monitor's, which keeps it open.
    with suppress(ExecuteError):
        await qmp.execute("blockdev-del", {"node-name": f"{drive}-medium"})
    # One that a medium had which was inserted like this one is gone with it.
    held = take_list(await qmp.execute("query-fdsets"))
    if former is not None and former in [take_number(it, "fdset-id") for it in held]:
        await qmp.execute("remove-fd", {"fdset-id": former})


async def _find_set(qmp: Qmp, drive: str) -> int | None:
    """Return the set of descriptors by which QEMU has a drive's medium, None for no such set."""
    for device in take_list(await qmp.execute("query-block")):
        if isinstance(device, dict) and device.get("qdev") == drive and "inserted" in device:
            found = _SET.fullmatch(take_word(device["inserted"], "file"))
            return None if found is None else int(found[1])
    return None


_SET = re.compile(r"/dev/fdset/(\d{1,9})")
