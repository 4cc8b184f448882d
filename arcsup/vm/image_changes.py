"""What is done to images: copy, commit, snapshot, revert. Nothing is ever half done.

A copy or a new base is finished and on the disk (fsync) before it gets its name; until then it is
a hidden part beside its place that the next attempt removes. What qemu-img changes in place
(snapshots) it orders so that an end in between leaves leaked clusters at worst.
"""

import os
import stat
from collections.abc import Sequence
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import IO

import trio

from arcsup.errors import NoSuchObject, NotPermitted, Refused, Terminal
from arcsup.vm.empty_image import make_empty_image
from arcsup.vm.image_files import part_of, publish, replace, telling
from arcsup.vm.image_lock import hold_image
from arcsup.vm.layers import Layer, Trusted, open_layers
from arcsup.vm.qemu_img import (
    Image,
    Report,
    change_image,
    copy_image,
    find_virtual_size,
    measure_image,
    observe_image,
)


async def clone_image(
    source: Path, target: Path, report: Report, trusted: Trusted, *, linked: bool = False
) -> None:
    """Make an image like another: a full copy, or with ``linked`` an overlay of it.

    Raises Refused when the target is there, somebody writes to the source, or it builds upon what
    is not ``trusted``; Terminal, Transient.
    """
    with ExitStack() as opened:
        layers = await trio.to_thread.run_sync(open_layers, source, trusted, opened)
        _refuse_existing(target)
        with telling(target), part_of(target) as part:
            if linked:
                await _write_overlay(part, target, source, layers[0])
            else:
                await _check_space(layers, target.parent, layers[0])
                await copy_image(layers, part, _format_of(layers[0]), report)
            # The copy has the source's mode: whoever may not read that must not read this.
            os.fchmod(part.fileno(), layers[0].status.st_mode & 0o666)
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
    async with AsyncExitStack() as held:
        opened = held.enter_context(ExitStack())
        layers = await trio.to_thread.run_sync(open_layers, image.path, trusted, opened)
        if len(layers) < 2:
            raise Refused(f"{overlay} is no overlay by now: there is no base to commit to")
        _refuse_snapshots(image)
        base = layers[1]
        await check_committable(base.path)
        for layer in (layers[0], base):
            await held.enter_async_context(hold_image(layer.path))
        with telling(base.path), part_of(base.path) as part:
            await _check_space(layers, base.path.parent, base)
            await copy_image(layers, part, _format_of(base), report, locked=True)
            await trio.to_thread.run_sync(replace, part, base.path)
        with telling(image.path), part_of(image.path) as part:
            await _write_overlay(part, image.path, image.base, base, image.virtual_size)
            await trio.to_thread.run_sync(replace, part, image.path)
    return base.path


async def _write_overlay(
    part: IO[bytes], what: Path, base: Path, below: Layer, size: int | None = None
) -> None:
    """Write an empty overlay of ``base``, as large as that, or of ``size`` bytes."""
    form = _format_of(below)
    if size is None:
        size = await trio.to_thread.run_sync(find_virtual_size, below.path, form)
    # -u: what is below it is not opened.
    create = ("qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", str(base), "-F", form)
    image = await make_empty_image(lambda path: (*create, path, str(size)), str(what), None)
    await trio.to_thread.run_sync(part.write, image)
    part.flush()


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


def _format_of(layer: Layer) -> str:
    return "raw" if layer.raw else "qcow2"


async def _check_space(layers: Sequence[Layer], folder: Path, target: Layer) -> None:
    """Raise Terminal when a copy in the format of ``target`` will not fit: not after an hour."""
    top = layers[0]
    needed = await measure_image(layers, _format_of(target))
    there = os.statvfs(folder)
    free = there.f_bavail * there.f_frsize
    # A raw copy is sparse: what is empty takes no room in it.
    if target.raw:
        needed = min(needed, top.status.st_blocks * 512)
    if needed > free and not stat.S_ISBLK(top.status.st_mode):
        raise Terminal(
            f"{folder}: a copy of {top.path} needs {needed >> 20} MiB, {free >> 20} MiB are free",
            "make room, or `arcsup image clone --linked`",
        )
