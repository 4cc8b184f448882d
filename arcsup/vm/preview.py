"""The command line that would be run for a VM file, for people to read and to paste."""

from pathlib import Path

from attrs import frozen

from arcsup.host.owned import OwnedSlice
from arcsup.host.sysfs import Sysfs
from arcsup.model import Argv, Vm
from arcsup.places import Places
from arcsup.vm.commandline import build_command_line
from arcsup.vm.disks import creation_command, resolve_image
from arcsup.vm.ephemeral import overlay_command
from arcsup.vm.iommufd import Iommufd, can_use_iommufd
from arcsup.vm.resources import Needs, find_needs
from arcsup.vm.slices import find_cdev_slices, slice_devices
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


async def preview_command(
    vm: Vm,
    places: Places,
    slices: tuple[OwnedSlice, ...] = (),
    gpu_node: int | None = None,
    *,
    by_iommufd: bool = True,
) -> Preview:
    """Return what would be run, sockets by path where the daemon passes descriptors.

    ``slices`` are those that the VM would get, ``gpu_node`` the NUMA node of the first;
    ``by_iommufd`` False has them go by IOMMU groups in any case. Starts nothing and makes nothing
    but the cache of what this QEMU can do. Raises Terminal for what this host does not have.
    """
    iommufd = Iommufd() if by_iommufd and await can_use_iommufd(vm, places) else None
    cdevs = find_cdev_slices(slices, Sysfs(places.sysfs)) if iommufd else ()
    devices = slice_devices(vm, slices, by_iommufd=cdevs)
    needs = await find_needs(
        vm, places, Listener, slices=devices, iommufd=iommufd, gpu_node=gpu_node
    )
    sockets = needs.resources.sockets
    return Preview(
        argv=tuple(build_command_line(needs.vm, needs.resources)),
        prepare=_prepare(vm, needs, places),
        helpers=tuple(helper.argv for helper in needs.helpers),
        sockets=tuple(it.path for it in (sockets.tpm, *sockets.shares) if it is not None),
    )


def _prepare(vm: Vm, needs: Needs, places: Places) -> tuple[Argv, ...]:
    folders = [places.run_of(vm.name), places.log_of(vm.name)]
    if places.qemu_run_of(vm.name) not in folders:
        folders.append(places.qemu_run_of(vm.name))
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
