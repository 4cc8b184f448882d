"""VMs that together use every part of the command line, and what a host would have for them."""

from pathlib import Path
from uuid import UUID

from attrs import evolve

from arcsup.model import (
    Audio,
    Boot,
    Cpus,
    Disk,
    DiskBus,
    DiskFormat,
    Display,
    DisplayType,
    Firmware,
    Forward,
    GpuKind,
    GpuRequest,
    LookingGlass,
    MiB,
    Network,
    NetworkModel,
    NetworkType,
    QemuOptions,
    Share,
    UsbByPort,
    UsbByProduct,
    Vm,
    VmName,
)
from arcsup.vm.capabilities import Capabilities, load_capabilities
from arcsup.vm.commandline import Resources, SliceDevice, Sockets
from arcsup.vm.disks import Medium
from arcsup.vm.firmware import FirmwareFiles
from arcsup.vm.iommufd import Iommufd
from arcsup.vm.options import AccelName
from arcsup.vm.shared_memory import find_shared_memory
from arcsup.vm.sockets import Listener

GOLDEN = Path(__file__).parent / "golden"
QEMU_VERSIONS = ("7.2", "10.0", "11.1")


def capabilities_of(version: str) -> Capabilities:
    """Return what Debian's QEMU of that version has, as asked from the real binary."""
    return load_capabilities((GOLDEN / f"qemu-{version}.json").read_text())


def make_vm(name: str) -> Vm:
    """Return a VM that asks for nothing."""
    return Vm(name=VmName(name), uuid=UUID("6a1d0dba-3f3f-4b1e-8c6e-2c1d8d4e5f60"))


def find_resources(vm: Vm, *, accel: AccelName = "tcg", version: str = "7.2") -> Resources:
    """Return made-up resources of a host that has everything; descriptors start at 10."""
    run, images = Path("/run/arcsup") / vm.name, Path("/var/lib/arcsup/images")
    return Resources(
        qemu=Path("/usr/bin/qemu-system-x86_64"),
        capabilities=capabilities_of(version),
        accel=accel,
        sockets=Sockets(
            qmp=Listener(run / "qmp.sock", 10),
            monitor=Listener(run / "monitor.sock", 11),
            console=Listener(run / "console.sock", 12),
            agent=Listener(run / "agent.sock", 13),
            display=run / "display.sock",
            tpm=Listener(run / "tpm.sock", 14) if vm.tpm else None,
            shares=tuple(
                None if share.readonly else Listener(run / f"share{i}.sock", 15 + i)
                for i, share in enumerate(vm.shares)
            ),
        ),
        log=Path("/var/log/arcsup") / vm.name,
        images=images,
        root=True,
        disks=tuple(Medium(images / disk.path, disk.path[:5] == "/dev/") for disk in vm.disks),
        cdroms=tuple(Medium(images / path) for path in vm.cdroms),
        shared_memory=find_shared_memory(vm, lambda _: False),
    )


LINUX = evolve(
    make_vm("linux"),
    cpus=Cpus(cores=2, threads=2, sockets=1, model="qemu64"),
    memory_mib=MiB(256),
    boot=Boot("vmlinuz", "initramfs.cpio.gz", "console=ttyS0 quiet"),
    networks=(),
)

WINDOWS = evolve(
    make_vm("windows"),
    cpus=Cpus(cores=4),
    memory_mib=MiB(8192),
    firmware=Firmware.UEFI_SECURE,
    tpm=True,
    disks=(Disk("windows.qcow2", bus=DiskBus.SATA), Disk("data.qcow2", MiB(1024))),
    cdroms=("windows.iso", "virtio-win.iso"),
    display=Display(DisplayType.SPICE),
    audio=Audio.SPICE,
    looking_glass=LookingGlass(2560, 1440),
    hide_hypervisor=True,
)

SERVER = evolve(
    make_vm("server"),
    memory_mib=MiB(4096),
    hugepages=MiB(2),
    numa=0,
    firmware=Firmware.UEFI,
    disks=(
        *(Disk(f"virtio{i}.qcow2") for i in range(9)),
        Disk("/dev/vg/scsi", format=DiskFormat.RAW, bus=DiskBus.SCSI),
        Disk("nvme.raw", format=DiskFormat.RAW, bus=DiskBus.NVME, readonly=True),
    ),
    networks=(
        Network(NetworkType.BRIDGE, bridge="br0"),
        Network(NetworkType.TAP, tap="tap0", model=NetworkModel.E1000E),
        Network(
            forwards=(Forward("tcp", "127.0.0.1", 2222, 22), Forward("udp", "", 5353, 53)),
            model=NetworkModel.RTL8139,
        ),
    ),
    display=Display(DisplayType.VNC, listen="::1", port=5901),
    shares=(Share("/srv/data", "data"), Share("/srv/music", "music", readonly=True)),
)

VIRGL = evolve(
    make_vm("virgl"),
    display=Display(DisplayType.SPICE),
    gpus=(GpuRequest(GpuKind.VIRTIO, gl=True), GpuRequest(GpuKind.VIRTIO, count=2)),
)

ODD = evolve(
    make_vm("odd"),
    disks=(Disk("a,b,,c.qcow2"),),
    cdroms=("d,e.iso",),
    display=Display(DisplayType.VNC),
    audio=Audio.SCREAM,
    shares=(Share("/srv/x,y", "x,y", readonly=True),),
    usb=(UsbByProduct(0x46D, 0xC52B), UsbByPort(3, "1.2")),
    qemu=QemuOptions(args=("-device", "edu,id=mine", "-rtc", "base=localtime")),
)

GPU = evolve(make_vm("gpu"), cpus=Cpus(cores=6), display=Display(DisplayType.EGL_HEADLESS))
IOMMUFD = evolve(make_vm("iommufd"), networks=())


def sample_cases(version: str) -> dict[str, tuple[Vm, Resources]]:
    """Return every sample with its resources, by name."""
    plain = {
        str(vm.name): (vm, find_resources(vm, version=version))
        for vm in (make_vm("minimal"), LINUX, WINDOWS, SERVER, VIRGL, ODD, GPU, IOMMUFD)
    }
    state = Path("/var/lib/arcsup")
    secure = FirmwareFiles(Path("/usr/share/OVMF/OVMF_CODE_4M.ms.fd"), Path("/unused"), secure=True)
    insecure = FirmwareFiles(Path("/usr/share/OVMF/OVMF_CODE_4M.fd"), Path("/unused"))
    devices = Path("/sys/bus/pci/devices")
    windows, server, virgl, gpu = (plain[name][1] for name in ("windows", "server", "virgl", "gpu"))
    changed = {
        "windows": evolve(
            windows,
            accel="kvm",
            firmware=secure,
            firmware_vars=state / "vars/windows.fd",
            vhost=True,
        ),
        "server": evolve(
            server, firmware=insecure, firmware_vars=state / "vars/server.fd", numa_node=0
        ),
        "virgl": evolve(virgl, render_node=Path("/dev/dri/renderD128")),
        "gpu": evolve(
            gpu,
            accel="kvm",
            render_node=Path("/dev/dri/renderD129"),
            slices=(
                SliceDevice("gpu0", Path("/sys/bus/mdev/devices") / str(GPU.uuid), 0, display=True),
                SliceDevice("gpu1", devices / "0000:41:00.0", 1),
                SliceDevice("gpu1-sound", devices / "0000:41:00.1", 1, function=1),
            ),
        ),
        "iommufd": evolve(
            plain["iommufd"][1],
            accel="kvm",
            iommufd=Iommufd(20),
            slices=(
                SliceDevice("gpu0", devices / "0000:41:00.0", 0, iommufd=True),
                SliceDevice("gpu0-1", devices / "0000:41:00.1", 0, function=1, iommufd=True),
                SliceDevice("nic0", devices / "0000:81:10.0", 7),
            ),
        ),
    }
    return {name: (vm, changed.get(name, host)) for name, (vm, host) in plain.items()}
