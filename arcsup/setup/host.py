"""The host that is looked at or made ready: this one, or the tree of one in a directory."""

import os
import re
import resource
import shutil
from collections.abc import Sequence
from dataclasses import fields, replace
from functools import cached_property
from pathlib import Path

from attrs import define, field

from arcsup.host.cpu_flags import parse_cpu_flags
from arcsup.places import Places

PROGRAM_FOLDERS = ("usr/local/sbin", "usr/local/bin", "usr/sbin", "usr/bin", "sbin", "bin")

UNLIMITED: int = resource.RLIM_INFINITY


def _observe_memlock() -> int:
    return resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]


# Not frozen: what takes long to find is found once.
@define(slots=False)
class Host:
    """A host as files below ``root``; ``places`` and ``sysfs`` are already where they are there.

    ``uid`` is who the daemon is to run as. ``memlock`` is the memory in bytes that a process of
    that user may lock, UNLIMITED (-1) for all.
    """

    places: Places
    root: Path = Path("/")
    uid: int = field(factory=os.geteuid)
    memlock: int = field(factory=_observe_memlock)

    @property
    def sysfs(self) -> Path:
        """The kernel's device tree."""
        return self.places.sysfs

    @property
    def is_this(self) -> bool:
        """Whether it is the host that this program runs on."""
        return self.root == Path("/")

    def path(self, absolute: str | Path) -> Path:
        """Return where a path of the host is."""
        return self.root / str(absolute).lstrip("/")

    def paths(self, absolute: Sequence[Path]) -> tuple[Path, ...]:
        """Return where several paths of the host are."""
        return tuple(self.path(path) for path in absolute)

    def tell(self, path: Path) -> str:
        """Return a path as it reads on the host itself."""
        return f"/{path.relative_to(self.root)}" if path.is_relative_to(self.root) else str(path)

    def read(self, absolute: str | Path) -> str:
        """Return a file's text, "" when it cannot be read."""
        return read_text(self.path(absolute))

    def find_program(self, name: str) -> Path | None:
        """Return a program of the host, None when it has none of that name."""
        if self.is_this:
            # A user's PATH seldom has the folders of programs for root.
            folders = [os.environ.get("PATH", ""), *(f"/{folder}" for folder in PROGRAM_FOLDERS)]
        else:
            folders = [str(self.path(folder)) for folder in PROGRAM_FOLDERS]
        found = shutil.which(name, path=os.pathsep.join(folders))
        return None if found is None else Path(found)

    @cached_property
    def release(self) -> str:
        """The running kernel's release; "" where /proc is not mounted."""
        return self.read("/proc/sys/kernel/osrelease").strip()

    @cached_property
    def command_line(self) -> tuple[str, ...]:
        """The parameters that the running kernel was started with."""
        return tuple(self.read("/proc/cmdline").split())

    @cached_property
    def cpu_vendor(self) -> str:
        """``GenuineIntel``, ``AuthenticAMD`` or another; "" when unknown."""
        match = re.search(r"^vendor_id\s*: (\S+)", self.read("/proc/cpuinfo"), re.MULTILINE)
        return match[1] if match else ""

    @cached_property
    def cpu_flags(self) -> frozenset[str]:
        """What the first CPU can do, in the kernel's words."""
        return parse_cpu_flags(self.read("/proc/cpuinfo"))


def read_text(file: Path) -> str:
    """Return a file's text, "" when it cannot be read."""
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""


def rebase(places: Places, root: Path) -> Places:
    """Return the places of a host whose files are below ``root``."""
    moved = {
        place.name: root / getattr(places, place.name).relative_to("/")
        for place in fields(places)
        if place.name != "system"
    }
    return replace(places, **moved)
