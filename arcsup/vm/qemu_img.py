"""Images: what their headers tell, and what qemu-img is asked to do. Source: qemu-img(1).

Images are named by absolute paths: "x:y" would be a protocol. Which format an image has is never
left to QEMU's guess where a guest can write to it: the guest could write another format's header.
"""

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import IO

import trio
from attrs import frozen

from arcsup.errors import Refused, Terminal, Transient
from arcsup.host.accounts import Account
from arcsup.opening import open_named
from arcsup.vm.image_files import has_iso_magic, has_qcow2_magic
from arcsup.vm.image_tool import bounded, require_qemu_img, run_image_tool
from arcsup.vm.layers import Layer, describe_chain, open_alone
from arcsup.vm.looking import look_at
from arcsup.vm.privileges import dropping_to, environment_of
from arcsup.vm.process import find_processes_holding, inherited_environment
from arcsup.vm.programs import kill_at_once
from arcsup.vm.qcow2 import Snapshot, place_of, read_header, read_snapshots

QUICK = 60.0
"""Seconds for what reads or changes tables only."""

STALLED = 1800.0
"""Seconds without a further percent after which a long operation counts as stuck."""

Report = Callable[[float], None]
"""Is told how much is done, in percent."""

_GIVEN = re.compile(r"json:\{.*\}|/proc/self/fd/\d+")

_PERCENT = re.compile(rb"\((\d+\.\d+)/100%\)")


def report_nothing(_percent: float) -> None:
    """Be a Report for those who do not care."""


@frozen
class Image:
    """An image as it is. Sizes in bytes: ``size`` on disk, ``virtual_size`` as a guest sees it.

    ``format`` is QEMU's word, or iso. ``base`` is what it is an overlay of.
    """

    path: Path
    size: int
    virtual_size: int
    format: str
    base: Path | None = None
    base_format: str = ""
    snapshots: tuple[Snapshot, ...] = ()


async def observe_image(path: Path) -> Image:
    """Look at an image, also while a QEMU writes to it. Runs no program, opens nothing else.

    Raises Terminal for what is missing or no image.
    """
    return await look_at(str(path), read_image, path)


def read_image(path: Path) -> Image:
    """Do the same, blocking. Raises Terminal."""
    try:
        with open_named(path, or_block_device=True) as image:
            size = os.fstat(image.fileno()).st_blocks * 512
            header = read_header(str(path), image)
            if header is None:
                form = "iso" if has_iso_magic(image) else "raw"
                return Image(path, size, _count_sectors(image), form)
            base = None if header.base is None else place_of(path, header.base)
            snapshots = read_snapshots(str(path), image)
            return Image(path, size, header.size, "qcow2", base, header.base_format, snapshots)
    except OSError as error:
        raise Terminal(f"{path}: {(error.strerror or str(error)).lower()}") from error


def _count_sectors(image: IO[bytes]) -> int:
    """Return the bytes of a raw image as a guest sees them; sectors have 512."""
    return -(-image.seek(0, os.SEEK_END) // 512) * 512


def find_format(path: Path) -> str:
    """Return iso, qcow2 or raw; QEMU's other formats are not arcsup's. Raises Terminal."""
    try:
        with open_named(path, or_block_device=True) as image:
            if has_qcow2_magic(image):
                return "qcow2"
            return "iso" if has_iso_magic(image) else "raw"
    except OSError as error:
        raise Terminal(f"{path}: {(error.strerror or str(error)).lower()}") from error


def find_virtual_size(path: Path, image_format: str) -> int:
    """Return how many bytes a guest sees of an image, opening nothing that it names. Blocks.

    Raises Terminal.
    """
    try:
        with open_named(path, or_block_device=True) as image:
            if image_format == "raw":
                return _count_sectors(image)
            if (header := read_header(str(path), image)) is not None:
                return header.size
    except OSError as error:
        raise Terminal(f"{path}: {(error.strerror or str(error)).lower()}") from error
    raise Terminal(f"{path}: is no qcow2 image", "say format: raw, or move it away")


async def measure_image(layers: Sequence[Layer], target_format: str) -> int:
    """Return how many bytes a full copy of an image takes at most. Raises Terminal, Transient."""
    asked = ("measure", "-U", "--output=json", "-O", target_format, describe_chain(layers))
    finished = await run_image_tool(
        asked, account=None, pass_fds=_descriptors_of(layers), seconds=QUICK
    )
    if finished.returncode != 0:
        raise _refusal(layers[0].path, finished.stderr)
    return int(json.loads(finished.stdout)["required"])


async def change_image(path: Path, *arguments: str) -> None:
    """Run a quick qemu-img command on an image alone, which stands at the end of ``arguments``.

    Raises Refused when somebody has the image open, Terminal, Transient.
    """
    with ExitStack() as opened:
        layers = (open_alone(path, opened),)
        finished = await run_image_tool(
            (*arguments, describe_chain(layers)),
            account=None,
            pass_fds=_descriptors_of(layers),
            seconds=QUICK,
            largest=None,
        )
    if finished.returncode != 0:
        raise _refusal(path, finished.stderr)


async def copy_image(
    layers: Sequence[Layer],
    target: IO[bytes],
    target_format: str,
    report: Report,
    *,
    locked: bool = False,
) -> None:
    """Write all that a guest sees of an image to ``target``, from every layer it has.

    ``locked``: we hold QEMU's lock on it. Raises Refused when somebody writes to it, Terminal,
    Transient when it does not get on.
    """
    argv = ["qemu-img", "convert", "-p", *(["-U"] if locked else []), "-O", target_format]
    argv += [describe_chain(layers), f"/proc/self/fd/{target.fileno()}"]
    descriptors = (*_descriptors_of(layers), target.fileno())
    code, words = await run_long(argv, report, pass_fds=descriptors)
    if code != 0:
        raise _refusal(layers[0].path, words)


def _descriptors_of(layers: Iterable[Layer]) -> tuple[int, ...]:
    return tuple(layer.descriptor for layer in layers)


async def run_long(
    argv: list[str],
    report: Report,
    *,
    account: Account | None = None,
    pass_fds: Sequence[int] = (),
) -> tuple[int, bytes]:
    """Run a program that tells how far it is; return its exit code and its other words.

    It runs as ``account``, None for this process's user, and inherits ``pass_fds``.
    Without a further percent in STALLED seconds it is killed: Transient.
    """
    require_qemu_img()
    start = partial(
        trio.run_process,
        [*bounded(), *dropping_to(account), *argv],
        stdin=b"",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
        pass_fds=tuple(pass_fds),
        env=environment_of(account, inherited_environment()),
        deliver_cancel=kill_at_once,
    )
    words = b""
    with trio.move_on_after(STALLED) as patience:
        async with trio.open_nursery() as nursery:
            process: trio.Process = await nursery.start(start)
            if process.stdout is None:
                raise AssertionError("stdout is a pipe")
            async for chunk in process.stdout:
                words += chunk
                for found in _PERCENT.finditer(words):
                    patience.deadline = trio.current_time() + STALLED
                    report(float(found[1]))
                words = _PERCENT.sub(b"", words)
    if patience.cancelled_caught or process.returncode is None:
        raise Transient(f"{argv[0]} made no progress within {STALLED:g} s")
    return process.returncode, words


def _refusal(path: Path, words: bytes) -> Refused | Terminal:
    """Word what qemu-img said. It has a sentence of its own for an image that is locked."""
    text = words.decode(errors="replace")
    if "lock" in text and "another process" in text:
        return in_use(path)
    # It names what it was given.
    last = _GIVEN.sub(str(path), text).strip().splitlines()
    return Terminal(f"{path}: {last[-1].strip() if last else 'qemu-img failed without a word'}")


def in_use(path: Path) -> Refused:
    """Return the refusal for an image that somebody has open."""
    holders = sorted(set(find_processes_holding(path)) - {os.getpid()})
    whose = f"process {', '.join(map(str, holders))}" if holders else "another process"
    return Refused(
        f"{path} is in use by {whose}",
        "stop the VM that uses it: `arcsup image list` names it",
    )
