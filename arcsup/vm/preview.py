"""The command line that would be run for a VM file, for people to read and to paste."""

from pathlib import Path

import trio

from arcsup.host.identity import machine_id
from arcsup.places import Places
from arcsup.spec.native import load_vm
from arcsup.vm.commandline import build_command_line
from arcsup.vm.resources import find_needs
from arcsup.vm.sockets import Listener


def preview_command(text: str, file: Path, places: Places) -> list[str]:
    """Return QEMU's argv, sockets by path where the daemon would pass descriptors.

    Starts nothing and makes nothing but the cache of what this QEMU can do. Raises SpecError for
    a faulty file, Terminal for what this host does not have.
    """
    vm = load_vm(text, file, str(machine_id(places.state)))
    needs = trio.run(find_needs, vm, places, Listener)
    return list(build_command_line(needs.vm, needs.resources))
