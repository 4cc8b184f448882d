"""What is done to images: copy, commit, snapshot, revert. Nothing is ever half done.

A copy or a new base is finished and on the disk (fsync) before it gets its name; until then it is
a hidden part beside its place that the next attempt removes. What qemu-img changes in place
(snapshots) it orders so that an end in between leaves leaked clusters at worst.
"""

import os
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import trio

from arcsup.errors import NoSuchObject, NotPermitted, Refused, Terminal
from arcsup.vm.image_files import part_of, publish, replace, telling
from arcsup.vm.image_lock import hold_image
from arcsup.vm.qcow2 import LONGEST_CHAIN
from arcsup.vm.qemu_img import (
    Image,
    Report,
    change_image,
    copy_image,
    measure_image,
    observe_image,
)

Trusted = Callable[[Path], bool]
"""Tells whether an image may build upon a file. A program that broke out of a guest can write any
name into the header of its disk; whoever follows it as root reads, or replaces, that file."""


async def clone_image(
    source: Path, target: Path, report: Report, trusted: Trusted, *, linked: bool = False
) -> None:
    """Make an image like another: a full copy, or with ``linked`` an overlay of it.

    Raises Refused when the target is there, somebody writes to the source, or it builds upon what
    is not ``trusted``; Terminal, Transient.
    """
    image = await observe_image(source)
    await _check_chain(image, trusted)
    _refuse_existing(target)
    target_format = "qcow2" if linked else _format_of(image)
    with telling(target), part_of(target) as part:
        if linked:
            overlay = ("create", "-q", "-f", "qcow2", "-b", str(source), "-F", _format_of(image))
            await change_image(Path(part.name), *overlay)
        else:
            await _check_space(image, target.parent, target_format)
            await copy_image(image, part.name, target_format, report)
        # The copy has the source's mode: whoever may not read that must not read this.
        os.fchmod(part.fileno(), source.stat().st_mode & 0o666)
        if not await trio.to_thread.run_sync(publish, part, target):
            _refuse_existing(target)


async def commit_image(overlay: Path, report: Report, trusted: Trusted) -> Path:
    """Make what a guest sees of an overlay the content of its base; return the base.

    The base becomes a new file that needs no other, the overlay is empty afterwards. An end in
    between leaves the old base, or the new one under an overlay that adds nothing to it.
    Raises Refused when somebody uses one of them, they have snapshots, or the overlay builds upon
    what is not ``trusted``; Terminal, Transient.
    """
    image = await observe_image(overlay.resolve())
    if image.base is None:
        raise Refused(f"{overlay} is no overlay: there is no base to commit to")
    await _check_chain(image, trusted)
    _refuse_snapshots(image)
    base = await check_committable(image.base)
    async with AsyncExitStack() as held:
        for path in (image.path, base.path):
            await held.enter_async_context(hold_image(path))
        with telling(base.path), part_of(base.path) as part:
            await _check_space(image, base.path.parent, _format_of(base))
            await copy_image(image, part.name, _format_of(base), report, locked=True)
            await trio.to_thread.run_sync(replace, part, base.path)
        with telling(image.path), part_of(image.path) as part:
            empty = ("create", "-q", "-f", "qcow2", "-b", str(image.base), "-F", _format_of(base))
            await change_image(Path(part.name), *empty)
            await trio.to_thread.run_sync(replace, part, image.path)
    return base.path


async def _check_chain(image: Image, trusted: Trusted) -> None:
    for _ in range(LONGEST_CHAIN):
        if image.base is None:
            return
        base = image.base.resolve()
        if not trusted(base):
            raise Refused(
                f"{image.path} builds upon {image.base}, which no VM file names",
                "if that is meant, say it with `base:` in the VM file",
            )
        image = await observe_image(base)
    raise Refused(f"{image.path} builds upon more than {LONGEST_CHAIN} images")


async def find_base(overlay: Path) -> Path | None:
    """Return the real path of what an image says that it builds upon. Terminal, Transient."""
    base = (await observe_image(overlay)).base
    return None if base is None else base.resolve()


async def check_committable(base: Path) -> Image:
    """Return an image that a new one can take the place of. Refused, Terminal, Transient."""
    # What replaces a symbolic link must go where that leads.
    image = await observe_image(base.resolve())
    _refuse_snapshots(image)
    if image.path.is_block_device():
        raise Refused(
            f"{image.path} is a block device, which no finished copy can be moved over",
            "`qemu-img commit` writes into it",
        )
    if not os.access(image.path.parent, os.W_OK):
        raise NotPermitted(f"{image.path.parent}: you may not put a new image there")
    return image


async def take_snapshot(path: Path, name: str) -> None:
    """Keep the state of an image that no VM writes to. Refused, Terminal, Transient."""
    image = await _observe_qcow2(path)
    if any(it.name == name for it in image.snapshots):
        raise Refused(f"{path} has a snapshot {name} already", "choose another name")
    await change_image(path, "snapshot", "-q", "-c", name)


async def remove_snapshot(path: Path, name: str) -> None:
    """Forget a snapshot. NoSuchObject, Refused, Terminal, Transient."""
    check_snapshot(await _observe_qcow2(path), name)
    await change_image(path, "snapshot", "-q", "-d", name)


async def revert_image(path: Path, name: str) -> None:
    """Bring an image back to a snapshot; what was written since is lost. NoSuchObject, Refused."""
    check_snapshot(await _observe_qcow2(path), name)
    await change_image(path, "snapshot", "-q", "-a", name)


def check_snapshot(image: Image, name: str) -> None:
    """Raise NoSuchObject when an image has no snapshot of a name."""
    names = [it.name for it in image.snapshots]
    if name not in names:
        raise NoSuchObject(
            f"{image.path} has no snapshot {name}",
            f"it has {', '.join(names)}" if names else "it has none",
        )


async def _observe_qcow2(path: Path) -> Image:
    image = await observe_image(path)
    if image.format != "qcow2":
        raise Refused(
            f"{path} is {image.format}: only qcow2 keeps snapshots",
            "`arcsup image clone` makes a copy",
        )
    return image


def _refuse_existing(target: Path) -> None:
    if target.exists() or target.is_symlink():
        raise Refused(f"{target} is there already", "choose another name, or move it away")


def _refuse_snapshots(image: Image) -> None:
    if image.snapshots:
        names = ", ".join(it.name for it in image.snapshots)
        raise Refused(
            f"{image.path} has snapshots ({names}), which would be lost",
            f"arcsup image snapshot --delete {image.path} {image.snapshots[0].name}",
        )


def _format_of(image: Image) -> str:
    return "raw" if image.format == "iso" else image.format


async def _check_space(image: Image, folder: Path, target_format: str) -> None:
    """Raise Terminal when a copy will not fit: better now than after an hour."""
    needed = await measure_image(image, target_format)
    there = os.statvfs(folder)
    free = there.f_bavail * there.f_frsize
    # A raw copy is sparse: what is empty takes no room in it.
    if target_format == "raw":
        needed = min(needed, image.size)
    if needed > free and not image.path.is_block_device():
        raise Terminal(
            f"{folder}: a copy of {image.path} needs {needed >> 20} MiB, {free >> 20} MiB are free",
            "make room, or `arcsup image clone --linked`",
        )
