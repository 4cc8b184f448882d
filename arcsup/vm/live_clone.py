"""A copy of a disk while its VM runs: what it held at one moment, made by its own QEMU.

QEMU's backup job saves what the guest is about to overwrite, so that the copy is of the moment the
job began (QAPI blockdev-backup, sync=full). Where a guest agent answers, file systems are written
out and halted for that moment; else the copy is what a disk holds after a power cut.

The copy is qcow2: QEMU fills a raw one with zeroes where nothing is, and takes all its room. It
gets the new image as a descriptor (add-fd): it needs no right to any folder. A job that
a daemon left behind is ended by the next one, which finds it by its name.
"""

import logging
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import trio
from attrs import frozen
from qemu.qmp import ExecInterruptedError, QMPError
from qemu.qmp.qmp_client import ExecuteError

from arcsup.errors import Refused, Terminal, Transient
from arcsup.plan.lifecycle import Phase
from arcsup.vm.agent import find_agent, freeze_file_systems, thaw_file_systems
from arcsup.vm.clone_place import NewImage, new_image
from arcsup.vm.disks import resolve_image
from arcsup.vm.empty_image import make_empty_image
from arcsup.vm.managed import ManagedVm, Workshop
from arcsup.vm.qemu_img import Report
from arcsup.vm.qmp import LONGEST_SENTENCE, Qmp, take_list, take_number, take_word

logger = logging.getLogger(__name__)

NAME = "arcsup-clone"
"""The job, and the node that it writes to."""

ANSWER = 30.0
"""Seconds that QEMU may take for one command; it opens and flushes files for some of them."""

LOOK = 0.25
"""Seconds between two looks at how far the job is."""

AGENT = 1.0
"""Seconds within which an agent answers, where there is one."""

FREEZE = 20.0
"""Seconds that a guest may take to write everything out, and again to go on."""

LETTING_GO = 5.0
"""Seconds within which a job ends that was cancelled."""


@frozen
class _Disk:
    """A disk as QEMU has it: its node, what a guest sees, what it takes at most; in bytes."""

    node: str
    size: int
    room: int


@frozen
class _Job:
    """A copy as QEMU tells of it: its state (QAPI type JobStatus), how far it is, what failed."""

    status: str
    percent: float
    error: str


async def clone_running(
    vm: ManagedVm, workshop: Workshop, source: Path, target: Path, report: Report
) -> None:
    """Copy the disk ``source`` of a VM that runs to a new image ``target``, both real paths.

    Cancelling leaves nothing behind. Raises Refused, Terminal, and Transient where QEMU ends or
    does not answer.
    """
    if vm.cloning:
        raise Refused(f"a disk of {vm.name} is being copied already", "wait until that is done")
    vm.cloning = True
    try:
        with new_image(vm, workshop, source, target) as image:
            disk = await _observe_disk(vm, workshop, source)
            _check_space(disk, image)
            await _write_empty(vm, disk, image)
            consistent = await _copy(vm, workshop, disk, image, report)
            await trio.to_thread.run_sync(image.publish)
    except ExecInterruptedError:
        why = f"QEMU ended, or answers no more, before {target} was finished"
        raise Transient(f"{vm.name}: {why}") from None
    except QMPError as error:
        raise Terminal(f"{vm.name}: QEMU cannot copy {source}: {error}") from error
    except trio.TooSlowError:
        raise Transient(f"{vm.name}: QEMU did not answer within {ANSWER:g} s") from None
    finally:
        vm.cloning = False
    how = "its file systems written out" if consistent else "as after a power cut"
    workshop.tell(vm.name, "cloned", f"{target} is what {source} was, {how}", consistent=consistent)


async def _observe_disk(vm: ManagedVm, workshop: Workshop, source: Path) -> _Disk:
    node = _find_node(vm, workshop, source)
    for shown in take_list(await _ask(vm, "query-named-block-nodes")):
        if isinstance(shown, dict) and shown.get("node-name") == node:
            size = take_number(shown.get("image"), "virtual-size")
            return _Disk(node, size, min(size, _sum_layers(shown.get("image"))))
    raise Refused(f"{vm.name} has {source} no more", "`arcsup status` shows what it does")


def _find_node(vm: ManagedVm, workshop: Workshop, source: Path) -> str:
    if vm.running is None or vm.phase not in (Phase.RUNNING, Phase.PAUSED):
        raise Refused(f"{vm.name} is {vm.phase}, and not running", "try again when it is")
    for index, disk in enumerate(vm.running.disks):
        path = os.path.realpath(resolve_image(disk.path, workshop.places.images))
        if Path(path) == source and not disk.ephemeral:
            return f"disk{index}"
    raise Refused(f"{vm.name} does not write to {source}", "`arcsup image list` shows who does")


def _sum_layers(image: object) -> int:
    """Return how many bytes an image takes on the disk, with all that it builds upon."""
    total = 0
    while isinstance(image, dict):
        total += take_number(image, "actual-size") if "actual-size" in image else 0
        image = image.get("backing-image")
    return total


def _check_space(disk: _Disk, image: NewImage) -> None:
    there = os.fstatvfs(image.part.fileno())
    free = there.f_bavail * there.f_frsize
    if disk.room > free:
        needed = f"needs up to {disk.room >> 20} MiB, {free >> 20} MiB are free"
        raise Terminal(f"{image.target.parent}: the copy {needed}", "make room there")


async def _write_empty(vm: ManagedVm, disk: _Disk, image: NewImage) -> None:
    """Write a qcow2 image without content, of the disk's size. Raises Terminal, Transient."""
    launch = vm.record.launch
    account = None if launch is None else launch.account
    create = ("qemu-img", "create", "-q", "-f", "qcow2")
    empty = await make_empty_image(
        lambda path: (*create, path, str(disk.size)), str(image.target), account
    )
    await trio.to_thread.run_sync(image.part.write, empty)
    image.part.flush()


async def _copy(
    vm: ManagedVm, workshop: Workshop, disk: _Disk, image: NewImage, report: Report
) -> bool:
    """Have QEMU write the copy; tell whether the guest had written everything out for it."""
    await _end_clone(vm)
    try:
        with trio.fail_after(ANSWER):
            given = await _session_of(vm).add_descriptor(image.part.fileno(), NAME)
        file = {"driver": "file", "filename": given}
        await _ask(vm, "blockdev-add", {"driver": "qcow2", "node-name": NAME, "file": file})
        job = {"job-id": NAME, "device": disk.node, "target": NAME, "sync": "full"}
        async with _halted_file_systems(vm, workshop) as halted:
            await _ask(vm, "blockdev-backup", {**job, "auto-dismiss": False})
        await _follow(vm, report)
    finally:
        await _let_go(vm)
    return halted


async def _let_go(vm: ManagedVm) -> None:
    """End a copy, done or not. Where QEMU does not answer it ends with that, or is ended later."""
    with trio.CancelScope(deadline=trio.current_time() + LETTING_GO, shield=True):
        try:
            await _end_clone(vm)
        except (QMPError, trio.TooSlowError) as error:
            logger.warning("a copy was not ended in QEMU: %s", error, extra={"VM": vm.name})


@asynccontextmanager
async def _halted_file_systems(vm: ManagedVm, workshop: Workshop) -> AsyncIterator[bool]:
    """Keep the guest from writing for the length of the block; tell whether it does not."""
    agent = workshop.places.run_of(vm.name) / "agent.sock"
    if not await _answers(agent):
        yield False
        return
    halted = None
    try:
        with trio.move_on_after(FREEZE):
            halted = await freeze_file_systems(agent)
        yield halted is True
    finally:
        # Asked, and without an answer, it may still halt them.
        if halted is not False:
            await _thaw(vm, workshop, agent)


async def _answers(agent: Path) -> bool:
    with trio.move_on_after(AGENT):
        return await find_agent(agent)
    return False


async def _thaw(vm: ManagedVm, workshop: Workshop, agent: Path) -> None:
    thawed = False
    with trio.CancelScope(deadline=trio.current_time() + FREEZE, shield=True):
        thawed = await thaw_file_systems(agent)
    if not thawed:
        why = "its agent does not say that its file systems go on after a disk was copied"
        workshop.tell(vm.name, "trouble", why)


async def _follow(vm: ManagedVm, report: Report) -> None:
    """Tell how far the job is until it is done. Raises Terminal when it failed."""
    while True:
        job = await _find_job(vm)
        if job is None or job.error:
            why = job.error if job else "its job is gone"
            raise Terminal(f"{vm.name}: QEMU did not finish the copy: {why}", "check the space")
        if job.status == "concluded":
            report(100.0)
            return
        report(job.percent)
        await trio.sleep(LOOK)


async def _find_job(vm: ManagedVm) -> _Job | None:
    for job in take_list(await _ask(vm, "query-jobs")):
        if take_word(job, "id") == NAME:
            total = max(take_number(job, "total-progress"), 1)
            percent = 100.0 * take_number(job, "current-progress") / total
            error = take_word(job, "error") if isinstance(job, dict) and "error" in job else ""
            return _Job(take_word(job, "status"), percent, error[:LONGEST_SENTENCE])
    return None


async def _end_clone(vm: ManagedVm) -> bool:
    """End what is left of a copy in a VM's QEMU; tell whether there was anything.

    Raises QMPError, or TooSlowError when there is no answer.
    """
    left = False
    while (job := await _find_job(vm)) is not None:
        left = True
        if job.status == "concluded":
            await _ask(vm, "job-dismiss", {"id": NAME})
            break
        if job.status != "aborting":
            await _ask(vm, "job-cancel", {"id": NAME})
        await trio.sleep(LOOK)
    # The descriptor comes first and goes last: it tells whether there is a node.
    for held in take_list(await _ask(vm, "query-fdsets")):
        if _is_ours(held):
            with suppress(ExecuteError):  # There is none, it had not come to that.
                await _ask(vm, "blockdev-del", {"node-name": NAME})
                left = True
            await _ask(vm, "remove-fd", {"fdset-id": take_number(held, "fdset-id")})
    return left


def _is_ours(fdset: object) -> bool:
    fds = take_list(fdset.get("fds") if isinstance(fdset, dict) else None)
    return any(isinstance(it, dict) and it.get("opaque") == NAME for it in fds)


async def end_left_clone(vm: ManagedVm, workshop: Workshop) -> None:
    """End the copy that an earlier daemon had begun when it was killed."""
    if vm.adopted and not vm.cloning and await _end_clone(vm):
        workshop.tell(vm.name, "clone-ended", "ended the copy of a disk that nobody waits for")
        agent = workshop.places.run_of(vm.name) / "agent.sock"
        if await _answers(agent):
            await _thaw(vm, workshop, agent)


async def _ask(vm: ManagedVm, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
    with trio.fail_after(ANSWER):
        return await _session_of(vm).execute(command, arguments)


def _session_of(vm: ManagedVm) -> Qmp:
    if vm.qmp is None:
        raise ExecInterruptedError("there is no QMP session")
    return vm.qmp
