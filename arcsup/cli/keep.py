"""Copying a VM file into the VM directory: `start --keep`."""

import os
import sys
from pathlib import Path

from arcsup.cli.import_ import write_whole
from arcsup.cli.session import Session
from arcsup.errors import NotPermitted, Refused
from arcsup.spec.imported import import_vm
from arcsup.spec.native import load_vm, read_vm


def find_place(session: Session, file: Path, source: str) -> Path:
    """Return where in the daemon's VM directory a file belongs; nothing else is there.

    The file's own path when it is there already. Raises SpecError, Refused, NotPermitted.
    """
    vms = Path(session.client.get("/v1/daemon")["places"]["vms"])
    if os.path.realpath(file.parent) == os.path.realpath(vms):
        return file
    place = vms / f"{load_vm(source, file, '').name}.yaml"
    if os.path.lexists(place):
        raise Refused(f"{place} is there already", "start it by its name, or remove it first")
    if not os.access(vms, os.W_OK):
        raise NotPermitted(f"{vms}: you may not write there", "run it as the daemon's user")
    return place


def keep_file(file: Path, source: str, place: Path) -> None:
    """Write the VM of a file at ``place``: as it is, or natively where its words would change.

    A LibVF.IO file may mean folders by its own place (~), which is another one there.
    """
    if file == place:
        return
    text = source
    if read_vm(source, place, "").vm != read_vm(source, file, "").vm:
        text = import_vm(source, file).text
    write_whole(place, text, force=False)
    print(f"{file}: kept as {place}", file=sys.stderr)
