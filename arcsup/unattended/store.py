"""The daemon's folder of answers: media with passwords, for as long as an installer needs them.

A run's answers have a folder of their own that nobody else can enter. It is named by the mode of
the VM's record and removed once no record names it: after the installation, and after a crash in
whose middle it was made.
"""

import secrets
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import trio
from attrs import define, evolve, field, frozen

from arcsup.errors import Terminal
from arcsup.model import Boot, VmName
from arcsup.plan.mode import Mode
from arcsup.unattended.debian import CMDLINE, INITRD, KERNEL
from arcsup.unattended.medium import read_file_of_iso, write_archive, write_medium


@frozen
class Answers:
    """What an installer is to find: ``files`` on a medium called ``label``, or a ``preseed``.

    A preseed goes into the initrd of the first medium, which is then started directly.
    """

    label: str = ""
    files: Mapping[str, str] = field(factory=dict, repr=False)
    preseed: str = field(default="", repr=False)


@define(eq=False)
class AnswerStore:
    """The folder; it is made when it is needed."""

    folder: Path
    _in_the_making: set[Path] = field(factory=set)

    @contextmanager
    def reserve(self, name: VmName) -> Iterator[Path]:
        """Give a path for a run's answers, which stays unless nobody names it afterwards."""
        place = self.folder / f"{name}-{secrets.token_hex(4)}"
        self._in_the_making.add(place)
        try:
            yield place
        finally:
            self._in_the_making.discard(place)

    def remove_stale(self, modes: Iterable[Mode], *, spared: Collection[VmName] = ()) -> None:
        """Remove what no run's mode names; nothing of VMs that are ``spared``."""
        if not self.folder.is_dir():
            return
        named = {Path(path).parent for mode in modes for path in _paths(mode)}
        for place in self.folder.iterdir():
            if place.name.rpartition("-")[0] in spared:
                continue
            if place not in named and place not in self._in_the_making:
                shutil.rmtree(place, ignore_errors=True)


def _paths(mode: Mode) -> Iterator[str]:
    yield from mode.media
    if mode.boot is not None and mode.boot.initrd is not None:
        yield mode.boot.initrd


async def add_answers(mode: Mode, answers: Answers, place: Path) -> Mode:
    """Write a run's answers to ``place`` and return the mode that names them.

    Raises Refused for an installer that cannot take them, Terminal when the disk refuses.
    """
    return await trio.to_thread.run_sync(partial(_write, mode, answers, place))


def _write(mode: Mode, answers: Answers, place: Path) -> Mode:
    files: dict[str, bytes] = {}
    if answers.preseed:
        installer = Path(mode.media[0])
        files["vmlinuz"] = read_file_of_iso(installer, KERNEL)
        initrd = read_file_of_iso(installer, INITRD)
        # An archive begins on a multiple of four bytes, whatever is before it.
        padding = b"\0" * (-len(initrd) % 4)
        files["initrd"] = initrd + padding + write_archive("preseed.cfg", answers.preseed)
        boot = Boot(str(place / "vmlinuz"), str(place / "initrd"), CMDLINE)
        mode = evolve(mode, boot=boot)
    if answers.files:
        files["answers.iso"] = write_medium(answers.label, answers.files)
        mode = evolve(mode, media=(*mode.media, str(place / "answers.iso")))
    try:
        place.mkdir(mode=0o700, parents=True)
        for name, data in files.items():
            path = place / name
            path.touch(mode=0o600, exist_ok=False)
            path.write_bytes(data)
    except OSError as error:
        raise Terminal(
            f"{place}: the answers cannot be written: {error.strerror}", "make room there"
        ) from error
    return mode
