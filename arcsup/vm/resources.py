"""What a VM needs on this host beside its own file: found, decided, made where it is missing."""

import os
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path

from attrs import evolve, frozen

from arcsup.host.accounts import Account
from arcsup.host.bars import observe_largest
from arcsup.host.cpu_flags import observe_address_bits, observe_cpu_flags
from arcsup.host.identity import boot_id
from arcsup.host.numa import observe_numa
from arcsup.host.sysfs import Sysfs
from arcsup.model import DisplayType, Firmware, GpuKind, Vm
from arcsup.places import Places
from arcsup.vm.accel import find_accel
from arcsup.vm.capabilities import find_qemu, probe_capabilities
from arcsup.vm.commandline import Resources, SliceDevice, Sockets
from arcsup.vm.disks import (
    GUEST_TOOLS,
    MadeImage,
    Medium,
    check_files,
    check_paths,
    create_missing_disks,
    find_disk,
    find_medium,
    resolve_image,
)
from arcsup.vm.displays import DISPLAY_SOCKET, check_password, find_render_node, wants_gl
from arcsup.vm.ephemeral import create_overlays, with_overlays
from arcsup.vm.firmware import find_firmware
from arcsup.vm.iommufd import Iommufd
from arcsup.vm.looking import look_at
from arcsup.vm.networks import check_networks
from arcsup.vm.pinning import choose_numa_node
from arcsup.vm.ports import Room, find_address_bits
from arcsup.vm.reach import Bounds
from arcsup.vm.shared_memory import Take, find_shared_memory
from arcsup.vm.shares import Virtiofsd, check_share, find_virtiofsd, virtiofs_helper
from arcsup.vm.sockets import Listener
from arcsup.vm.tpm import (
    TPM_LOG,
    HelperCommand,
    create_tpm_folder,
    find_swtpm,
    tpm_folder,
    tpm_helper,
)
from arcsup.vm.variables import vars_file

OpenSocket = Callable[[Path], Listener]
"""Either makes a listening socket, or only names it for a command line that is printed."""


@frozen
class Needs:
    """A VM as it is built (guest tools are one more CD-ROM), its resources, and its helpers."""

    vm: Vm
    resources: Resources
    helpers: tuple[HelperCommand, ...]


async def create_files(
    vm: Vm, places: Places, bounds: Bounds | None = None, made: list[MadeImage] | None = None
) -> None:
    """Make the VM's disks and TPM folder where they are missing.

    ``bounds`` say what the VM may name, None for all that this process may: nothing is made
    before all of it is looked at. ``made`` gets the images that were made. Raises Terminal for
    what is missing and cannot be made, Transient for what took too long.
    """
    built = with_guest_tools(vm)
    if bounds is not None:
        await look_at(f"what {vm.name} names", check_paths, built, places.images, bounds)
    await create_missing_disks(built, places.images, bounds, made)
    await create_overlays(vm, places, None if bounds is None else bounds.account)
    await look_at(f"what {vm.name} reads", check_files, built, places.images)
    check_password(vm.display, places.images)
    if vm.tpm:
        create_tpm_folder(tpm_folder(places.state, vm.name))


async def find_needs(
    vm: Vm,
    places: Places,
    open_socket: OpenSocket,
    *,
    slices: tuple[SliceDevice, ...] = (),
    iommufd: Iommufd | None = None,
    gpu_node: int | None = None,
    take: Take = lambda _: True,
    account: Account | None = None,
) -> Needs:
    """Find everything that the VM's command line names. Makes nothing but the sockets.

    ``account`` is whom QEMU is to run as, None for this process's user.
    Raises Terminal for what this host does not have.
    """
    built = with_overlays(with_guest_tools(vm), places)
    qemu = find_qemu(vm)
    capabilities = await probe_capabilities(qemu, places.state / "cache")
    accel = await find_accel(vm.accel, qemu, places.run, str(boot_id()), account=account)
    check_networks(vm, places.sysfs)
    user = account or Account.current()
    # It alone stays root where the daemon is: files in a share keep their owners.
    virtiofsd = await find_virtiofsd(root=os.geteuid() == 0) if vm.shares else None
    sockets = _open_sockets(vm, places, virtiofsd, open_socket)
    resources = Resources(
        qemu=qemu,
        capabilities=capabilities,
        accel=accel,
        sockets=sockets,
        log=places.log_of(vm.name),
        images=places.images,
        root=user.uid == 0,
        disks=tuple([it async for it in _find_disks(vm, built, places, account)]),
        cdroms=tuple(find_medium(path, places.images) for path in built.cdroms),
        firmware=find_firmware(vm.firmware),
        firmware_vars=(
            Path() if vm.firmware is Firmware.BIOS else vars_file(places.state, vm.name)
        ),
        numa_node=choose_numa_node(vm, observe_numa(places.sysfs), gpu_node=gpu_node),
        render_node=find_render_node(user) if _draws_with_gl(vm) else None,
        slices=slices,
        iommufd=iommufd,
        cpu_flags=observe_cpu_flags(),
        room=Room(
            find_address_bits(vm.cpus.model, accel, observe_address_bits()),
            await look_at("the BARs of GPUs", observe_largest, Sysfs(places.sysfs)),
        ),
        shared_memory=find_shared_memory(vm, take),
        vhost=accel == "kvm" and user.may_open(Path("/dev/vhost-net")),
    )
    return Needs(built, resources, _find_helpers(vm, places, sockets, virtiofsd))


async def _find_disks(
    vm: Vm, built: Vm, places: Places, account: Account | None
) -> AsyncIterator[Medium]:
    """Yield where the disks of a VM are; what they build upon is another question for ``account``.

    A daemon that is root follows no header by name.
    """
    for disk, overlay in zip(vm.disks, built.disks, strict=True):
        if account is not None:
            yield find_medium(overlay.path, places.images)
            continue
        path = resolve_image(overlay.path, places.images)
        # An overlay of an earlier run gives way to a new one.
        new = disk.ephemeral or not path.exists()
        find = partial(
            find_disk,
            overlay,
            places.images,
            base=overlay.base if new else None,
            base_format=disk.format.value if disk.ephemeral else "",
        )
        yield await look_at(str(path), find)


def with_guest_tools(vm: Vm) -> Vm:
    """Return the VM with the guest tools' image in a drive of its own, if it asks for them."""
    return evolve(vm, cdroms=(*vm.cdroms, GUEST_TOOLS)) if vm.guest_tools else vm


def _draws_with_gl(vm: Vm) -> bool:
    virtio = any(request.kind is GpuKind.VIRTIO and request.gl for request in vm.gpus)
    return virtio or wants_gl(vm) or vm.display.type is DisplayType.EGL_HEADLESS


def _open_sockets(
    vm: Vm, places: Places, virtiofsd: Virtiofsd | None, open_socket: OpenSocket
) -> Sockets:
    run, qemu_run = places.run_of(vm.name), places.qemu_run_of(vm.name)
    return Sockets(
        qmp=open_socket(run / "qmp.sock"),
        monitor=open_socket(run / "monitor.sock"),
        console=open_socket(run / "console.sock"),
        agent=open_socket(run / "agent.sock"),
        display=qemu_run / DISPLAY_SOCKET,
        tpm=open_socket(qemu_run / "tpm.sock") if vm.tpm else None,
        shares=tuple(
            open_socket(qemu_run / f"share{index}.sock")
            if virtiofsd is not None and virtiofsd.serves(share)
            else None
            for index, share in enumerate(vm.shares)
        ),
    )


def _find_helpers(
    vm: Vm, places: Places, sockets: Sockets, virtiofsd: Virtiofsd | None
) -> tuple[HelperCommand, ...]:
    helpers = []
    if sockets.tpm is not None:
        log = places.log_of(vm.name) / TPM_LOG
        folder = tpm_folder(places.state, vm.name)
        helpers.append(tpm_helper(find_swtpm(), folder, sockets.tpm, log))
    for index, (share, listener) in enumerate(zip(vm.shares, sockets.shares, strict=True)):
        source = check_share(share, places.images)
        if virtiofsd is not None and listener is not None:
            helpers.append(virtiofs_helper(virtiofsd, share, source, listener, index))
    return tuple(helpers)
