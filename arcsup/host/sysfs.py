"""The kernel's device tree as text and links: the only place that reads it.

Entries appear file by file and go while they are read, and a broken driver can say anything. So a
read never raises: what is not there is None, and what is there but wrong is None and a fault.
Only where this process has no descriptor left to look with OSError is raised: that says nothing of
the device, and who took it for gone would stop its VM.
"""

import errno
import os
import re
import stat
from pathlib import Path

from attrs import Factory, define

from arcsup.model import CpuSet
from arcsup.spec.units import parse_cpus

LONGEST = 1 << 16
"""Bytes of an attribute that are read: sysfs itself gives one page at most."""

_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ENODEV)
"""What a read says of a device that goes meanwhile; ENODEV is the word of drivers."""

_COUNT = re.compile(r"[0-9]{1,18}")
_NOT_LOOKED = (errno.EMFILE, errno.ENFILE)
"""What no driver answers: open(2) itself could not be tried. Of memory drivers may speak, too."""

_HEX = re.compile(r"(0[xX])?([0-9A-Fa-f]{1,8})")


@define(eq=False)
class Sysfs:
    """One look at a device tree. Paths are relative to ``root``; ``faults`` gathers, one line each.

    Make a new one for each look: the faults are of that look.
    """

    root: Path
    faults: list[str] = Factory(list)

    def full(self, path: str) -> str:
        """Return ``path`` with the root before it: what other programs are told."""
        return os.path.join(self.root, path)

    def fault(self, path: str, what: str) -> None:
        """Note that an entry is wrong."""
        self.faults.append(f"{self.full(path)}: {what}")

    def names(self, folder: str) -> list[str]:
        """Return what is in a folder, in order; nothing where it is not there."""
        try:
            found = os.listdir(self.full(folder))
        except OSError as error:
            self._note(folder, error)
            return []
        names = [name for name in found if name.isprintable()]
        if len(names) < len(found):
            self.fault(folder, "has entries whose names are no text")
        return sorted(names)

    def has(self, path: str) -> bool:
        """Tell whether there is such an entry, a link that leads to one included."""
        return os.path.exists(self.full(path))

    def text(self, path: str) -> str | None:
        """Return an attribute without white space around it; None where it cannot be read."""
        try:
            # Without O_NONBLOCK a pipe in a tree that was copied would hold us for ever.
            descriptor = os.open(self.full(path), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            self._note(path, error)
            return None
        try:
            return os.read(descriptor, LONGEST).decode(errors="replace").strip()
        except OSError as error:
            self._note(path, error)
            return None
        finally:
            os.close(descriptor)

    def count(self, path: str) -> int | None:
        """Return a decimal number that is not negative; None where there is none."""
        text = self.text(path)
        if text is None:
            return None
        number = parse_count(text)
        if number is None:
            self.fault(path, f"expected a number, found {_quote(text)}")
        return number

    def hex_digits(self, path: str, digits: int) -> str:
        """Return a hexadecimal number in lower case, ``digits`` long; "" where there is none."""
        text = self.text(path)
        if text is None:
            return ""
        match = _HEX.fullmatch(text)
        if match is None or len(match[2]) > digits:
            self.fault(path, f"expected a hexadecimal number, found {_quote(text)}")
            return ""
        return match[2].lower().rjust(digits, "0")

    def cpus(self, path: str) -> CpuSet:
        """Return the CPUs of a list such as ``0-3,8`` (cpuset(7)); none where there is none."""
        text = self.text(path)
        if not text:
            return CpuSet(frozenset())
        try:
            return parse_cpus(text)
        except ValueError as error:
            self.fault(path, f"{error}, found {_quote(text)}")
            return CpuSet(frozenset())

    def link_name(self, path: str) -> str | None:
        """Return the last part of where a link leads, whether that is there or not."""
        try:
            name = os.path.basename(os.readlink(self.full(path)))
        except OSError as error:
            if error.errno == errno.EINVAL:
                self.fault(path, "expected a link")
            else:
                self._note(path, error)
            return None
        if name in {"", ".", ".."} or not name.isprintable():
            self.fault(path, "leads to nothing that has a name")
            return None
        return name

    def real(self, path: str) -> str | None:
        """Return where ``path`` really is, relative to the root; None when it is nowhere in it."""
        try:
            real = os.path.realpath(self.full(path), strict=True)
        except OSError as error:
            if os.path.islink(self.full(path)):
                self.fault(path, "is a link that leads nowhere")
            else:
                self._note(path, error)
            return None
        root = os.path.realpath(self.root)
        if not real.startswith(f"{root.rstrip('/')}/") or not real.isprintable():
            self.fault(path, "leads out of the device tree")
            return None
        return os.path.relpath(real, root)

    def is_folder(self, path: str) -> bool:
        """Tell whether there is a folder, or a link to one."""
        try:
            return stat.S_ISDIR(os.stat(self.full(path)).st_mode)
        except OSError:
            return False

    def _note(self, path: str, error: OSError) -> None:
        if error.errno in _NOT_LOOKED:
            raise error
        if error.errno not in _GONE:
            self.fault(path, f"cannot be read: {(error.strerror or str(error)).lower()}")


def parse_count(text: str) -> int | None:
    """Return a decimal number that is not negative, None where the text is none."""
    return int(text) if _COUNT.fullmatch(text) else None


def _quote(text: str) -> str:
    """Return what was found, short enough for a line."""
    return repr(text if len(text) <= 40 else f"{text[:40]}…")
