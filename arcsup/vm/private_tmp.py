"""A /tmp and a /var/tmp of their own for a VM's programs, where the daemon is root.

Each program gets a mount namespace with a small tmpfs there, while it waits at its gate. All else
is the host's: what is mounted later arrives (propagation), nodes appear in the one /dev, and what
was passed by descriptor is open already. Sources: unshare(1), mount_namespaces(7), tmpfs(5).
"""

import logging
import os
from collections.abc import Iterable
from pathlib import Path

from arcsup.errors import ArcsupError
from arcsup.model import Argv, Vm
from arcsup.places import Places
from arcsup.vm.programs import last_words, run_program

logger = logging.getLogger(__name__)

FOLDERS = (Path("/tmp"), Path("/var/tmp"))  # noqa: S108

SIZE = "256m"
"""What fits into it; it is the group's memory. `-snapshot` in qemu.args has no more than that."""

NAMESPACE: Argv = ("unshare", "--mount", "--propagation=slave", "--")
"""Becomes the program that follows: its pid stays."""

MOUNT = (
    f"mount -n -t tmpfs -o mode=1777,nosuid,nodev,size={SIZE} tmpfs {FOLDERS[0]}"
    f" && mount -n --bind {FOLDERS[0]} {FOLDERS[1]}"
)
"""What the shell at the gate does in there."""


async def choose_private_tmp(places: Places, image_folders: Iterable[Path]) -> bool:
    """Return whether a daemon's VMs can have a /tmp of their own; says so once where not."""
    if not places.system:
        return False
    obstacle = await find_obstacle(places, image_folders)
    if obstacle:
        logger.warning("VMs share the host's /tmp: %s", obstacle)
    return not obstacle


async def find_obstacle(places: Places, image_folders: Iterable[Path]) -> str:
    """Return why no VM of a daemon can have a /tmp of its own, "" when they can."""
    for folder in (places.state, places.run, places.log, *image_folders):
        if is_below_tmp(folder):
            return f"{folder} is there, and QEMU must reach it"
    try:
        tried = await run_program((*NAMESPACE, "/bin/sh", "-c", MOUNT), seconds=5)
    except ArcsupError as error:
        return error.message
    return last_words(tried.stderr) if tried.returncode != 0 else ""


def is_below_tmp(path: Path) -> bool:
    """Tell whether a path leads to something below a folder that is hidden."""
    real = Path(os.path.realpath(path))
    return any(real.is_relative_to(os.path.realpath(folder)) for folder in FOLDERS)


def needs_host_tmp(vm: Vm, files: Iterable[Path]) -> bool:
    """Tell whether a VM names something below the host's /tmp or /var/tmp.

    What ``qemu.args`` name may be sockets that others connect to.
    """
    words = (*vm.qemu.args, vm.qemu.binary or "", *(share.path for share in vm.shares))
    return any(f"{folder}/" in word for word in words for folder in FOLDERS) or any(
        map(is_below_tmp, files)
    )
