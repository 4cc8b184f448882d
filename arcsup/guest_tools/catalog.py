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
from attrs import frozen

from arcsup.errors import NoSuchObject, NotPermitted

SUMS = "SHA256SUMS"
"""Checksums beside the installers, as sha256sum(1) writes them."""

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
    """What is known of a file. UNVERIFIED: nobody told its checksum."""

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


def find_installers(folder: Path) -> tuple[Installer, ...]:
    """Return what a folder has of each tool, checksums checked.

    Raises NoSuchObject, NotPermitted for the folder or a file in it.
    """
    try:
        sums = _read_sums(folder / SUMS)
        return tuple(_find(tool, folder, sums) for tool in read_catalog())
    except PermissionError as error:
        raise NotPermitted(f"{error.filename}: you may not read it") from error


def _find(tool: Tool, folder: Path, sums: dict[str, str]) -> Installer:
    found = sorted(path for pattern in tool.files for path in folder.glob(pattern))
    if not found:
        return Installer(tool, None, Verdict.MISSING)
    file = found[-1]
    told = sums.get(file.name) or (tool.checksum if _is_version(tool, file) else None)
    if told is None:
        return Installer(tool, file, Verdict.UNVERIFIED)
    right = _hash(file) == told.lower()
    return Installer(tool, file, Verdict.VERIFIED if right else Verdict.WRONG)


def _is_version(tool: Tool, file: Path) -> bool:
    """Tell whether a file is of the version that the catalogue has the checksum of."""
    return tool.version is not None and tool.version in file.name


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


def _hash(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
