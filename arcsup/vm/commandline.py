"""A VM and what was found for it on this host, as a QEMU command line. Pure: looks at nothing.

Option and argument stand on a line, in QEMU's own words (qemu-doc, "Invocation").
"""

import re
from pathlib import Path

from attrs import field, frozen

from arcsup.errors import Terminal
from arcsup.model import Argv, Audio, DisplayType, NetworkType, Vm
from arcsup.vm.capabilities import Capabilities
from arcsup.vm.cpu_features import cpu_features
from arcsup.vm.disks import Medium, cdrom_args, disk_args
from arcsup.vm.displays import (
    audio_args,
    display_args,
    graphics_args,
    input_args,
    wants_gl,
)
from arcsup.vm.fdsets import Handed, Role, fdset_args
from arcsup.vm.firmware import FirmwareFiles, firmware_args
from arcsup.vm.iommufd import OBJECT, Iommufd, iommufd_args
from arcsup.vm.networks import network_args
from arcsup.vm.options import AccelName, Slot, escape, on_off
from arcsup.vm.ports import Room, port_args, window_args
from arcsup.vm.shared_memory import SharedMemory, shared_memory_args
from arcsup.vm.shares import share_args
from arcsup.vm.sockets import Listener, chardev_place
from arcsup.vm.taps import Tap
from arcsup.vm.tpm import tpm_args

CONSOLE_LOG = "console.log"
"""What the guest says on its serial console, in the VM's folder of logs."""


@frozen
class Sockets:
    """Where a QEMU listens (``qmp`` to ``agent``) and whom it connects to (the rest).

    ``display`` is bound by QEMU itself: SPICE and VNC take no descriptor. ``shares`` has an
    entry per share of the VM, None where it is 9p.
    """

    qmp: Listener
    monitor: Listener
    console: Listener
    agent: Listener
    display: Path
    tpm: Listener | None = None
    shares: tuple[Listener | None, ...] = ()


@frozen
class SliceDevice:
    """A host device that the guest gets: an mdev, a vGPU, a VF or a whole function.

    ``sysfs`` is its folder in the device tree. ``port`` is the root port that it sits on, from
    0; companions (a GPU's sound) share the port as further ``function``s. ``iommufd``: QEMU opens
    the device's own node, and not its group's.
    """

    id: str
    sysfs: Path
    port: int
    function: int = 0
    display: bool = False
    iommufd: bool = False


@frozen
class Resources:
    """Everything that a command line needs beside the VM itself, found and decided."""

    qemu: Path
    capabilities: Capabilities
    accel: AccelName
    sockets: Sockets
    log: Path
    images: Path
    root: bool
    disks: tuple[Medium, ...] = ()
    cdroms: tuple[Medium, ...] = ()
    firmware: FirmwareFiles | None = None
    firmware_vars: Path = Path()
    numa_node: int | None = None
    render_node: Path | None = None
    vhost: bool = False
    taps: tuple[Tap, ...] = ()
    slices: tuple[SliceDevice, ...] = ()
    iommufd: Iommufd | None = None
    cpu_flags: frozenset[str] = frozenset()
    room: Room = field(factory=Room)
    shared_memory: tuple[SharedMemory, ...] = ()
    handed: tuple[Handed, ...] = ()

    def name_of(self, path: Path) -> str:
        """Return what QEMU opens for a file of ours: a set of descriptors, or the file itself."""
        sets = (it.fdset for it in self.handed if it.path == path and it.role is Role.OWN_FILE)
        number = next(sets, None)
        return str(path) if number is None else f"/dev/fdset/{number}"


def build_command_line(vm: Vm, host: Resources) -> Argv:
    """Return the whole command line of a VM, the binary first.

    Raises:
        Terminal: the VM asks for something that this QEMU cannot do or has no room for.
    """
    known, taken = host.capabilities, [device.port for device in host.slices]
    return (
        str(host.qemu),
        *_identity_args(vm),
        *_machine_args(vm, host),
        *_cpu_args(vm, host),
        *_memory_args(vm, host),
        *fdset_args(host.handed),
        *firmware_args(host.firmware, host.name_of(host.firmware_vars)),
        *(window_args(taken, host.room, vm.qemu.args) if host.firmware else ()),
        *_boot_args(vm, host),
        *_monitor_args(host.sockets),
        *_console_args(host),
        *_guest_channel_args(vm, host),
        *_health_args(known),
        *port_args(taken, host.room),
        *disk_args(vm, host.disks, known),
        *cdrom_args(vm, host.cdroms),
        *network_args(vm, known, vhost=host.vhost, taps=host.taps),
        *share_args(vm.shares, host.sockets.shares, known, host.images, root=host.root),
        *tpm_args(host.sockets.tpm),
        *graphics_args(vm, known),
        *iommufd_args(host.iommufd),
        *_slice_args(host.slices, known),
        *display_args(vm, known, host.sockets.display, host.render_node, host.images),
        *input_args(vm, known),
        *audio_args(vm, known),
        *shared_memory_args(host.shared_memory, known),
        *_sandbox_args(vm, host),
        *vm.qemu.args,
    )


def expected_devices(vm: Vm, host: Resources) -> frozenset[str]:
    """Return the ids that ``qom-list /machine/peripheral`` must show once the VM is up."""
    argv = build_command_line(vm, host)
    own = argv[: len(argv) - len(vm.qemu.args)]
    devices = (own[i + 1] for i, word in enumerate(own) if word == "-device")
    found = (re.search(r",id=([^,]+)", device) for device in devices)
    return frozenset(match[1] for match in found if match)


def _identity_args(vm: Vm) -> Argv:
    return (
        "-name", f"guest={escape(vm.name)},debug-threads=on",
        # NVIDIA's vGPU manager reads this option from QEMU's command line.
        "-uuid", str(vm.uuid),
        "-nodefaults",
        "-no-user-config",
        "-msg", "timestamp=on",
    )  # fmt: skip


def _machine_args(vm: Vm, host: Resources) -> Argv:
    if vm.machine != "q35" and not vm.machine.startswith("pc-q35-"):
        raise Terminal(f"machine: {vm.machine} has no PCI Express", hint="use q35 or pc-q35-…")
    parts = [vm.machine, f"accel={host.accel}", "usb=off", "vmport=off", "dump-guest-core=off"]
    # Under KVM guests have better clocks and a HPET costs exits; under TCG it is the good clock.
    if host.accel == "kvm":
        parts.append("hpet=off")
    if host.firmware is not None:
        parts.append(f"smm={on_off(host.firmware.secure)}")
        parts += ["pflash0=firmware-code", "pflash1=firmware-vars"]
    # A guest that powered off or died stays readable: its supervisor may be away just then.
    actions = "reboot=reset,shutdown=pause,panic=pause"
    return ("-machine", ",".join([*parts, "memory-backend=memory"]), "-action", actions)


def _cpu_args(vm: Vm, host: Resources) -> Argv:
    cpus = vm.cpus
    # -cpu knows no quoting: features may follow the model ("host,-vmx"), as QEMU's users write.
    name, comma, features = cpus.model.partition(",")
    model = "max" if host.accel == "tcg" and name == "host" else name
    # What the file says of the model comes last: it has the final word.
    added = "".join(f",{it.text}" for it in cpu_features(vm, host.accel, host.cpu_flags))
    topology = f"sockets={cpus.sockets},cores={cpus.cores},threads={cpus.threads}"
    return ("-cpu", f"{model}{added}{comma}{features}", "-smp", f"{cpus.total},{topology}")


def _memory_args(vm: Vm, host: Resources) -> Argv:
    served = any(listener is not None for listener in host.sockets.shares)
    if vm.hugepages is not False or served:
        # Another process (virtiofsd) can map a memfd; huge pages come from one too.
        backend = f"memory-backend-memfd,id=memory,size={vm.memory_mib}M,share={on_off(served)}"
    else:
        backend = f"memory-backend-ram,id=memory,size={vm.memory_mib}M"
    if vm.hugepages is not False:
        size = "" if vm.hugepages is True else f",hugetlbsize={vm.hugepages}M"
        # Without prealloc a host that runs out of huge pages kills the guest with SIGBUS.
        backend += f",hugetlb=on{size},prealloc=on"
    if host.numa_node is not None:
        backend += f",host-nodes={host.numa_node},policy=bind"
    return ("-m", f"{vm.memory_mib}M", "-object", backend)


def _boot_args(vm: Vm, host: Resources) -> Argv:
    # strict: only what has a bootindex is tried.
    argv = ["-boot", "strict=on"]
    if vm.boot is not None:
        argv += ["-kernel", str(host.images / vm.boot.kernel)]
        if vm.boot.initrd is not None:
            argv += ["-initrd", str(host.images / vm.boot.initrd)]
        if vm.boot.cmdline:
            argv += ["-append", vm.boot.cmdline]
    return tuple(argv)


def _monitor_args(sockets: Sockets) -> Argv:
    # QEMU serves one client per monitor: arcsup has its own, people have another.
    return (
        "-chardev", f"socket,id=qmp,{chardev_place(sockets.qmp)},server=on,wait=off",
        "-mon", "chardev=qmp,mode=control",
        "-chardev", f"socket,id=monitor,{chardev_place(sockets.monitor)},server=on,wait=off",
        "-mon", "chardev=monitor,mode=control",
    )  # fmt: skip


def _console_args(host: Resources) -> Argv:
    log = f"logfile={escape(host.name_of(host.log / CONSOLE_LOG))},logappend=on"
    place = chardev_place(host.sockets.console)
    return (
        "-chardev", f"socket,id=console,{place},server=on,wait=off,{log}",
        "-device", "isa-serial,id=serial0,chardev=console",
    )  # fmt: skip


def _guest_channel_args(vm: Vm, host: Resources) -> Argv:
    place = chardev_place(host.sockets.agent)
    agent = "id=agent,bus=channels.0,nr=1,chardev=agent,name=org.qemu.guest_agent.0"
    argv = [
        "-device", f"virtio-serial-pci,id=channels,bus=pcie.0,addr={Slot.SERIAL:#x}",
        "-chardev", f"socket,id=agent,{place},server=on,wait=off",
        "-device", f"virtserialport,{agent}",
    ]  # fmt: skip
    if vm.display.type is DisplayType.SPICE:
        vdagent = "id=vdagent,bus=channels.0,nr=2,chardev=vdagent,name=com.redhat.spice.0"
        argv += [
            "-chardev", "spicevmc,id=vdagent,name=vdagent",
            "-device", f"virtserialport,{vdagent}",
        ]  # fmt: skip
    return tuple(argv)


def _health_args(capabilities: Capabilities) -> Argv:
    panic = (
        f"pvpanic-pci,id=panic,bus=pcie.0,addr={Slot.PANIC:#x}"
        if "pvpanic-pci" in capabilities.devices
        else "pvpanic,id=panic"
    )
    return (
        "-device", panic,
        "-object", "rng-builtin,id=entropy",
        "-device", f"virtio-rng-pci,id=rng,rng=entropy,bus=pcie.0,addr={Slot.RNG:#x}",
    )  # fmt: skip


def _slice_args(slices: tuple[SliceDevice, ...], capabilities: Capabilities) -> Argv:
    argv: list[str] = []
    for device in slices:
        # Only the variant that cannot be unplugged can show a picture before its driver runs.
        driver = "vfio-pci-nohotplug" if device.display else "vfio-pci"
        capabilities.require_device(driver)
        shared = any(other.port == device.port for other in slices if other is not device)
        more = ",display=on,ramfb=on" if device.display else ""
        more += ",multifunction=on" if shared and device.function == 0 else ""
        more += f",iommufd={OBJECT}" if device.iommufd else ""
        place = f"bus=port{device.port},addr=0x0.{device.function:#x}"
        path = escape(device.sysfs)
        argv += ["-device", f"{driver},id={device.id},sysfsdev={path},{place}{more}"]
    return tuple(argv)


def _sandbox_args(vm: Vm, host: Resources) -> Argv:
    """Return the seccomp filter, as tight as what the VM uses allows."""
    if "sandbox" not in host.capabilities.options:
        return ()
    # The bridge helper is a program that QEMU starts, with privileges of its own (setuid).
    joined = {tap.index for tap in host.taps}
    bridged = any(
        network.type is NetworkType.BRIDGE and index not in joined
        for index, network in enumerate(vm.networks)
    )
    # GPU drivers and PipeWire set their threads' priorities; the filter would kill QEMU for it.
    priorities = (
        wants_gl(vm)
        or vm.display.type in {DisplayType.GTK, DisplayType.EGL_HEADLESS}
        or vm.audio is Audio.PIPEWIRE
    )
    resources = "allow" if priorities else "deny"
    privileges, spawn = ("children", "allow") if bridged else ("deny", "deny")
    filters = f"elevateprivileges={privileges},spawn={spawn},resourcecontrol={resources}"
    return ("-sandbox", f"on,obsolete=deny,{filters}")
