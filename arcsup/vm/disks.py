"""Disk images: found, made when missing, never overwritten; and how a guest sees them.

Sources: qemu-img(1); qemu-doc, "Block device options".
"""

import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

import trio
from attrs import evolve, frozen

from arcsup.errors import Terminal
from arcsup.host.accounts import Account
from arcsup.model import Argv, Disk, DiskBus, DiskFormat, Vm
from arcsup.opening import open_named
from arcsup.vm.capabilities import Capabilities
from arcsup.vm.empty_image import make_empty_image
from arcsup.vm.image_files import create_folder_of, has_qcow2_magic, part_of, publish
from arcsup.vm.looking import look_at
from arcsup.vm.options import Slot, pci_place
from arcsup.vm.qcow2 import LONGEST_CHAIN, is_file_name, place_of, read_header
from arcsup.vm.qemu_img import find_virtual_size
from arcsup.vm.reach import Bounds, check_path, open_folder_of

GUEST_TOOLS = "guest-tools.iso"
"""The guest tools' image, in the images directory."""

SATA_PORTS = 6
"""The AHCI controller of q35's ICH9."""


@frozen
class Medium:
    """An image that is there (or will be): its whole path, and whether it is a block device.

    ``fdset`` is the set of descriptors by which QEMU has it, None where QEMU opens it by name.
    ``bases`` is all that it builds upon, from the top; None where its header is to say.
    """

    path: Path
    block_device: bool = False
    fdset: int | None = None
    bases: "tuple[Base, ...] | None" = None

    @property
    def protocol(self) -> dict[str, str]:
        """QEMU's lowest layer for it. "file" refuses block devices, "host_device" files."""
        driver = "host_device" if self.block_device else "file"
        return {"driver": driver, "filename": self.filename}

    @property
    def filename(self) -> str:
        """What QEMU opens."""
        return str(self.path) if self.fdset is None else f"/dev/fdset/{self.fdset}"


@frozen
class Base:
    """An image below another one, and the driver (QEMU's word for its format) that reads it."""

    medium: Medium
    driver: str


def resolve_image(path: str, images: Path) -> Path:
    """Return the whole path of an image; a relative one hangs off the images directory."""
    return images / path


def find_medium(path: str, images: Path) -> Medium:
    """Look at an image. One that is missing is taken for a file, as it will be made as one."""
    whole = resolve_image(path, images)
    try:
        return Medium(whole, stat.S_ISBLK(whole.stat().st_mode))
    except OSError:
        return Medium(whole)


def find_disk(disk: Disk, images: Path, *, base: str | None, base_format: str) -> Medium:
    """Look at the image of a disk and at all that it builds upon, following their headers.

    That is right where nobody but this process's user has anything to lose. ``base`` is what an
    image builds upon that is yet to be made, ``base_format`` its format, "" where it is to be
    found. Blocks.
    """
    medium = find_medium(disk.path, images)
    if disk.format is not DiskFormat.QCOW2:
        return evolve(medium, bases=())
    named = None if base is None else resolve_image(base, images)
    return evolve(medium, bases=_find_bases(medium.path, named, base_format))


def _find_bases(image: Path, named: Path | None, said: str) -> tuple[Base, ...] | None:
    """Return the layers below an image; None where only QEMU can find them."""
    found: list[Base] = []
    while len(found) < LONGEST_CHAIN:
        below, driver = named, said
        if named is None:
            try:
                with open_named(image, or_block_device=True) as stream:
                    header = read_header(str(image), stream)
            except FileNotFoundError:
                return None if found else ()
            except (OSError, Terminal):
                return None
            if header is None or header.base is None:
                return tuple(found)
            # JSON has no word for a name that is not UTF-8.
            if not (is_file_name(header.base) and header.base.isprintable()):
                return None
            below, driver = place_of(image, header.base), header.base_format
        if below is None or not (driver := driver or _probe(below)):
            return None
        found.append(Base(find_medium(str(below), below.parent), driver))
        if driver != DiskFormat.QCOW2.value:
            return tuple(found) if driver == DiskFormat.RAW.value else None
        image, named, said = below, None, ""
    return None


def _probe(image: Path) -> str:
    """Return qcow2 for what is that; "" leaves it to QEMU, which knows more formats."""
    try:
        with open_named(image, or_block_device=True) as stream:
            return DiskFormat.QCOW2.value if has_qcow2_magic(stream) else ""
    except OSError:
        return ""


def check_paths(vm: Vm, images: Path, bounds: Bounds) -> None:
    """Raise Terminal for a file that the VM may not name. Makes and opens nothing; blocks."""
    for index, disk in enumerate(vm.disks):
        written = not disk.readonly
        check_path(f"disks[{index}]", resolve_image(disk.path, images), bounds, written=written)
        if disk.base is not None:
            base = resolve_image(disk.base, images)
            check_path(f"disks[{index}].base", base, bounds, written=False)
    for index, path in enumerate(vm.cdroms):
        check_path(f"cdroms[{index}]", resolve_image(path, images), bounds, written=False)
    if vm.display.password_file is not None:
        password = resolve_image(vm.display.password_file, images)
        check_path("display.passwordFile", password, bounds, written=False)
    for index, share in enumerate(vm.shares):
        check_path(f"shares[{index}]", images / share.path, bounds, written=True)
    if vm.boot is not None:
        for what, file in (("kernel", vm.boot.kernel), ("initrd", vm.boot.initrd)):
            if file is not None:
                check_path(f"boot.{what}", resolve_image(file, images), bounds, written=False)


@frozen
class MadeImage:
    """An image that was made for a start, and that no guest has seen yet."""

    path: Path
    device: int
    inode: int


def take_back(made: Iterable[MadeImage]) -> None:
    """Remove images that were made for a start that was refused. Blocks.

    What has such a name by now and is another file stays. Raises OSError.
    """
    for image in made:
        with suppress(FileNotFoundError):
            status = image.path.lstat()
            if (status.st_dev, status.st_ino) == (image.device, image.inode):
                image.path.unlink()


async def create_missing_disks(
    vm: Vm, images: Path, bounds: Bounds | None = None, made: list[MadeImage] | None = None
) -> None:
    """Make every missing disk that has a size or a base, and check those that are there.

    ``bounds`` say where, None for anywhere that this process may. ``made`` gets what was made.

    Raises:
        Terminal: a disk is missing and nothing tells how to make it, has another format, cannot
            be opened, is out of bounds, or qemu-img refused (in its own words).
        Transient: qemu-img did not finish in time.
    """
    for index, disk in enumerate(vm.disks):
        path = resolve_image(disk.path, images)
        what = f"disks[{index}]: {path}"
        if not await look_at(str(path), _is_there, path, what):
            ours = await create_disk(disk, images, what, bounds)
            if ours and made is not None:
                status = await trio.to_thread.run_sync(path.lstat)
                made.append(MadeImage(path, status.st_dev, status.st_ino))
        await look_at(str(path), _check_image, path, disk, what)


def check_files(vm: Vm, images: Path) -> None:
    """Raise Terminal for a CD-ROM image or a direct boot file that cannot be read."""
    wanted = [(f"cdroms[{index}]", path, True) for index, path in enumerate(vm.cdroms)]
    if vm.boot is not None:
        wanted.append(("boot.kernel", vm.boot.kernel, False))
        if vm.boot.initrd is not None:
            wanted.append(("boot.initrd", vm.boot.initrd, False))
    for what, path, is_medium in wanted:
        whole = resolve_image(path, images)
        try:
            with open_named(whole, or_block_device=is_medium) as stream:
                stream.read(1)  # A drive can be opened without a disc in it.
        except OSError as error:
            raise Terminal(
                f"{what}: {whole}: {error.strerror}",
                hint="`arcsup guest-tools build` makes it"
                if whole.name == GUEST_TOOLS
                else f"put the file there; relative paths are relative to {images}",
            ) from error


def _is_there(path: Path, what: str) -> bool:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return False
    except OSError as error:
        raise Terminal(f"{what}: {error.strerror}", hint="correct the path") from error
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        raise Terminal(f"{what}: is no file and no block device", hint="correct the path")
    return True


def _check_image(path: Path, disk: Disk, what: str) -> None:
    try:
        with open_named(path, or_block_device=True) as image:
            is_qcow2 = has_qcow2_magic(image)
    except OSError as error:
        raise Terminal(f"{what}: {error.strerror}", hint="check its owner and its mode") from error
    # Not by opening it: udev takes a block device that was open for writing for a changed one.
    written = not (disk.readonly or disk.ephemeral)
    if written and not os.access(path, os.W_OK):
        raise Terminal(f"{what}: cannot be written", hint="check its owner, or say readonly: true")
    if is_qcow2 is not (disk.format is DiskFormat.QCOW2):
        found = "qcow2" if is_qcow2 else "no qcow2 image"
        other = "qcow2" if is_qcow2 else "raw"
        raise Terminal(
            f"{what}: is {found}, the file says format: {disk.format.value}",
            hint=f"say format: {other}, or move it away",
        )


def creation_command(disk: Disk, images: Path, what: str) -> Callable[[str], Argv]:
    """Return what makes of a path the command that creates a missing disk there.

    It opens nothing but that path: how large an overlay is was read from its base.
    Raises Terminal where nothing tells how to make it.
    """
    if disk.size_mib is None and disk.base is None:
        raise Terminal(
            f"{what}: does not exist", hint="add size: (or base:) to have it made, or put it there"
        )
    if disk.readonly and disk.base is None:
        raise Terminal(f"{what}: does not exist", hint="an empty read-only disk is of no use")
    options, below = ((), 0) if disk.base is None else _overlay_options(disk, images, what)
    size = f"{disk.size_mib}M" if disk.size_mib is not None else str(below)
    # qemu-img needs no quoting for a path, but a "x:" would be a protocol of its own.
    before = ("qemu-img", "create", "-q", "-f", disk.format.value, *options)
    return lambda path: (*before, path, size)


async def create_disk(disk: Disk, images: Path, what: str, bounds: Bounds | None = None) -> bool:
    """Make the image of a disk; tell whether we did, and not somebody else meanwhile.

    ``what`` begins what is said of it; ``bounds`` say where it may be, None for anywhere that
    this process may. Raises Terminal, Transient.
    """
    path = resolve_image(disk.path, images)
    command = creation_command(disk, images, what)
    account = None if bounds is None else bounds.account
    try:
        with ExitStack() as held:
            place = held.enter_context(_place_of(path, images, bounds))
            part = held.enter_context(part_of(place))
            await _write_empty(part, disk, command, what, account)
            return await trio.to_thread.run_sync(publish, part, place)
    except OSError as error:
        raise Terminal(
            f"{what}: cannot be made: {error.strerror}",
            hint="check its folder, or make the image with qemu-img create",
        ) from error


@contextmanager
def _place_of(path: Path, images: Path, bounds: Bounds | None) -> Iterator[Path]:
    """Yield where an image is made: ``path``, or the same by a folder that is held."""
    if bounds is not None:
        with open_folder_of("disks", path, bounds) as folder:
            yield folder / path.name
        return
    # Anybody else's folder must be there.
    if path.is_relative_to(images):
        create_folder_of(path)
    yield path


async def _write_empty(
    part: IO[bytes], disk: Disk, command: Callable[[str], Argv], what: str, account: Account | None
) -> None:
    """Write an empty image into ``part``. Raises Terminal, Transient, OSError."""
    if disk.format is DiskFormat.RAW:
        os.ftruncate(part.fileno(), (disk.size_mib or 0) * 2**20)
        return
    image = await make_empty_image(command, what, account)
    await trio.to_thread.run_sync(part.write, image)
    part.flush()


def _overlay_options(disk: Disk, images: Path, what: str) -> tuple[Argv, int]:
    """Return the options that name the base, and how many bytes a guest sees of it."""
    if disk.format is not DiskFormat.QCOW2:
        raise Terminal(f"{what}: only qcow2 can have a base", hint="say format: qcow2")
    base = resolve_image(disk.base or "", images)
    try:
        with open_named(base, or_block_device=True) as image:
            is_qcow2 = has_qcow2_magic(image)
    except OSError as error:
        raise Terminal(
            f"{what}: its base {base}: {error.strerror}", hint="put the base image there first"
        ) from error
    # The format is written down: QEMU must never guess it from what a guest wrote. -u: qemu-img
    # does not open the base, nor what that says that it builds upon.
    base_format = "qcow2" if is_qcow2 else "raw"
    size = find_virtual_size(base, base_format)
    return ("-u", "-b", str(base), "-F", base_format), size


# --- the command line ---------------------------------------------------------------------------


def disk_args(vm: Vm, media: tuple[Medium, ...], capabilities: Capabilities) -> Argv:
    """Return the options of all disks. ``media`` are those of ``vm.disks``, in order.

    Raises:
        Terminal: more disks than the bus has places.
    """
    buses = [disk.bus for disk in vm.disks]
    argv: list[str] = []
    if DiskBus.SCSI in buses:
        argv += ["-device", f"virtio-scsi-pci,id=scsi,bus=pcie.0,addr={Slot.SCSI:#x}"]
    on_pci, on_sata = 0, 0
    for index, (disk, medium) in enumerate(zip(vm.disks, media, strict=True)):
        name = f"disk{index}"
        argv += _disk_nodes(name, disk, medium)
        boot = f"id={name},drive={name},bootindex={index + 1}"
        if disk.bus is DiskBus.SCSI:
            argv += ["-device", f"scsi-hd,{boot},bus=scsi.0,scsi-id={index}"]
        elif disk.bus is DiskBus.SATA:
            argv += ["-device", f"ide-hd,{boot},bus=ide.{on_sata}"]
            on_sata += 1
        else:
            place = pci_place(Slot.DISKS, on_pci, slots=4, what="virtio and NVMe disks")
            argv += ["-device", f"{_pci_disk(disk, capabilities, index)},{boot},{place}"]
            on_pci += 1
    return tuple(argv)


def _disk_nodes(name: str, disk: Disk, medium: Medium) -> Iterator[str]:
    """Yield the options of a disk's nodes, those below it first.

    Every layer is named: QEMU asks no header what is below one (QAPI BlockdevRefOrNull; null is
    "nothing", and only JSON can say it).
    """
    below: dict[str, object] = {}
    bases = medium.bases
    if bases is not None and disk.format is DiskFormat.QCOW2:
        below = {"backing": f"{name}-base1" if bases else None}
        for level, base in reversed(list(enumerate(bases, 1))):
            node: dict[str, object] = {"driver": base.driver, "node-name": f"{name}-base{level}"}
            node |= {"read-only": True, "file": base.medium.protocol}
            if base.driver == DiskFormat.QCOW2.value:
                node["backing"] = f"{name}-base{level + 1}" if level < len(bases) else None
            yield from ("-blockdev", json.dumps(node))
    top: dict[str, object] = {"driver": disk.format.value, "node-name": name}
    top |= {"read-only": disk.readonly, "discard": "unmap", "file": medium.protocol}
    yield from ("-blockdev", json.dumps(top | below))


def _pci_disk(disk: Disk, capabilities: Capabilities, index: int) -> str:
    if disk.bus is DiskBus.VIRTIO:
        return "virtio-blk-pci"
    capabilities.require_device("nvme")
    # NVMe demands a serial number; guests tell disks apart by it.
    return f"nvme,serial=arcsup-disk{index}"


def cdrom_args(vm: Vm, media: tuple[Medium, ...]) -> Argv:
    """Return the CD-ROM drives: ``cd0`` … change their medium by these ids over QMP.

    They count down from the last SATA port, and disks up from the first: neither moves the other.
    They boot after the disks, so that an installed system starts instead of its installer.
    """
    drives = sum(disk.bus is DiskBus.SATA for disk in vm.disks) + len(media)
    if drives > SATA_PORTS:
        raise Terminal(
            f"{drives} SATA disks and CD-ROMs together", hint=f"there are {SATA_PORTS} ports"
        )
    argv: list[str] = []
    for index, medium in enumerate(media):
        node = {"driver": "raw", "node-name": f"cd{index}-medium", "read-only": True}
        place = f"bootindex={len(vm.disks) + index + 1},bus=ide.{SATA_PORTS - 1 - index}"
        argv += [
            "-blockdev", json.dumps(node | {"file": medium.protocol}),
            "-device", f"ide-cd,id=cd{index},drive=cd{index}-medium,{place}",
        ]  # fmt: skip
    return tuple(argv)
