"""Whether what a VM writes to its ephemeral disks can be kept: told when it is asked for."""

from arcsup.errors import Refused
from arcsup.fleet import Fleet
from arcsup.vm.ephemeral import check_savable
from arcsup.vm.managed import ManagedVm


async def check_saving(fleet: Fleet, vm: ManagedVm) -> None:
    """Raise Refused when a VM's ephemeral disks cannot become the content of their images."""
    if vm.running is None:
        raise Refused(f"{vm.name} is not running: nothing was written", "leave --save away")
    await check_savable(vm.running, fleet.workshop.places)
    images = fleet.workshop.places.images
    resolve = fleet.real_paths.resolve
    ours = {resolve(images / disk.path) for disk in vm.running.disks if disk.ephemeral}
    for other in fleet.vms.values():
        # A base is read whenever its VM runs again, a disk only while it runs.
        uses = [disk.base for disk in other.vm.disks if disk.base is not None]
        uses += [disk.path for disk in (other.running.disks if other.running else ())]
        shared = [path for path in uses if resolve(images / path) in ours]
        if other is not vm and shared:
            raise Refused(
                f"VM {other.name} stands on {shared[0]} too, which would change under it",
                f"arcsup stop {other.name}, or stop {vm.name} without --save",
            )
