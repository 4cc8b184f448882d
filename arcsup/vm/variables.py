"""The UEFI variables of a VM: one store (NAME.fd), tied to what it was made for.

A build formats a store that is not laid out as its own anew, and one without keys enforces no
Secure Boot; both without a word. So a store is judged before QEMU starts, by its bytes and by a
note beside it (NAME.fd.json): what it was made for no guest can write there. One that does not fit
is kept as NAME.fd.old-N, for the daemon's user alone, and a new one takes its place. Only that user
can write in the folder, so the file that was judged is the one that QEMU opens by its name.

The order survives a crash at any instruction: the old store gets its second name, the note tells
of the new store by its inode, the new store takes the name. A start that finds the first two done
does only what is left.
"""

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Literal

import cattrs
from attrs import evolve, field, frozen
from cattrs.preconf.json import make_converter

from arcsup.durable import sync_folder, write_durably
from arcsup.errors import Terminal
from arcsup.model import VmName
from arcsup.vm.firmware import FirmwareFiles, ImageFormat
from arcsup.vm.varstore import (
    LARGEST,
    QCOW2_MAGIC,
    has_platform_key,
    is_switched_off,
    read_layout,
    read_qcow2,
)

MOST_KEPT = 16
"""Stores of one VM that are kept. A guest can spoil its own as often as it starts."""

Enforcement = Literal["enforced", "no-keys", "switched-off"]
"""Whether Secure Boot refuses what no enrolled key has signed, as a store has it."""


@frozen
class Store:
    """What one store was made for, and in the place of which. A store is a file, by its identity.

    ``kept`` is the name of the store that it took the place of, "" for none; ``because`` says why.
    """

    device: int
    inode: int
    secure: bool
    template: str
    kept: str = ""
    because: str = ""


@frozen
class Replaced:
    """A store that was kept, where, and why a new one took its place."""

    kept: Path
    because: str

    def __str__(self) -> str:
        return (
            f"its UEFI variables were made anew: {self.because};"
            f" the guest's boot entries are in {self.kept}, remove that when nobody needs them"
        )


@frozen
class _Note:
    """What is written beside the store; of two, the last is about to take the other's place."""

    stores: tuple[Store, ...] = ()
    format: int = field(default=1)


@frozen
class _Misfit:
    """Why a store is not for a build. ``copied``: its contents are, for a store of their own."""

    because: str
    copied: bool = False


_converter = make_converter(forbid_extra_keys=True)


def vars_file(state: Path, name: VmName) -> Path:
    """Return where a VM's UEFI variables are kept."""
    return state / "vars" / f"{name}.fd"


def create_vars(files: FirmwareFiles, store: Path) -> Replaced | None:
    """Make a VM's variables where they are missing, or were made for something else.

    Return what was replaced, None where nothing was. Blocks. Whoever calls it holds the VM's lock.

    Raises:
        Terminal: the template or the store cannot be read, or a new store cannot be kept.
    """
    try:
        store.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        template = _read_template(files)
        with _open_store(store) as old:
            if old is None:
                _put(files, store, template, ())
                return None
            return _fit(files, store, old, template)
    except OSError as error:
        raise Terminal(
            f"{error.filename or store}: cannot keep the UEFI variables: {error.strerror}",
            hint=f"check {files.template} and the state directory",
        ) from error


def find_replaced(store: Path) -> Replaced | None:
    """Return what the store took the place of, as long as that is there; None where nothing is.

    Raises Terminal, OSError.
    """
    with _open_store(store) as stream:
        known = _find_known(store, stream) if stream is not None else None
    if known is None or not known.kept or not (kept := store.with_name(known.kept)).exists():
        return None
    return Replaced(kept, known.because)


def observe_secure_boot(store: Path) -> Enforcement:
    """Return whether a store has Secure Boot enforced. Blocks. Raises OSError."""
    with open(store, "rb") as stream:
        flash = _read_flash(stream)
    if not has_platform_key(flash):
        return "no-keys"
    return "switched-off" if is_switched_off(flash) else "enforced"


def _fit(files: FirmwareFiles, store: Path, stream: IO[bytes], template: bytes) -> Replaced | None:
    content, known = _read(stream), _find_known(store, stream)
    misfit = _judge(files, template, content, known)
    if misfit is None:
        if known is None:
            _write_note(store, (_describe(files, stream),))
        return None
    kept = _keep(store, stream)
    new = content if misfit.copied else template
    _put(files, store, new, (known,) if known else (), kept.name, misfit.because)
    return Replaced(kept, misfit.because)


def _judge(
    files: FirmwareFiles, template: bytes, content: bytes, known: Store | None
) -> _Misfit | None:
    """Say why a store is not what a build needs; None where it is."""
    name = files.template.name
    if (is_format := _format_of(content)) != files.vars_format:
        return _Misfit(f"they are {is_format}, and this firmware's are {files.vars_format}")
    flash, expected = _to_flash(content), _to_flash(template)
    if flash is None or expected is None:
        return _Misfit("they cannot be read as qcow2")
    if len(flash) != len(expected):
        return _Misfit(f"they have {len(flash)} bytes, and those of {name} {len(expected)}")
    layout = read_layout(expected)
    if layout is not None and read_layout(flash) != layout:
        return _Misfit(f"they are not laid out as those of {name}: the firmware would erase them")
    secure = has_platform_key(flash) if known is None else known.secure
    if files.secure and not secure:
        return _Misfit("they were made for firmware without Secure Boot")
    if secure and not files.secure:
        # Without it the guest can write its keys. What the guest has set up is in the copy.
        why = "they were made for Secure Boot, and a copy is used that it does not protect"
        return _Misfit(why, copied=True)
    return None


def _format_of(content: bytes) -> ImageFormat:
    return "qcow2" if content.startswith(QCOW2_MAGIC) else "raw"


def _to_flash(content: bytes) -> bytes | None:
    return read_qcow2(content) if _format_of(content) == "qcow2" else content


def _read_template(files: FirmwareFiles) -> bytes:
    with open(files.template, "rb") as stream:
        template = _read(stream)
    if _format_of(template) != files.vars_format or _to_flash(template) is None:
        raise Terminal(
            f"{files.template} cannot be read as {files.vars_format}", "install the firmware again"
        )
    return template


def _read(stream: IO[bytes]) -> bytes:
    """Return all of a store; of one that is too large to be any, more than may be in it."""
    stream.seek(0)
    # A qcow2 image is somewhat larger than what is in it.
    return stream.read(2 * LARGEST + 1)


def _read_flash(stream: IO[bytes]) -> bytes:
    return _to_flash(_read(stream)) or b""


@contextmanager
def _open_store(store: Path) -> Iterator[IO[bytes] | None]:
    """Open a store that is there; None where there is none. Raises Terminal for what is no file."""
    try:
        # It may be a FIFO, whose writer a blocking open would wait for (fifo(7)).
        descriptor = os.open(store, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        if os.path.lexists(store):
            target = store.readlink()
            raise Terminal(
                f"{store}: its UEFI variables are not there: it is a link to {target}",
                "make that available, or remove the link: then they are made anew",
            ) from None
        yield None
        return
    with open(descriptor, "rb") as stream:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise Terminal(f"{store}: the UEFI variables are no regular file", "move it away")
        yield stream


def _keep(store: Path, stream: IO[bytes]) -> Path:
    """Give the old store a second name, which nothing of ours ever takes away again."""
    prefix = f"{store.name}.old-"
    names = [it.name.removeprefix(prefix) for it in store.parent.iterdir()]
    numbers = sorted(int(it) for it in names if it.isdecimal() and len(it) < 10)
    newest = store.with_name(f"{prefix}{numbers[-1]}") if numbers else None
    # A start that was killed after this had begun to replace it.
    if newest is None or not os.path.samestat(newest.lstat(), store.lstat()):
        if len(numbers) >= MOST_KEPT:
            raise Terminal(
                f"{store}: {len(numbers)} older stores of its UEFI variables are kept already",
                f"remove those that are not needed: {store}.old-…",
            )
        newest = store.with_name(f"{prefix}{numbers[-1] + 1 if numbers else 1}")
        # A link, unlike a rename, replaces nothing, and leaves no moment without a store.
        os.link(store, newest, follow_symlinks=False)
    os.fchown(stream.fileno(), os.geteuid(), os.getegid())
    os.fchmod(stream.fileno(), 0o600)
    sync_folder(store.parent)
    return newest


def _put(
    files: FirmwareFiles,
    store: Path,
    content: bytes,
    before: tuple[Store, ...],
    kept: str = "",
    because: str = "",
) -> None:
    """Put a new file in the place of the store; the note tells of it before it is there."""
    unfinished = store.with_name(f".{store.name}.new")
    unfinished.unlink(missing_ok=True)
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
            made = evolve(_describe(files, stream), kept=kept, because=because)
        _write_note(store, (*before, made))
        unfinished.replace(store)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise
    sync_folder(store.parent)
    if before:
        # Its inode may be another file's one day.
        _write_note(store, (made,))


def _describe(files: FirmwareFiles, stream: IO[bytes]) -> Store:
    status = os.fstat(stream.fileno())
    return Store(status.st_dev, status.st_ino, files.secure, str(files.template))


def _note_of(store: Path) -> Path:
    return store.with_name(f"{store.name}.json")


def _write_note(store: Path, stores: tuple[Store, ...]) -> None:
    content = json.dumps(_converter.unstructure(_Note(stores)), indent=1)
    write_durably(_note_of(store), content, 0o600)


def _find_known(store: Path, stream: IO[bytes]) -> Store | None:
    """Return what the note says of the file that is open; a restored copy it does not know."""
    note, status = _note_of(store), os.fstat(stream.fileno())
    try:
        raw = json.loads(note.read_bytes())
        if not isinstance(raw, dict):
            raise TypeError("it holds no JSON object")
        stores = _converter.structure(raw, _Note).stores
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, RecursionError, cattrs.BaseValidationError) as error:
        raise Terminal(
            f"{note} cannot be read: {error}",
            "remove it: then the UEFI variables are judged by their contents alone",
        ) from error
    same = (it for it in stores if (it.device, it.inode) == (status.st_dev, status.st_ino))
    return next(same, None)
