"""The guest-tools ISO: installers and scripts with long names for Windows (Joliet) and Linux (Rock
Ridge). Made whole beside its place; a VM that has the old one in its drive keeps that.
"""

import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from fnmatch import fnmatchcase
from functools import partial
from importlib.resources import files
from importlib.resources.abc import Traversable
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import pycdlib
from attrs import frozen

from arcsup.errors import Refused, Terminal
from arcsup.guest_tools.catalog import Installer, Verdict
from arcsup.vm.image_files import part_of, publish, replace

LABEL = "ARCSUP_TOOLS"
SCRIPTS = ("install.cmd", "windows/install.ps1", "linux/install.sh", "README.txt")
DOS_LINES = frozenset({".cmd", ".ps1", ".txt"})
LONGEST_NAME = 64
"""Characters of a Joliet name."""

Report = Callable[[float], None]


@frozen
class Entry:
    """One file of the ISO: its path there, how it is opened, and its size in bytes."""

    path: PurePosixPath
    open: Callable[[], BinaryIO]
    size: int


def build_iso(installers: Sequence[Installer], target: Path, report: Report) -> None:
    """Write the ISO of what was found and arcsup's scripts to ``target``.

    Raises Refused for an installer whose checksum is wrong, Terminal for one that cannot be read.
    """
    for installer in installers:
        if installer.verdict is Verdict.WRONG:
            raise Refused(
                f"{installer.file} is not what its publisher made: its checksum is wrong",
                f"download it again from {installer.tool.url}",
            )
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with ExitStack() as opened:
        entries = [*_list_scripts(), *_list_installers(installers, opened)]
        with part_of(target) as part:
            _write(entries, Path(part.name), report)
            if target.exists():
                replace(part, target)
            else:
                publish(part, target)


def _list_scripts() -> Iterator[Entry]:
    folder = files("arcsup.guest_tools")
    for name in SCRIPTS:
        content = _read_script(folder / name)
        yield Entry(PurePosixPath(name), partial(BytesIO, content), len(content))


def _read_script(script: Traversable) -> bytes:
    """Return a script with the ends of lines that its reader expects."""
    content = script.read_bytes()
    if Path(script.name).suffix in DOS_LINES:
        content = content.replace(b"\n", b"\r\n")
    return content


def _list_installers(installers: Sequence[Installer], opened: ExitStack) -> Iterator[Entry]:
    for installer in installers:
        file, tool = installer.file, installer.tool
        if file is None:
            continue
        folder = PurePosixPath("tools") / tool.folder
        if file.suffix.lower() == ".zip" and tool.member is not None:
            yield from _list_members(file, tool.member, folder, opened)
        else:
            # Under the name that the scripts look for, whatever version is in the file's own.
            name = file.name if tool.member in (None, "*") else tool.member
            yield Entry(folder / str(name), partial(_open, file), file.stat().st_size)


def _list_members(
    file: Path, pattern: str, folder: PurePosixPath, opened: ExitStack
) -> Iterator[Entry]:
    """Yield what fits of a ZIP archive; single files go into the folder itself."""
    try:
        archive = opened.enter_context(zipfile.ZipFile(file))
    except (OSError, zipfile.BadZipFile) as error:
        raise Terminal(f"{file}: {error}", "download it again") from error
    found = [it for it in archive.infolist() if not it.is_dir() and _fits(it.filename, pattern)]
    if not found:
        raise Terminal(f"{file}: has no {pattern} in it", "is it the right archive?")
    for member in found:
        if member.flag_bits & 1:
            raise Terminal(f"{file}: is encrypted", "unpack it yourself, and put the files there")
        path = PurePosixPath(member.filename)
        path = path if pattern == "*" else PurePosixPath(path.name)
        content = archive.read(member)
        yield Entry(folder / path, partial(BytesIO, content), len(content))


def _fits(name: str, pattern: str) -> bool:
    """Match a member anywhere in the archive; one that would leave the folder fits nothing."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        return False
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"*/{pattern}")


def _write(entries: Sequence[Entry], part: Path, report: Report) -> None:
    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident=LABEL)
    folders: dict[PurePosixPath, str] = {PurePosixPath(): ""}
    with ExitStack() as opened:
        for number, entry in enumerate(entries):
            _check_name(entry.path)
            parent = _add_folders(iso, entry.path.parent, folders)
            stream = opened.enter_context(entry.open())
            iso.add_fp(
                stream,
                entry.size,
                # Nobody sees these: Windows reads Joliet's names, Linux Rock Ridge's.
                f"{parent}/F{number:05}.;1",
                rr_name=entry.path.name,
                joliet_path=f"/{entry.path}",
                file_mode=0o100555,
            )
        iso.write(str(part), progress_cb=partial(_show, report))
        iso.close()


def _show(report: Report, done: int, total: int, _opaque: object) -> None:
    report(100 * done / max(total, 1))


def _open(file: Path) -> BinaryIO:
    return file.open("rb")


def _check_name(path: PurePosixPath) -> None:
    for name in path.parts:
        if len(name) > LONGEST_NAME:
            raise Terminal(f"{name}: longer than the {LONGEST_NAME} characters an ISO has for it")


def _add_folders(
    iso: pycdlib.PyCdlib, path: PurePosixPath, folders: dict[PurePosixPath, str]
) -> str:
    """Make a folder and those above it, once; return its path in plain ISO 9660."""
    if path not in folders:
        plain = f"{_add_folders(iso, path.parent, folders)}/D{len(folders):05}"
        iso.add_directory(plain, rr_name=path.name, joliet_path=f"/{path}", file_mode=0o040555)
        folders[path] = plain
    return folders[path]
