"""Which VMs use which images: asked of the daemon, read from the VM directory without one."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, Unpack

from arcsup.cli.places import PlaceOptions, find_places
from arcsup.cli.session import Session
from arcsup.control.client import vm_path
from arcsup.errors import DaemonUnreachable, NoSuchObject

UP = frozenset({"starting", "running", "paused", "stopping"})
"""States in which a VM's QEMU has its images open."""


class UserJson(TypedDict):
    """One VM's use of an image; ``state`` null: unknown.

    ``use`` is disk, ephemeral (a disk whose image is only read), base, cdrom or boot.
    """

    vm: str
    state: str | None
    use: str


class Users:
    """The images directory, and who uses which image; all paths are real ones."""

    def __init__(
        self, images: Path, vms: Sequence[tuple[str, str | None, Mapping[str, Any]]]
    ) -> None:
        self.images = images
        self._uses: dict[Path, list[UserJson]] = {}
        self._formats: dict[Path, str] = {}
        self._disks: dict[tuple[Path, str], int] = {}
        for name, state, definition in vms:
            self._add(name, state, definition)

    def _add(self, name: str, state: str | None, definition: Mapping[str, Any]) -> None:
        for number, disk in enumerate(definition.get("disks", ())):
            path = self.resolve(disk["path"])
            self._formats[path] = disk["format"]
            self._disks[path, name] = number
        for path, use in self._list_uses(definition):
            self._uses.setdefault(path, []).append(UserJson(vm=name, state=state, use=use))

    def _list_uses(self, definition: Mapping[str, Any]) -> Iterator[tuple[Path, str]]:
        for disk in definition.get("disks", ()):
            yield self.resolve(disk["path"]), "ephemeral" if disk.get("ephemeral") else "disk"
            if disk.get("base"):
                yield self.resolve(disk["base"]), "base"
        for path in definition.get("cdroms", ()):
            yield self.resolve(path), "cdrom"
        boot = definition.get("boot")
        for key in ("kernel", "initrd"):
            if isinstance(boot, dict) and boot.get(key):
                yield self.resolve(boot[key]), "boot"

    def resolve(self, path: str | Path) -> Path:
        """Return the real path of an image; a relative one hangs off the images directory."""
        return Path(os.path.realpath(self.images / path))

    def trust_beside(self, image: Path) -> Callable[[Path], bool]:
        """Return what tells whether ``image`` may build upon a file.

        It may if that is an image below the images directory or in its own folder, or a VM file
        says so.
        """
        folders = (self.resolve("."), image.parent)
        return lambda path: path in self._uses or any(map(path.is_relative_to, folders))

    def of(self, path: Path) -> list[UserJson]:
        """Return who uses an image."""
        return self._uses.get(path, [])

    def paths(self) -> list[Path]:
        """Return every image that a VM names."""
        return list(self._uses)

    def format_of(self, path: Path) -> str | None:
        """Return the format that a VM file states for a disk."""
        return self._formats.get(path)

    def find_running(self, path: Path) -> tuple[str, str] | None:
        """Return which VM has a disk open now: its name, and the disk's node in its QEMU."""
        for user in self.of(path):
            if user["state"] in UP and user["use"] == "disk":
                return user["vm"], f"disk{self._disks[path, user['vm']]}"
        return None


def find_users(session: Session, **options: Unpack[PlaceOptions]) -> Users:
    """Return the users of all images. NoSuchObject when a place that was named is not there."""
    if options["vms"] is None and options["config"] is None:
        try:
            return _ask(session, options["state"])
        except DaemonUnreachable:
            pass
    return _read(session, **options)


def find_images(session: Session, **options: Unpack[PlaceOptions]) -> Path:
    """Return the images directory: the daemon's, else where one would have it."""
    if options["config"] is None:
        try:
            return _ask_images(session, options["state"])
        except DaemonUnreachable:
            pass
    return find_places(session.run, **options)[0].images


def _ask_images(session: Session, state: Path | None) -> Path:
    named = state or session.client.get("/v1/daemon")["places"]["state"]
    return Path(named).absolute() / "images"


def _ask(session: Session, state: Path | None) -> Users:
    images = _ask_images(session, state)
    vms = []
    for vm in session.list_vms():
        # A file that is faulty from its first version on has no definition.
        definition = {}
        if vm["state"] != "invalid" or vm["pid"] is not None:
            definition = session.client.get(vm_path(vm["name"], "definition"))
        vms.append((vm["name"], vm["state"], definition))
    return Users(images, vms)


def _read(session: Session, **options: Unpack[PlaceOptions]) -> Users:
    # Only here, because it needs the libraries of the daemon.
    import time

    from arcsup.spec.directory import Circumstances, read_directory
    from arcsup.spec.native import vm_to_native

    places, _ = find_places(session.run, **options)
    given = Circumstances(machine_id="", images=places.images, system=False)
    snapshot = read_directory(places.vms, None, given, time.time())
    if snapshot.reason and options["vms"] is not None:
        raise NoSuchObject(snapshot.reason)
    vms = [entry.vm for entry in snapshot.entries.values() if entry.vm is not None]
    return Users(places.images, [(str(vm.name), None, vm_to_native(vm)) for vm in vms])
