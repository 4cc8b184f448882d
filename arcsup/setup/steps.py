"""A part of what setup is to do, and what several parts share."""

from collections.abc import Iterator
from pathlib import Path

from attrs import frozen

from arcsup.setup.actions import Action, Command, CreateDirectory, CreateFile
from arcsup.setup.host import Host

MADE_BY = "# Made by `arcsup setup`, taken back by `arcsup setup --undo`.\n"


@frozen
class SetupPlan:
    """What is to be done, in order, and what only the user can do.

    With ``reboot`` the rest is done by itself after the next boot.
    """

    actions: tuple[Action, ...] = ()
    notes: tuple[str, ...] = ()
    reboot: bool = False

    def __add__(self, other: "SetupPlan") -> "SetupPlan":
        return SetupPlan(
            self.actions + other.actions, self.notes + other.notes, self.reboot or other.reboot
        )


def create_directories(folder: Path, mode: int) -> Iterator[CreateDirectory]:
    """Yield the making of a directory and of those above it that are missing, topmost first."""
    missing = [parent for parent in folder.parents if not parent.exists()]
    for parent in reversed(missing):
        yield CreateDirectory(str(parent))
    if not folder.is_dir():
        yield CreateDirectory(str(folder), mode)


def create_file(
    host: Host, path: str, content: str, then: tuple[Command, ...] = ()
) -> tuple[Action, ...]:
    """Return what writes a drop-in of ours, nothing where there is one of that name."""
    file = host.path(path)
    if file.exists():
        return ()
    return (
        *create_directories(file.parent, 0o755),
        CreateFile(str(file), MADE_BY + content, then=then),
    )


def find_initramfs_refresh(host: Host) -> tuple[Command, ...]:
    """Return what builds the initial RAM disks anew: drivers are chosen in there already."""
    commands: tuple[Command, ...] = (
        ("update-initramfs", "-u", "-k", "all"),
        ("dracut", "--force", "--regenerate-all"),
        ("mkinitcpio", "--allpresets"),
    )
    found = [command for command in commands if host.find_program(command[0]) is not None]
    return tuple(found[:1])
