"""What ``image list`` shows."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from arcsup.cli.image_users import UserJson, Users
from arcsup.errors import ArcsupError, NotPermitted

if TYPE_CHECKING:
    from arcsup.vm.qemu_img import Image

NAMES = frozenset({".arc", ".img", ".raw"})
"""Endings of raw images, which nothing inside tells. LibVF.IO's base images are named .arc."""

AT_ONCE = 4
"""How many images are looked at at the same time."""


class SnapshotJson(TypedDict):
    """A snapshot inside an image."""

    name: str
    at: str


class ImageJson(TypedDict):
    """One image; sizes in bytes, null where ``error`` says why it cannot be read.

    ``path`` is relative where the image is in the images directory; ``base`` likewise.
    """

    path: str
    size: int | None
    virtualSize: int | None
    format: str | None
    base: str | None
    snapshots: list[SnapshotJson]
    users: list[UserJson]
    error: str | None


def list_images(users: Users) -> list[ImageJson]:
    """Return the images in the images directory and those that VMs name elsewhere, by path.

    Raises NotPermitted when that directory may not be read.
    """
    import trio

    found = {users.resolve(path) for path in _walk(users.images)}
    found.update(path for path in users.paths() if path.exists())
    return trio.run(_observe_all, sorted(found), users)


def _walk(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder, those excepted that are still being made."""

    def refuse(error: OSError) -> None:
        if isinstance(error, PermissionError):
            raise NotPermitted(f"{error.filename}: you may not look there")

    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(parent, name) for name in names if not name.startswith("."))


async def _observe_all(paths: Sequence[Path], users: Users) -> list[ImageJson]:
    """Look at images, a few at a time: each is a program to start."""
    import trio

    seen: dict[Path, ImageJson] = {}
    limit = trio.CapacityLimiter(AT_ONCE)

    async def observe(path: Path) -> None:
        async with limit:
            shown = await _observe(path, users)
        if shown is not None:
            seen[path] = shown

    async with trio.open_nursery() as nursery:
        for path in paths:
            nursery.start_soon(observe, path)
    return [seen[path] for path in paths if path in seen]


async def _observe(path: Path, users: Users) -> ImageJson | None:
    """Return what is shown of a file, None for one that is no image."""
    from arcsup.vm.qemu_img import find_format, observe_image

    used = users.of(path)
    try:
        is_raw = find_format(path) == "raw"
        if is_raw and path.suffix not in NAMES and not used:
            return None
        if is_raw and used and all(user["use"] == "boot" for user in used):
            return None
        return _show(await observe_image(path), users)
    except ArcsupError as error:
        return _show_unreadable(path, users, error.message)


def _show(image: "Image", users: Users) -> ImageJson:
    return ImageJson(
        path=_shorten(image.path, users.images),
        size=image.size,
        virtualSize=image.virtual_size,
        format=image.format,
        base=None if image.base is None else _shorten(image.base, users.images),
        snapshots=[
            SnapshotJson(name=it.name, at=it.at.strftime("%Y-%m-%dT%H:%M:%SZ"))
            for it in image.snapshots
        ],
        users=users.of(image.path),
        error=None,
    )


def _show_unreadable(path: Path, users: Users, why: str) -> ImageJson:
    return ImageJson(
        path=_shorten(path, users.images),
        size=None,
        virtualSize=None,
        format=None,
        base=None,
        snapshots=[],
        users=users.of(path),
        error=why,
    )


def _shorten(path: Path, images: Path) -> str:
    """Return a path as a VM file would name it."""
    folder = Path(os.path.realpath(images))
    return str(path.relative_to(folder) if path.is_relative_to(folder) else path)


def tabulate_images(
    images: Sequence[ImageJson], *, wide: bool
) -> tuple[list[str], list[list[str]]]:
    """Return the headers and rows of ``image list``."""
    headers = ["IMAGE", "SIZE", "VIRTUAL", "FORMAT", "BASE", *(["SNAPSHOTS"] if wide else [])]
    rows = []
    for it in images:
        row = [it["path"], format_size(it["size"]), format_size(it["virtualSize"])]
        row += [it["format"] or "-", it["base"] or "-"]
        if wide:
            row.append(", ".join(one["name"] for one in it["snapshots"]) or "-")
        rows.append([*row, it["error"] or _name_users(it["users"]) or "-"])
    return [*headers, "USED BY"], rows


def _name_users(users: Sequence[UserJson]) -> str:
    words = []
    for user in users:
        notes = [user["use"]] if user["use"] != "disk" else []
        notes += [user["state"]] if user["state"] else []
        words.append(user["vm"] + (f" ({', '.join(notes)})" if notes else ""))
    return ", ".join(words)


def format_size(size: int | None) -> str:
    """Return a number of bytes for people: ``64 GiB``, ``1.5 MiB``."""
    if size is None:
        return "-"
    amount, unit = float(size), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if amount < 1024:
            break
        amount, unit = amount / 1024, larger
    return f"{amount:.1f}".removesuffix(".0") + f" {unit}"
