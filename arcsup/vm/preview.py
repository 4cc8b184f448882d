"""The command line that would be run for a VM file, for people to read and to paste."""

from pathlib import Path

import trio
from attrs import frozen

from arcsup.host.identity import machine_id
from arcsup.model import Argv, Vm
from arcsup.places import Places
from arcsup.plan.mode import NORMAL, Mode, in_mode
from arcsup.spec.native import load_vm
from arcsup.vm.commandline import build_command_line
from arcsup.vm.disks import creation_command, resolve_image
from arcsup.vm.ephemeral import overlay_command
from arcsup.vm.resources import Needs, find_needs
from arcsup.vm.sockets import Listener
from arcsup.vm.tpm import tpm_folder


@frozen
class Preview:
    """What would be run: ``argv`` is QEMU's own.

    ``prepare`` are commands that make what must be there first; ``helpers`` run beside QEMU, which
    connects to their ``sockets`` as it starts.
    """

    argv: Argv
    prepare: tuple[Argv, ...]
    helpers: tuple[Argv, ...]
    sockets: tuple[Path, ...]


def preview_command(text: str, file: Path, places: Places, mode: Mode = NORMAL) -> Preview:
    """Return what would be run in ``mode``, sockets by path where the daemon passes descriptors.

    Starts nothing and makes nothing but the cache of what this QEMU can do. Raises SpecError for
    a faulty file, Terminal for what this host does not have.
    """
    vm = in_mode(load_vm(text, file, str(machine_id(places.state))), mode)
    needs = trio.run(find_needs, vm, places, Listener)
    sockets = needs.resources.sockets
    return Preview(
        argv=tuple(build_command_line(needs.vm, needs.resources)),
        prepare=_prepare(vm, needs, places),
        helpers=tuple(helper.argv for helper in needs.helpers),
        sockets=tuple(it.path for it in (sockets.tpm, *sockets.shares) if it is not None),
    )


def _prepare(vm: Vm, needs: Needs, places: Places) -> tuple[Argv, ...]:
    folders = [places.run_of(vm.name), places.log_of(vm.name)]
    commands: list[Argv] = []
    if vm.tpm:
        folders.append(tpm_folder(places.state, vm.name))
    firmware, variables = needs.resources.firmware, needs.resources.firmware_vars
    if firmware is not None and not variables.exists():
        folders.append(variables.parent)
        commands.append(("cp", str(firmware.template), str(variables)))
    for index, disk in enumerate(vm.disks):
        path = resolve_image(disk.path, places.images)
        if not path.exists():
            folders.append(path.parent)
            what = f"disks[{index}]: {path}"
            commands.append(creation_command(disk, places.images, what)(str(path)))
        if disk.ephemeral:
            overlay = resolve_image(needs.vm.disks[index].path, places.images)
            folders.append(overlay.parent)
            commands.append(overlay_command(needs.vm.disks[index], disk, str(overlay)))
    return (("mkdir", "-p", "-m", "700", *map(str, folders)), *commands)
