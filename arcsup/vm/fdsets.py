"""Files that QEMU gets as descriptors, and then opens as /dev/fdset/N.

It has the file for as long as it runs, and nothing else: no owner is changed, and what an owner can
do to a name or a mode it cannot do. Locks belong to the open file (fcntl(2)): they are as if QEMU
had opened it.
Source: qemu-doc, "-add-fd"; its docs on fdsets in qapi/misc.json.
"""

from collections.abc import Iterable
from enum import StrEnum
from itertools import pairwise
from pathlib import Path

from attrs import frozen

from arcsup.model import Argv
from arcsup.vm.options import escape

FIRST_SET = 1000
"""Sets that are added while it runs get the lowest free numbers."""


class Role(StrEnum):
    """What a file is to QEMU."""

    IMAGE = "image"
    OWN_FILE = "own file"


@frozen
class Handed:
    """An open file, and the set that it is in. ``descriptor`` is closed by whoever opened it."""

    path: Path
    fdset: int
    descriptor: int
    role: Role


def fdset_args(handed: Iterable[Handed]) -> Argv:
    """Return the options that make the sets. ``opaque`` only tells people which file it is."""
    return tuple(
        word
        for it in handed
        for word in ("-add-fd", f"fd={it.descriptor},set={it.fdset},opaque={escape(it.path)}")
    )


def name_files(words: str, argv: Argv) -> str:
    """Return what QEMU said with names of files in the place of sets, by its command line."""
    for option, value in pairwise(argv):
        if option == "-add-fd":
            number = value.partition(",set=")[2].partition(",")[0]
            name = value.partition(",opaque=")[2].replace(",,", ",")
            words = words.replace(f"/dev/fdset/{number}", name)
    return words
