"""The images that make a disk, each held open: what an image tool gets instead of names.

Source: QEMU, QAPI BlockdevOptions; qemu-img(1) takes them as a file name that begins with "json:".
"""

import json
import os
import stat
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from attrs import frozen

from arcsup.errors import Refused, Terminal
from arcsup.opening import open_named
from arcsup.vm.chains import find_base
from arcsup.vm.image_files import has_qcow2_magic
from arcsup.vm.qcow2 import LONGEST_CHAIN

Trusted = Callable[[Path], bool]
"""Tells whether an image may build upon a file. A program that broke out of a guest can write any
name into the header of its disk; whoever follows it as root reads, or replaces, that file."""


@frozen
class Layer:
    """One of the images that make a disk, held by a descriptor. ``path`` is its own."""

    path: Path
    descriptor: int
    status: os.stat_result
    raw: bool

    @property
    def by_descriptor(self) -> str:
        """Return the name by which a program opens it that has inherited the descriptor."""
        return f"/proc/self/fd/{self.descriptor}"


def describe_chain(layers: Sequence[Layer]) -> str:
    """Return QEMU's name for layers on descriptors: no header has a say in what is below."""
    below: dict[str, Any] | None = None
    for layer in reversed(layers):
        driver = "host_device" if stat.S_ISBLK(layer.status.st_mode) else "file"
        file = {"driver": driver, "filename": layer.by_descriptor}
        if layer.raw:
            below = {"driver": "raw", "file": file}
        else:
            below = {"driver": "qcow2", "file": file, "backing": below}
    return f"json:{json.dumps(below)}"


def open_layers(image: Path, trusted: Trusted, opened: ExitStack) -> tuple[Layer, ...]:
    """Open an image and all that it builds upon, with this process's rights; from the top.

    What is asked about is what is opened: ``opened`` closes it. Blocks. Raises Refused where it
    builds upon what is not ``trusted``, Terminal.
    """
    layers: list[Layer] = []
    path, said = image.resolve(), ""
    while len(layers) <= LONGEST_CHAIN:
        layers.append(_open_layer(path, said, opened))
        below = find_base(str(path), path, layers[-1].descriptor) if not layers[-1].raw else None
        if below is None:
            return tuple(layers)
        base, said = below[0].resolve(), below[1]
        if not trusted(base):
            raise Refused(
                f"{path} builds upon {below[0]}, which no VM file names",
                "if that is meant, say it with `base:` in the VM file",
            )
        path = base
    raise Refused(f"{image} builds upon more than {LONGEST_CHAIN} images")


def open_alone(image: Path, opened: ExitStack) -> Layer:
    """Open an image without what it builds upon. Blocks. Raises Terminal."""
    return _open_layer(image.resolve(), "", opened)


def _open_layer(path: Path, said: str, opened: ExitStack) -> Layer:
    try:
        stream = opened.enter_context(open_named(path, or_block_device=True))
        raw = said == "raw" or not has_qcow2_magic(stream)
    except OSError as error:
        raise Terminal(f"{path}: {(error.strerror or str(error)).lower()}") from error
    return Layer(path, stream.fileno(), os.fstat(stream.fileno()), raw)
