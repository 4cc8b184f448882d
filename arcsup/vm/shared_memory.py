"""Memory that a guest shares with programs of the host: Looking Glass's frames, Scream's sound.

To the guest each piece is a PCI device (ivshmem-plain), to the host a file of /dev/shm or a device
of the kernel module kvmfr, from which a GPU can fetch frames without a copy.

Sources: Looking Glass B7's documentation, "IVSHMEM" and "Client usage"; its module/kvmfr.h for the
device; Scream's README, "Using IVSHMEM"; qemu-doc, "Inter-VM Shared Memory device".
"""

import fcntl
import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path

from attrs import frozen

from arcsup.errors import Terminal
from arcsup.host.accounts import Account
from arcsup.model import Argv, Audio, LookingGlass, MiB, Vm
from arcsup.vm.capabilities import Capabilities
from arcsup.vm.options import Slot, escape, pci_place
from arcsup.vm.viewer import Viewer

SCREAM_MIB = MiB(2)
"""What Scream's driver in the guest maps (Scream's README, "Using IVSHMEM")."""

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108
"""Where POSIX shared memory lives (shm_overview(7)) and viewers look for it."""

KVMFR_DMABUF_GETSIZE = ord("u") << 8 | 0x44
"""_IO('u', 0x44) of kvmfr.h: the size of the device in bytes."""


@frozen
class SharedMemory:
    """One piece. ``id`` is QEMU's name for it, ``place`` where it sits on the guest's PCI bus.

    ``is_device`` tells a kvmfr device, which was there before, from a file made for one run.
    """

    id: str
    path: Path
    size_mib: MiB
    place: str
    is_device: bool = False


@frozen
class KvmfrDevice:
    """A device of the module kvmfr."""

    path: Path
    size_mib: MiB


Take = Callable[[Path], bool]
"""Takes a kvmfr device for the VM at hand; False when another VM has it."""


def looking_glass_mib(request: LookingGlass) -> MiB:
    """Return the size of one monitor's frames: two of them and 10 MiB, up to a power of two.

    A PCI BAR's size is a power of two, and the host application writes one frame while the
    client shows the other. HDR frames may have 16 bits a channel.
    """
    bytes_per_pixel = 8 if request.hdr else 4
    frames = request.width * request.height * bytes_per_pixel * 2
    needed = -(-frames // 2**20) + 10
    return MiB(1 << (needed - 1).bit_length())


def find_kvmfr_devices(dev: Path = Path("/dev")) -> list[KvmfrDevice]:
    """Return the kvmfr devices that this user may use, the smallest first."""
    devices = []
    for path in sorted(dev.glob("kvmfr[0-9]*")):
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue  # Somebody else's; a file of /dev/shm serves as well.
        try:
            size = _read_kvmfr_size(descriptor)
        finally:
            os.close(descriptor)
        if size:
            devices.append(KvmfrDevice(path, size))
    return sorted(devices, key=lambda device: device.size_mib)


def _read_kvmfr_size(descriptor: int) -> MiB | None:
    """Return a device's size, None for a file that only has such a name."""
    try:
        return MiB(fcntl.ioctl(descriptor, KVMFR_DMABUF_GETSIZE) // 2**20)
    except OSError:
        return None


def find_shared_memory(
    vm: Vm, take: Take, *, folder: Path = SHARED_MEMORY, dev: Path = Path("/dev")
) -> tuple[SharedMemory, ...]:
    """Return what the VM shares with the host: a piece for each monitor, and one for Scream.

    The files' names are LibVF.IO's, so that its users' client commands go on working.
    """
    found = []
    if (request := vm.looking_glass) is not None:
        size = looking_glass_mib(request)
        free = [device for device in find_kvmfr_devices(dev) if device.size_mib >= size]
        for monitor in range(request.monitors):
            place = pci_place(Slot.LOOKING_GLASS, monitor, slots=1, what="monitors")
            name = f"looking-glass{monitor or ''}"
            device = next((device for device in free if take(device.path)), None)
            if device is None:
                path = folder / f"kvmfr-{vm.uuid}{f'-{monitor}' if monitor else ''}"
                found.append(SharedMemory(name, path, size, place))
            else:
                free.remove(device)
                found.append(SharedMemory(name, device.path, device.size_mib, place, True))
    if vm.audio is Audio.SCREAM:
        place = f"bus=pcie.0,addr={Slot.SCREAM:#x}"
        found.append(SharedMemory("scream", scream_memory(vm, folder), SCREAM_MIB, place))
    return tuple(found)


def scream_memory(vm: Vm, folder: Path = SHARED_MEMORY) -> Path:
    """Return the file that a VM's sound is in."""
    return folder / f"kvmsr-{vm.uuid}"


def hold_device(path: Path) -> int | None:
    """Return a descriptor that keeps a device for who inherits it; None when it is held.

    QEMU inherits it, so a device is a VM's exactly as long as its QEMU lives.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def create_shared_memory(
    pieces: tuple[SharedMemory, ...], viewer: Viewer | None, account: Account | None = None
) -> None:
    """Make the files anew (empty, their space set aside) and give them to the viewer.

    ``account`` is whom QEMU runs as, None for this process's user; nobody else may open them.
    QEMU would make them too, but takes one that somebody else put there, and refuses one whose
    size is that of another resolution. Without their space set aside, a full /dev/shm would end
    QEMU with SIGBUS when the guest writes.

    Raises:
        Terminal: somebody else's file is in the way, or there is no space.
    """
    for piece in pieces:
        if piece.is_device:
            continue
        try:
            descriptor = _create_anew(piece.path)
            try:
                os.posix_fallocate(descriptor, 0, piece.size_mib * 2**20)
                if account is not None:
                    # Two users, so one of them by the group.
                    os.fchown(descriptor, viewer.uid if viewer else account.uid, account.gid)
                    os.fchmod(descriptor, 0o660)
                elif viewer is not None:
                    os.fchown(descriptor, viewer.uid, viewer.gid)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise Terminal(
                f"{piece.path}: cannot be made ({piece.size_mib} MiB): {error.strerror}",
                hint="see who owns it, and how full the file system is",
            ) from error


def _create_anew(path: Path) -> int:
    """Make a file of ours in a folder where everybody may make some; return its descriptor.

    The name can be guessed, so anybody may have put anything there. Root moves aside what it
    cannot remove at once: what is made here afterwards is nobody else's to move, since the folder
    is sticky. Raises OSError.
    """
    flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC
    for _ in range(_TRIES):
        try:
            path.unlink(missing_ok=True)
        except IsADirectoryError:
            path.rename(path.with_name(f".{path.name}.{secrets.token_hex(8)}"))
        try:
            return os.open(path, flags, 0o600)
        except FileExistsError:
            continue  # Somebody was quicker.
    return os.open(path, flags, 0o600)


_TRIES = 100


def remove_shared_memory(vm: Vm, folder: Path = SHARED_MEMORY) -> tuple[str, ...]:
    """Remove the files of a VM that has ended; return what could not be. May be done twice.

    What is no regular file has been put there by somebody else, and is left.
    """
    failed = []
    for piece in find_shared_memory(vm, lambda _: False, folder=folder):
        try:
            if stat.S_ISREG(piece.path.lstat().st_mode):
                piece.path.unlink()
            else:
                failed.append(f"{piece.path}: it is no file, somebody else has put it there")
        except FileNotFoundError:
            continue
        except OSError as error:
            failed.append(f"{piece.path}: {error.strerror}")
    return tuple(failed)


def shared_memory_args(pieces: tuple[SharedMemory, ...], capabilities: Capabilities) -> Argv:
    """Return the devices by which the guest reaches the pieces."""
    argv: list[str] = []
    for piece in pieces:
        capabilities.require_device("ivshmem-plain")
        backend = f"id={piece.id}-memory,mem-path={escape(piece.path)},size={piece.size_mib}M"
        argv += [
            "-object", f"memory-backend-file,{backend},share=on",
            "-device", f"ivshmem-plain,id={piece.id},memdev={piece.id}-memory,{piece.place}",
        ]  # fmt: skip
    return tuple(argv)
