"""What `start` shows by itself: the screens of VMs whose LibVF.IO files say ``startintro``."""

import os
import subprocess
import sys
from pathlib import Path

from arcsup.cli.operate import read_vm_file
from arcsup.cli.session import Session, tell_error
from arcsup.cli.view import find_viewers
from arcsup.control.shapes import StatusJson
from arcsup.errors import ArcsupError


def wants_view(file: Path) -> bool:
    """Tell whether a file is LibVF.IO's and has its viewer started with the VM."""
    source = read_vm_file(file)
    if "startintro" not in source:
        return False
    # Only now what reads files: it takes longer to import than all else that `start` does.
    from arcsup.spec.libvfio import is_libvfio
    from arcsup.spec.libvfio_keys import LIBVFIO
    from arcsup.spec.libvfio_tree import Places, flatten_gpus
    from arcsup.spec.nodes import compose

    root = compose(source)
    if not is_libvfio(root):
        return False
    config, _ = LIBVFIO.read_all(Places(flatten_gpus(root)).root, "", {})
    return config is not None and config.startintro


def start_view(session: Session, vm: StatusJson) -> None:
    """Start `arcsup view` for a VM in this session, and do not wait for it.

    The VM runs with or without it: what prevents it is told and is no failure of the start.
    """
    name = vm["name"]
    if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        tell_error(f"{name} is not shown: this session has no screen", f"arcsup view {name}")
        return
    try:
        find_viewers(vm)
    except ArcsupError as error:
        tell_error(f"{name} is not shown: {error.message}", error.hint)
        return
    run = ["--run", session.run] if session.run else []
    subprocess.Popen(
        [sys.executable, "-m", "arcsup", *run, "view", name],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
