"""How one run of a VM differs from what its file asks for: `create`, `start --preinstall` …

A mode is part of what the operator asked for last. It holds for one run, with its crash restarts
and over the daemon's; a VM that was stopped starts as its file says. What each does is what
LibVF.IO's ``arcd`` did (its README, "Setting up a VM"), whose guides people follow.
"""

from enum import StrEnum
from functools import lru_cache

from attrs import evolve, frozen

from arcsup.model import (
    Audio,
    Boot,
    Disk,
    DiskFormat,
    Display,
    DisplayType,
    MiB,
    RestartPolicy,
    Vm,
)

FIRST_VNC_PORT = 5900
"""QEMU's VNC counts displays from here; it cannot listen on a lower port."""


class Purpose(StrEnum):
    """What a run is for. NORMAL is full performance: everything that the file asks for."""

    NORMAL = "normal"
    CREATE = "create"
    PREINSTALL = "preinstall"
    SAFE = "safe-mode"


@frozen
class Mode:
    """One run's mode. What is below ``disable_gpu`` belongs to CREATE.

    ``media`` are the images in its drives, the installer's first (disks beside a ``base``);
    ``disk_mib`` is the size of the first disk, which is made, on top of ``base`` if that is given.
    ``boot`` starts the installer's kernel directly.
    """

    purpose: Purpose = Purpose.NORMAL
    disable_gpu: bool = False
    media: tuple[str, ...] = ()
    disk_mib: MiB | None = None
    base: str | None = None
    boot: Boot | None = None

    @property
    def words(self) -> tuple[str, ...]:
        """What makes it differ from a normal run, as the command line has it."""
        purpose = () if self.purpose is Purpose.NORMAL else (self.purpose.value,)
        return (*purpose, "disable-gpu") if self.disable_gpu else purpose


NORMAL = Mode()


@lru_cache(maxsize=1024)
def in_mode(vm: Vm, mode: Mode) -> Vm:
    """Return what is to run in ``mode``; in the normal one ``vm`` itself."""
    if mode.disable_gpu or mode.purpose is Purpose.CREATE:
        vm = _without_gpus(vm)
    match mode.purpose:
        case Purpose.NORMAL:
            return vm
        case Purpose.CREATE:
            return _with_lasting_disks(_for_installer(vm, mode))
        case Purpose.PREINSTALL:
            return _with_lasting_disks(evolve(_with_screen(vm), guest_tools=True))
        case Purpose.SAFE:
            return _with_screen(vm)


def _with_lasting_disks(vm: Vm) -> Vm:
    """Keep all that is written: what is being installed is to be there in every later run."""
    return evolve(vm, disks=tuple(evolve(disk, ephemeral=False) for disk in vm.disks))


def _without_gpus(vm: Vm) -> Vm:
    """Drop the GPUs, and what further arguments set of them: QEMU refuses to set what is away."""
    args: list[str] = []
    words = iter(vm.qemu.args)
    for word in words:
        value = next(words, None) if word in {"-set", "--set"} else None
        if value is not None and value.startswith("device.gpu"):
            continue
        args += [word] if value is None else [word, value]
    return evolve(vm, gpus=(), qemu=evolve(vm.qemu, args=tuple(args)))


def _with_screen(vm: Vm) -> Vm:
    """Give the guest a plain screen that needs no driver and no agent in it.

    That is VNC, which every QEMU has; SPICE's redirections and sound are left out.
    """
    display = vm.display
    if display.type not in {DisplayType.VNC, DisplayType.GTK}:
        shown = display if display.type is DisplayType.SPICE else Display()
        low = shown.port is not None and shown.port < FIRST_VNC_PORT
        place = Display() if low else shown
        display = evolve(place, type=DisplayType.VNC)
    audio = Audio.NONE if vm.audio is Audio.SPICE else vm.audio
    return evolve(vm, display=display, audio=audio)


def _for_installer(vm: Vm, mode: Mode) -> Vm:
    """Return what an installer needs: an empty disk, its medium, a screen, nothing shared."""
    shown = _with_screen(vm)
    first: tuple[Disk, ...] = vm.disks[:1]
    made = tuple(evolve(disk, size_mib=mode.disk_mib, base=mode.base) for disk in first)
    kept = tuple(path for path in vm.cdroms if path not in mode.media)
    seeds = _seeds_of(mode, vm)
    # An installer ends by powering off: started again, it would begin anew.
    always = vm.restart.policy is RestartPolicy.ALWAYS
    policy = RestartPolicy.ON_FAILURE if always else vm.restart.policy
    return evolve(
        shown,
        disks=(*made, *vm.disks[1:], *seeds),
        cdroms=kept if seeds else (*mode.media, *kept),
        boot=mode.boot,
        looking_glass=None,
        audio=Audio.NONE if shown.audio is Audio.SCREAM else shown.audio,
        shares=(),
        guest_tools=False,
        restart=evolve(vm.restart, policy=policy),
    )


def _seeds_of(mode: Mode, vm: Vm) -> tuple[Disk, ...]:
    """Return the media of a cloud image, as disks on the bus that it boots from.

    cloud-init finds its volume by the label, wherever it is; an image may have no driver for a
    SATA drive (Debian's cloud kernel is built without AHCI).
    """
    if mode.base is None:
        return ()
    return tuple(
        Disk(path, format=DiskFormat.RAW, bus=disk.bus, readonly=True)
        for disk in vm.disks[:1]
        for path in mode.media
    )
