"""The installers that the guest-tools ISO may hold, and which of them are in a folder."""

import hashlib
import re
from collections.abc import Iterator
from enum import StrEnum
from functools import cache
from importlib.resources import files
from pathlib import Path

import cattrs
import yaml
from attrs import define, frozen

from arcsup.errors import NoSuchObject, NotPermitted
from arcsup.vm.qemu_img import Report, report_nothing

SUMS = "SHA256SUMS"
"""Checksums beside the installers, as sha256sum(1) writes them."""

_AT_ONCE = 1 << 20
"""Bytes that are read between two words about how far it is."""

_SUM_LINE = re.compile(r"([0-9a-fA-F]{64}) [ *](.+)")


@frozen
class Tool:
    """One entry of catalog.yaml. ``purpose`` is its ``for``; see there for the others."""

    name: str
    purpose: str
    files: tuple[str, ...]
    folder: str
    url: str
    version: str | None = None
    checksum: str | None = None
    member: str | None = None
    optional: bool = False


class Verdict(StrEnum):
    """What is known of a file. UNVERIFIED: nobody told the checksum of this version of it."""

    MISSING = "missing"
    VERIFIED = "verified"
    UNVERIFIED = "unverified"
    WRONG = "wrong checksum"


@frozen
class Installer:
    """A tool, and the file that was found for it."""

    tool: Tool
    file: Path | None
    verdict: Verdict


@cache
def read_catalog() -> tuple[Tool, ...]:
    """Return the tools in the catalogue's order."""
    text = (files("arcsup.guest_tools") / "catalog.yaml").read_text()
    entries = [{"purpose": it.pop("for"), **it} for it in yaml.safe_load(text)]
    converter = cattrs.Converter(forbid_extra_keys=True)
    return tuple(converter.structure(entry, Tool) for entry in entries)


def find_installers(folder: Path, report: Report = report_nothing) -> tuple[Installer, ...]:
    """Return what a folder has of each tool, checksums checked.

    Raises NoSuchObject, NotPermitted for the folder or a file in it.
    """
    try:
        sums = _read_sums(folder / SUMS)
        found = [_Found(tool, _find(tool, folder), sums) for tool in read_catalog()]
        reading = _Reading(report, sum(it.file.stat().st_size for it in found if it.file))
        return tuple(Installer(it.tool, it.file, it.judge(reading)) for it in found)
    except PermissionError as error:
        raise NotPermitted(f"{error.filename}: you may not read it") from error


def _find(tool: Tool, folder: Path) -> Path | None:
    return max((path for pattern in tool.files for path in folder.glob(pattern)), default=None)


@frozen
class _Found:
    tool: Tool
    file: Path | None
    sums: dict[str, str]

    def judge(self, reading: "_Reading") -> Verdict:
        if self.file is None:
            return Verdict.MISSING
        told = self.sums.get(self.file.name)
        if told is None and self.tool.checksum is None:
            reading.skip(self.file)
            return Verdict.UNVERIFIED
        if reading.hash(self.file) == (told or self.tool.checksum or "").lower():
            return Verdict.VERIFIED
        return Verdict.WRONG if told or self._is_of_the_version() else Verdict.UNVERIFIED

    def _is_of_the_version(self) -> bool:
        """Tell whether the file claims to be the one that the catalogue has the checksum of."""
        version, published = self.tool.version, self.tool.files[0]
        file = self.file
        return bool(version and file and version in file.name and file.match(published))


def _read_sums(path: Path) -> dict[str, str]:
    """Return file name -> SHA-256 in hexadecimal; {} where nobody put such a file."""
    if not path.parent.is_dir():
        raise NoSuchObject(f"there is no folder {path.parent}", "put the installers there")
    if not path.exists():
        return {}
    return dict(_parse_sums(path.read_text(errors="replace")))


def _parse_sums(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        if match := _SUM_LINE.fullmatch(line.strip()):
            yield match[2], match[1]


@define
class _Reading:
    """Reads files of ``total`` bytes together and tells how far it is."""

    report: Report
    total: int
    done: int = 0

    def hash(self, file: Path) -> str:
        """Return a file's SHA-256 in hexadecimal."""
        digest = hashlib.sha256()
        with file.open("rb") as stream:
            while chunk := stream.read(_AT_ONCE):
                digest.update(chunk)
                self._count(len(chunk))
        return digest.hexdigest()

    def skip(self, file: Path) -> None:
        """Count a file that need not be read."""
        self._count(file.stat().st_size)

    def _count(self, size: int) -> None:
        self.done += size
        self.report(100 * self.done / max(self.total, 1))
