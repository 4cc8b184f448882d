"""``stop --save`` under a daemon that is root: which opens and names files, and follows none.

What the overlay and its base build upon was judged when they were lent, and qemu-img gets exactly
those layers, as descriptors, in an explicit chain. It runs as the VM's user, who may open nothing
else: what a header says by now leads nowhere. The new image is made by the daemon, which alone
gives it its name.
"""

import json
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

import trio
from attrs import frozen

from arcsup.errors import Refused, Terminal
from arcsup.host.accounts import Account
from arcsup.model import Disk, DiskFormat
from arcsup.vm.belongings import lend_files, reading_terms, take_back_belongings
from arcsup.vm.chains import ImageId, Link, find_birth
from arcsup.vm.disks import resolve_image
from arcsup.vm.image_files import part_of, replace
from arcsup.vm.image_lock import hold_image
from arcsup.vm.image_tool import run_image_tool
from arcsup.vm.layers import Layer, describe_chain
from arcsup.vm.loans import Access, WantedFile, find_layers
from arcsup.vm.managed import ManagedVm, Workshop
from arcsup.vm.programs import last_words
from arcsup.vm.qemu_img import QUICK, Report, run_long


@frozen
class _Saving:
    """The layers of an overlay from its top, and as whom they are read."""

    layers: tuple[Layer, ...]
    account: Account

    @property
    def base(self) -> Layer:
        """What the overlay is to be written to."""
        return self.layers[1]

    @property
    def descriptors(self) -> tuple[int, ...]:
        return tuple(layer.descriptor for layer in self.layers)

    @property
    def base_format(self) -> str:
        return "raw" if self.base.raw else "qcow2"


async def save_overlay(
    vm: ManagedVm,
    workshop: Workshop,
    disk: Disk,
    overlay: Path,
    account: Account,
    report: Report,
) -> Path:
    """Make what a guest saw of an overlay the content of its base, a new file; return its path.

    May be done twice: what the overlay holds is the same over the new base.
    Raises Refused when somebody uses one of them, or snapshots would be lost; Terminal, Transient.
    """
    image = _wanted(disk, overlay, workshop)
    await lend_files(vm, workshop, (image,), account, private_tmp=False)
    try:
        with ExitStack() as opened:
            terms = await reading_terms(workshop, account)
            look = partial(find_layers, image, terms, opened)
            layers, _ = await trio.to_thread.run_sync(look)
            saving = _Saving(tuple(layers), account)
            if len(saving.layers) < 2:
                raise Refused(f"{overlay} is no overlay by now: there is no base to save to")
            _refuse_block_device(saving.base)
            await _refuse_snapshots(saving)
            async with hold_image(overlay), hold_image(saving.base.path):
                with _new_base(saving.base, opened) as (part, place):
                    await _convert(saving, part, report)
                    # What they were before is what the new one gets.
                    await take_back_belongings(vm, workshop)
                    await _keep_link(workshop, saving.base, part)
                    await trio.to_thread.run_sync(replace, part, place)
            return saving.base.path
    except OSError as error:
        raise Terminal(f"{overlay}: {error.strerror}", "check the folder of its base") from error
    finally:
        await take_back_belongings(vm, workshop)


def _wanted(disk: Disk, overlay: Path, workshop: Workshop) -> WantedFile:
    images = workshop.places.images
    bases = [resolve_image(disk.path, images)]
    if disk.base is not None:
        bases.append(resolve_image(disk.base, images))
    return WantedFile(
        disk.path,
        overlay,
        Access.READ,
        is_qcow2=True,
        bases=tuple(bases),
        raw_base=disk.format is DiskFormat.RAW,
        thrown_away=True,
    )


def _refuse_block_device(base: Layer) -> None:
    if stat.S_ISBLK(base.status.st_mode):
        raise Refused(
            f"{base.path} is a block device, which no finished copy can be moved over",
            "`qemu-img commit` writes into it",
        )


async def _refuse_snapshots(saving: _Saving) -> None:
    below = saving.layers[1:]
    arguments = ("info", "-U", "--output=json", describe_chain(below))
    shown = await _ask(saving, *arguments)
    names = [str(it["name"]) for it in shown.get("snapshots", ())]
    if names:
        raise Refused(
            f"{saving.base.path} has snapshots ({', '.join(names)}), which would be lost",
            f"arcsup image snapshot --delete {saving.base.path} {names[0]}",
        )


async def _ask(saving: _Saving, *arguments: str) -> dict[str, Any]:
    finished = await run_image_tool(
        arguments, account=saving.account, pass_fds=saving.descriptors, seconds=QUICK
    )
    if finished.returncode != 0:
        raise Terminal(f"{saving.base.path}: {last_words(finished.stderr)}")
    answer: dict[str, Any] = json.loads(finished.stdout)
    return answer


@contextmanager
def _new_base(base: Layer, opened: ExitStack) -> Iterator[tuple[IO[bytes], Path]]:
    """Yield an unfinished image in the folder of a base, and the base's place by descriptor."""
    folder = os.open(base.path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    opened.callback(os.close, folder)
    place = Path(f"/proc/{os.getpid()}/fd/{folder}") / base.path.name
    now = place.lstat()
    if (now.st_dev, now.st_ino) != (base.status.st_dev, base.status.st_ino):
        raise Refused(f"{base.path} is another file by now", "start the VM again")
    with part_of(place) as part:
        yield part, place


async def _convert(saving: _Saving, part: IO[bytes], report: Report) -> None:
    """Write all layers into one image. The part is the user's own as long as it writes."""
    needed = await _measure(saving)
    there = os.fstatvfs(part.fileno())
    free = there.f_bavail * there.f_frsize
    if needed > free:
        raise Terminal(
            f"{saving.base.path.parent}: what it wrote needs {needed >> 20} MiB with its base,"
            f" {free >> 20} MiB are free",
            "make room",
        )
    os.fchown(part.fileno(), saving.account.uid, saving.account.gid)
    try:
        code, words = await run_long(
            [
                *("qemu-img", "convert", "-p", "-U", "-O", saving.base_format),
                *(describe_chain(saving.layers), f"/proc/self/fd/{part.fileno()}"),
            ],
            report,
            account=saving.account,
            pass_fds=(*saving.descriptors, part.fileno()),
        )
    finally:
        os.fchown(part.fileno(), 0, 0)
    if code != 0:
        raise Terminal(f"{saving.base.path}: {last_words(words)}")


async def _measure(saving: _Saving) -> int:
    """Return how many bytes the new base takes at most."""
    chain = describe_chain(saving.layers)
    options = ("-U", "--output=json")
    shown = await _ask(saving, "measure", *options, "-O", saving.base_format, chain)
    return int(shown["required"])


async def _keep_link(workshop: Workshop, base: Layer, part: IO[bytes]) -> None:
    """Record that the new base builds upon nothing: its writer may have its descriptor yet."""
    status, born = os.fstat(part.fileno()), find_birth(part.fileno())
    image = ImageId(str(base.path), status.st_dev, status.st_ino, born)
    async with workshop.records.lending:
        link = Link(image, raw=base.raw)
        await trio.to_thread.run_sync(workshop.records.chains.save, (link,))
