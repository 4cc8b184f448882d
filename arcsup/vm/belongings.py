"""What of the host a VM's QEMU may reach while it runs, where it is not root.

It gets its images, its variables and its log as descriptors (``fdsets``): each is found and judged
once, what it builds upon too, and QEMU asks no header for it. What it opens by name, its devices,
its TPM's state, what it boots directly, becomes its user's (``loans``) after the record has said
so, and is taken back.
"""

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import trio
from attrs import evolve

from arcsup.errors import Terminal
from arcsup.host.accounts import Account
from arcsup.host.sysfs import Sysfs
from arcsup.host.trust import find_distrust
from arcsup.host.vfio_nodes import find_nodes
from arcsup.model import DiskFormat, Vm, VmName
from arcsup.places import Places
from arcsup.plan.usb import UsbDevice
from arcsup.vm.chains import Link
from arcsup.vm.commandline import CONSOLE_LOG, Sockets
from arcsup.vm.disks import Base, Medium, resolve_image
from arcsup.vm.fdsets import FIRST_SET, Handed, Role
from arcsup.vm.layers import Layer
from arcsup.vm.loans import (
    Access,
    Loan,
    Terms,
    WantedFile,
    find_layers,
    find_loans,
    lend,
    put_back,
)
from arcsup.vm.managed import ManagedVm, Workshop
from arcsup.vm.private_tmp import FOLDERS, needs_host_tmp
from arcsup.vm.record import Launch
from arcsup.vm.removal import remove_trees
from arcsup.vm.resources import Needs
from arcsup.vm.shares import check_share, find_reach
from arcsup.vm.sockets import Listener
from arcsup.vm.tpm import tpm_folder
from arcsup.vm.usb import find_usb


async def choose_account(vm: ManagedVm, workshop: Workshop, launch: Launch) -> Launch:
    """Return the launch with whom its programs run as; None is the daemon's own user.

    A user of its own is in the record before another VM chooses. Raises Terminal.
    """
    accounts = workshop.accounts
    if accounts is None:
        return launch
    if not accounts.per_vm:
        return evolve(launch, account=accounts.choose(vm.name, ()))
    async with workshop.records.choosing:
        others = (it.launch for it in workshop.records.known.values() if it.name != vm.name)
        taken = {other.account.uid for other in others if other and other.account}
        launch = evolve(launch, account=accounts.choose(vm.name, taken))
        await vm.save(workshop, launch=launch)
    return launch


async def create_qemu_folder(places: Places, name: VmName) -> None:
    """Make the folder in which QEMU binds and finds sockets anew, root's until it is given away.

    What a QEMU that is gone left there is not trusted: names of ours may be links by now.
    Raises Transient.
    """
    folder = places.qemu_run_of(name)
    folder.parent.mkdir(mode=0o711, exist_ok=True)
    folder.parent.chmod(0o711)
    await remove_trees(folder)
    folder.mkdir(mode=0o700)


def open_folders(places: Places, name: VmName, sockets: Sockets, account: Account) -> None:
    """Let QEMU's user pass, but not read, the folders that its files are in.

    The sockets of its monitors are in a folder that it has no way into; clients find the one of
    its display there by a link.
    """
    state = (places.state, places.images, places.state / "vars", places.state / "tpm")
    overlays = (places.overlays_of(name).parent, places.overlays_of(name))
    # In each of these, files are for one user alone.
    answers = (places.answers, *places.answers.glob(f"{name}-*"))
    logs = (places.log, places.log_of(name))
    for folder in (places.run, *state, *overlays, *answers, *logs):
        if folder.is_dir():
            status = folder.stat()
            if status.st_uid == 0 and not account.may(status, os.X_OK):
                folder.chmod(stat.S_IMODE(status.st_mode) | 0o001)
    link = places.run_of(name) / sockets.display.name
    link.unlink(missing_ok=True)
    link.symlink_to(sockets.display)
    for listener in (sockets.tpm, *sockets.shares):
        if listener is not None:
            os.chown(listener.path, account.uid, account.gid, follow_symlinks=False)
    os.chown(places.qemu_run_of(name), account.uid, account.gid, follow_symlinks=False)


def check_shares(vm: Vm, workshop: Workshop, servers: Sequence[Listener | None]) -> None:
    """Refuse a share that is not in a folder for images, or that others could exchange.

    Where it has a server (9p has none), that is root, behind a sandbox that ends at the folder.
    Then what a guest makes there may be in nobody's reach. Raises Terminal.
    """
    places = workshop.places
    allowed = (places.images, *workshop.image_folders)
    # The way of QEMU's user to its images, see ``open_folders``.
    opened = frozenset({places.state.resolve(), places.images.resolve()})
    for index, (share, server) in enumerate(zip(vm.shares, servers, strict=True)):
        source = check_share(share, places.images).resolve()
        if not any(source.is_relative_to(folder.resolve()) for folder in allowed):
            raise Terminal(
                f"shares[{index}]: {source} is outside of the folders for images",
                f"move it to {allowed[0]}, or name its folder in imageDirs of arcsup.yaml",
            )
        if places.images.resolve().is_relative_to(source):
            raise Terminal(
                f"shares[{index}]: {source} holds the images of all VMs",
                "share a folder that holds none",
            )
        if why := find_distrust(source.parent):
            raise Terminal(
                f"shares[{index}]: {why}", "its server is root: share a folder inside one of root's"
            )
        is_written = server is not None and not share.readonly
        if is_written and not workshop.no_privileged_files and (why := find_reach(source, opened)):
            raise Terminal(
                f"shares[{index}]: {why}",
                f"chown root {source} && chmod go-x {source}, or share it readonly, or mount it "
                f"nosuid: mount --bind {source} {source} && mount -o remount,bind,nosuid {source}",
            )


async def lend_belongings(
    vm: ManagedVm, workshop: Workshop, needs: Needs, account: Account
) -> bool:
    """Give a VM's user what its QEMU opens by name; return whether it can have its own /tmp.

    Raises Terminal for what it may not have, DeviceTrouble for a USB device that it cannot have
    now.
    """
    places = workshop.places
    # Once more: what came or was put to use since the start began is not given either.
    usb = await find_usb(needs.vm, workshop)
    wanted = [*_find_named_files(needs, places), *_find_own_files(vm, places, needs, usb)]
    images = [it.path for it in _find_images(vm.running or vm.vm, needs, places)]
    files = [*images, *(it.path for it in wanted)]
    private_tmp = workshop.private_tmp and not needs_host_tmp(needs.vm, files)
    await lend_files(vm, workshop, wanted, account, private_tmp=private_tmp)
    return private_tmp


async def hand_over_files(
    vm: ManagedVm, workshop: Workshop, needs: Needs, account: Account, opened: ExitStack
) -> Needs:
    """Open what QEMU gets as descriptors, closed by ``opened``; return the needs with them.

    Raises Terminal for what the VM may not have.
    """
    places = workshop.places
    images = list(_find_images(vm.running or vm.vm, needs, places))
    chains = await open_images(images, workshop, account, opened)
    own = await trio.to_thread.run_sync(_open_own_files, needs, opened)
    return _with_descriptors(needs, chains, own)


Chain = list[tuple[Layer, int]]
"""An image and all that it builds upon, from the top, each with a descriptor to be handed over."""


async def open_images(
    images: Sequence[WantedFile], workshop: Workshop, account: Account, opened: ExitStack
) -> list[Chain]:
    """Open images for a QEMU that runs as ``account``; what they build upon is recorded first.

    ``opened`` closes the descriptors. Raises Terminal for what a VM may not have.
    """
    # Nobody judges by what is known of an image while it becomes known: two VMs may be the first.
    async with workshop.records.lending:
        terms = await reading_terms(workshop, account)
        look = partial(_open_chains, images, terms, opened)
        chains, links = await trio.to_thread.run_sync(look)
        await trio.to_thread.run_sync(workshop.records.chains.save, links)
    return chains


def _open_chains(
    images: Iterable[WantedFile], terms: Terms, opened: ExitStack
) -> tuple[list[Chain], tuple[Link, ...]]:
    """Open all layers, a top one for writing where the VM may. Blocks. Raises Terminal."""
    chains: list[Chain] = []
    links: list[Link] = []
    for image in images:
        layers, new = find_layers(image, terms, opened)
        links += new
        chain: Chain = []
        for level, layer in enumerate(layers):
            written = level == 0 and image.access is Access.OWN
            flags = (os.O_RDWR if written else os.O_RDONLY) | os.O_CLOEXEC
            try:
                # What was found, whatever has its name by now.
                descriptor = os.open(layer.by_descriptor, flags)
            except OSError as error:
                raise Terminal(f"{image.what}: {layer.path}: {error.strerror}") from error
            opened.callback(os.close, descriptor)
            chain.append((layer, descriptor))
        chains.append(chain)
    return chains, tuple(links)


def _open_own_files(needs: Needs, opened: ExitStack) -> list[tuple[Path, int]]:
    """Open the files that arcsup made for a VM: root's, and nobody else's. OSError, Terminal."""
    resources = needs.resources
    wanted = [(resources.log / CONSOLE_LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)]
    if resources.firmware is not None:
        wanted.append((resources.firmware_vars, os.O_RDWR, 0o600))
    found = []
    for path, flags, mode in wanted:
        flags |= os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            descriptor = os.open(path, flags, mode)
            opened.callback(os.close, descriptor)
            status = os.fstat(descriptor)
        except OSError as error:
            raise Terminal(f"{path}: {error.strerror}", "move it away") from error
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
            raise Terminal(f"{path}: is no file of its own alone", "move it away")
        # An earlier version has lent it, and may have been ended before it was given back.
        os.fchown(descriptor, 0, 0)
        os.fchmod(descriptor, mode)
        found.append((path, descriptor))
    return found


def _with_descriptors(
    needs: Needs,
    chains: Iterable[Chain],
    own: Iterable[tuple[Path, int]],
) -> Needs:
    handed: list[Handed] = []

    def hand(path: Path, descriptor: int, role: Role) -> int:
        handed.append(Handed(path, FIRST_SET + len(handed), descriptor, role))
        return handed[-1].fdset

    media = []
    for chain in chains:
        layers = [
            Medium(
                layer.path,
                stat.S_ISBLK(layer.status.st_mode),
                hand(layer.path, descriptor, Role.IMAGE),
            )
            for layer, descriptor in chain
        ]
        drivers = ["raw" if layer.raw else "qcow2" for layer, _ in chain]
        bases = tuple(Base(*it) for it in zip(layers[1:], drivers[1:], strict=True))
        media.append(evolve(layers[0], bases=bases))
    for path, descriptor in own:
        hand(path, descriptor, Role.OWN_FILE)
    count = len(needs.vm.disks)
    resources = evolve(
        needs.resources,
        disks=tuple(media[:count]),
        cdroms=tuple(media[count:]),
        handed=tuple(handed),
    )
    return evolve(needs, resources=resources)


async def lend_files(
    vm: ManagedVm,
    workshop: Workshop,
    wanted: Iterable[WantedFile],
    account: Account,
    *,
    private_tmp: bool,
) -> None:
    """Lend files to a VM, the record first. Raises Terminal."""
    if workshop.accounts is None:
        return
    hidden = FOLDERS if private_tmp else ()
    chains = workshop.records.chains
    async with workshop.records.lending:
        terms = evolve(await reading_terms(workshop, account), hidden=hidden)
        with ExitStack() as opened:
            look = partial(find_loans, wanted, terms, _loans_known(workshop), opened)
            loans, links = await trio.to_thread.run_sync(look)
            await trio.to_thread.run_sync(chains.save, links)
            new = {loan.identity: loan for loan, _ in loans}
            kept = [loan for loan in vm.record.loans if loan.identity not in new]
            if new:
                await vm.save(workshop, loans=(*kept, *new.values()))
                await lend(loans)


async def reading_terms(workshop: Workshop, account: Account) -> Terms:
    """Return how files are lent to an account that sees all folders. Raises Terminal."""
    # A QEMU that runs since before arcsup.yaml named another user is in another group.
    shared = account.gid if workshop.accounts is None else workshop.accounts.shared.gid
    reading = shared if shared in (account.gid, *account.groups) else account.gid
    allowed = (workshop.places.images, *workshop.image_folders)
    links = await trio.to_thread.run_sync(workshop.records.chains.load)
    return Terms(account, reading, allowed, links=links)


async def take_back_belongings(vm: ManagedVm, workshop: Workshop) -> None:
    """Give everything back to its owner. What cannot be is told, and stays in the record."""
    if not vm.record.loans:
        return
    async with workshop.records.lending:
        others = _loans_known(workshop, without=vm.name)
        failed, left = await trio.to_thread.run_sync(put_back, vm.record.loans, others)
        for why in failed.values():
            workshop.tell(vm.name, "not-put-back", f"its owner could not be put back: {why}")
        for why in left:
            workshop.tell(vm.name, "not-put-back", why)
        await vm.save(workshop, loans=tuple(failed))


def _loans_known(workshop: Workshop, without: VmName | None = None) -> dict[tuple[int, int], Loan]:
    records = [it for it in workshop.records.known.values() if it.name != without]
    return {loan.identity: loan for record in records for loan in record.loans}


def _find_images(asked: Vm, needs: Needs, places: Places) -> Iterator[WantedFile]:
    """Yield the images of a VM. ``asked`` is the VM as its file has it, without overlays."""
    vm, resources = needs.vm, needs.resources
    for index, (disk, built) in enumerate(zip(asked.disks, vm.disks, strict=True)):
        medium = resources.disks[index]
        what, is_qcow2 = f"disks[{index}]", built.format is DiskFormat.QCOW2
        own = () if disk.base is None else (resolve_image(disk.base, resources.images),)
        if disk.ephemeral:
            bases = (resolve_image(disk.path, resources.images), *own)
            yield WantedFile(
                what,
                medium.path,
                Access.OWN,
                is_qcow2=True,
                bases=bases,
                raw_base=disk.format is DiskFormat.RAW,
                thrown_away=True,
            )
        elif disk.readonly:
            yield _read_only(what, medium.path, places, is_qcow2=is_qcow2, bases=own)
        else:
            yield WantedFile(what, medium.path, Access.OWN, is_qcow2=is_qcow2, bases=own)
    for index, medium in enumerate(resources.cdroms):
        yield _read_only(f"cdroms[{index}]", medium.path, places)


def _find_named_files(needs: Needs, places: Places) -> Iterator[WantedFile]:
    """Yield what of a VM's file QEMU opens by name."""
    vm, images = needs.vm, needs.resources.images
    if vm.display.password_file is not None:
        file = resolve_image(vm.display.password_file, images)
        yield WantedFile("display.passwordFile", file, Access.OWN)
    if vm.boot is not None:
        for what, name in (("kernel", vm.boot.kernel), ("initrd", vm.boot.initrd)):
            if name is None:
                continue
            path = resolve_image(name, images)
            # Not by the group, as other files are: it may hold a password.
            own = path.is_relative_to(places.answers)
            access = Access.OWN if own else Access.READ
            yield WantedFile(f"boot.{what}", path, access, own_file=own)


def _read_only(
    what: str,
    path: Path,
    places: Places,
    *,
    is_qcow2: bool = False,
    bases: tuple[Path, ...] = (),
) -> WantedFile:
    if path.is_relative_to(places.answers):
        return WantedFile(what, path, Access.READ, own_file=True)
    return WantedFile(what, path, Access.READ, is_qcow2=is_qcow2, bases=bases)


def _find_own_files(
    vm: ManagedVm, places: Places, needs: Needs, usb: Iterable[tuple[int, UsbDevice]]
) -> Iterator[WantedFile]:
    def own(what: str, path: Path) -> WantedFile:
        return WantedFile(what, path, Access.OWN, own_file=True)

    if needs.vm.tpm:
        yield own("the TPM's state", tpm_folder(places.state, vm.name))
    for piece in needs.resources.shared_memory:
        if piece.is_device:
            yield WantedFile(piece.id, piece.path, Access.USE, own_file=True)
    sysfs = Sysfs(places.sysfs)
    for owned in vm.record.slices:
        for node in find_nodes(owned, sysfs, iommufd=needs.resources.iommufd is not None):
            yield own(owned.asked_by, node)
    for index, device in usb:
        yield own(f"usb[{index}]", Path(device.node))
