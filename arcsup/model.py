"""The values that everything else speaks of. Frozen, compared by value, no input or output.

A value that exists is right: text is parsed at the edge (spec/), where a fault still has a line
and a column. Names follow the VM file (camelCase there, snake_case here); units are in the name.
"""

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal, NewType
from uuid import UUID

from attrs import field, frozen

VmName = NewType("VmName", str)
"""[a-z0-9-], 1 to 63 characters."""

PciAddress = NewType("PciAddress", str)
"""``0000:41:00.4``: domain (4 to 8 hex digits), bus, slot, function; lower case."""

MacAddress = NewType("MacAddress", str)
"""``52:54:00:12:34:56``, lower case, unicast."""

CpuSet = NewType("CpuSet", frozenset[int])
"""Host CPU numbers."""

MiB = NewType("MiB", int)
"""A size in units of 2**20 bytes."""

Seconds = NewType("Seconds", float)
"""A length of time."""


class Auto(StrEnum):
    """Let arcsup find out."""

    AUTO = "auto"


AUTO = Auto.AUTO


# --- what a VM file asks for --------------------------------------------------------------------


class Accel(StrEnum):
    """How guest instructions are run. AUTO tries KVM once per boot and falls back to TCG."""

    AUTO = "auto"
    KVM = "kvm"
    TCG = "tcg"


class Firmware(StrEnum):
    """BIOS is SeaBIOS; the others are OVMF with variables kept per VM."""

    BIOS = "bios"
    UEFI = "uefi"
    UEFI_SECURE = "uefi-secure"


class DiskFormat(StrEnum):
    """Image formats that arcsup makes and opens."""

    QCOW2 = "qcow2"
    RAW = "raw"


class DiskBus(StrEnum):
    """What the guest sees a disk on."""

    VIRTIO = "virtio"
    SCSI = "scsi"
    SATA = "sata"
    NVME = "nvme"


class NetworkType(StrEnum):
    """USER is QEMU's own NAT; VF is a virtual function of a network card."""

    USER = "user"
    BRIDGE = "bridge"
    TAP = "tap"
    VF = "vf"


class NetworkModel(StrEnum):
    """What network card the guest sees."""

    VIRTIO = "virtio"
    E1000E = "e1000e"
    RTL8139 = "rtl8139"


class DisplayType(StrEnum):
    """Where the guest's picture goes."""

    NONE = "none"
    SPICE = "spice"
    VNC = "vnc"
    GTK = "gtk"
    EGL_HEADLESS = "egl-headless"


class Audio(StrEnum):
    """Where the guest's sound goes. AUTO is SPICE where the display is, else nowhere."""

    AUTO = "auto"
    NONE = "none"
    SPICE = "spice"
    PIPEWIRE = "pipewire"
    SCREAM = "scream"


class GpuKind(StrEnum):
    """VGPU is an mdev or an NVIDIA vendor-VFIO vGPU, whichever the card offers."""

    VGPU = "vgpu"
    VF = "vf"
    PASSTHROUGH = "passthrough"
    VIRTIO = "virtio"


class RestartPolicy(StrEnum):
    """After which ends a VM is started again."""

    ALWAYS = "always"
    ON_FAILURE = "on-failure"
    NEVER = "never"


@frozen
class Cpus:
    """``pin`` is None (do not), AUTO (the CPUs of the GPU's NUMA node) or the host CPUs to use."""

    cores: int = 2
    threads: int = 1
    sockets: int = 1
    model: str = "host"
    pin: Auto | CpuSet | None = None

    @property
    def total(self) -> int:
        """Virtual CPUs that the guest sees."""
        return self.cores * self.threads * self.sockets


@frozen
class Boot:
    """Direct Linux boot: files on the host, absolute or relative to the images directory."""

    kernel: str
    initrd: str | None = None
    cmdline: str = ""


@frozen
class Disk:
    """``size_mib`` lets a missing image be made; ``base`` makes it an overlay of that image.

    ``ephemeral``: what the guest writes goes to an overlay that lasts one run.
    """

    path: str
    size_mib: MiB | None = None
    format: DiskFormat = DiskFormat.QCOW2
    bus: DiskBus = DiskBus.VIRTIO
    readonly: bool = False
    base: str | None = None
    ephemeral: bool = False


@frozen
class GpuRequest:
    """What one entry of ``gpus`` asks for. Video memory in MiB; None means no limit."""

    kind: GpuKind = GpuKind.VGPU
    gl: bool = False
    min_vram_mib: MiB | None = None
    max_vram_mib: MiB | None = None
    suffix: str = ""
    mdev_type: str = ""
    acceptable_types: tuple[str, ...] = ()
    display: bool = False
    parent: PciAddress | None = None
    address: PciAddress | None = None
    vendor: str = ""
    device: str = ""
    count: int = 1
    optional: bool = False
    force: bool = False


@frozen
class Forward:
    """A port of the host that leads to a port of the guest. ``address`` "" is every address."""

    protocol: Literal["tcp", "udp"]
    address: str
    host_port: int
    guest_port: int


@frozen
class Network:
    """``bridge`` or ``tap`` names the host's interface; ``mac`` None is derived from the VM.

    ``host_loopback``: the guest may reach what listens on the host's loopback, by QEMU's NAT.
    """

    type: NetworkType = NetworkType.USER
    bridge: str = ""
    tap: str = ""
    mac: MacAddress | None = None
    model: NetworkModel = NetworkModel.VIRTIO
    forwards: tuple[Forward, ...] = ()
    host_loopback: bool = False
    parent: PciAddress | None = None


@frozen
class Display:
    """``listen`` None is a unix socket in the runtime directory; else an IP address.

    ``password_file`` holds what clients that come over TCP must know.
    """

    type: DisplayType = DisplayType.NONE
    listen: str | None = None
    port: int | None = None
    password_file: str | None = None


@frozen
class LookingGlass:
    """What a Looking Glass host in the guest shares: the largest monitor, and how many."""

    width: int = 1920
    height: int = 1080
    hdr: bool = False
    monitors: int = 1


@frozen
class Share:
    """A directory of the host that the guest mounts by its tag: virtiofs, else 9p."""

    path: str
    tag: str
    readonly: bool = False


@frozen
class UsbByProduct:
    """A USB device of the host by its ids (0 to 0xffff)."""

    vendor: int
    product: int


@frozen
class UsbByPort:
    """A USB device of the host by where it is plugged: bus number and port path ("1.2")."""

    bus: int
    port: str


@frozen
class Restart:
    """Restarts allowed: ``burst`` within ``period``; the delay doubles up to ``max_delay``."""

    policy: RestartPolicy = RestartPolicy.ON_FAILURE
    burst: int = 5
    period: Seconds = Seconds(60.0)
    delay: Seconds = Seconds(0.1)
    max_delay: Seconds = Seconds(30.0)


@frozen
class Stop:
    """How long the guest may take to power down before it is made to end."""

    timeout: Seconds = Seconds(60.0)


Argv = tuple[str, ...]


@frozen
class Hooks:
    """Programs to run around a VM's life, without a shell."""

    pre_start: tuple[Argv, ...] = ()
    post_start: tuple[Argv, ...] = ()
    pre_stop: tuple[Argv, ...] = ()
    post_stop: tuple[Argv, ...] = ()


@frozen
class QemuOptions:
    """The escape hatch: another QEMU binary, and arguments appended as they are."""

    binary: str | None = None
    args: tuple[str, ...] = ()


@frozen
class Vm:
    """One VM as its file asks for it, every default filled in.

    ``hugepages`` is False, True (the host's default size) or a page size in MiB.
    ``numa`` is AUTO (the node of its GPU), None (do not bind) or a node.
    """

    name: VmName
    uuid: UUID
    description: str = ""
    autostart: bool = True
    after: tuple[VmName, ...] = ()
    cpus: Cpus = Cpus()
    memory_mib: MiB = MiB(2048)
    hugepages: bool | MiB = False
    numa: Auto | int | None = AUTO
    machine: str = "q35"
    accel: Accel = Accel.AUTO
    firmware: Firmware = Firmware.BIOS
    tpm: bool = False
    boot: Boot | None = None
    disks: tuple[Disk, ...] = ()
    cdroms: tuple[str, ...] = ()
    gpus: tuple[GpuRequest, ...] = ()
    networks: tuple[Network, ...] = (Network(),)
    display: Display = Display()
    looking_glass: LookingGlass | None = None
    audio: Audio = Audio.AUTO
    shares: tuple[Share, ...] = ()
    usb: tuple[UsbByProduct | UsbByPort, ...] = ()
    guest_tools: bool = False
    hide_hypervisor: bool = False
    restart: Restart = Restart()
    stop: Stop = Stop()
    hooks: Hooks = Hooks()
    qemu: QemuOptions = QemuOptions()


# --- what is seen of a VM -----------------------------------------------------------------------


class State(StrEnum):
    """What ``list`` shows."""

    INVALID = "invalid"
    WAITING = "waiting"
    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPING = "stopping"
    STOPPED = "stopped"
    BACKOFF = "backoff"
    FAILED = "failed"


class ExitClass(StrEnum):
    """Why a QEMU is no longer there."""

    GUEST_SHUTDOWN = "guest-shutdown"
    GUEST_RESET = "guest-reset"
    GUEST_PANIC = "guest-panic"
    STOPPED = "stopped"
    KILLED = "killed"
    CRASH = "crash"
    START_FAILED = "start-failed"
    DEVICE_LOST = "device-lost"
    OUT_OF_MEMORY = "out-of-memory"


@frozen
class LastExit:
    """The end of a QEMU. ``code`` and ``signal`` are None where nobody could learn them.

    ``forced``: its guest was to power down, and did not or could not be asked.
    """

    exit_class: ExitClass
    code: int | None
    signal: int | None
    at: datetime
    detail: str = ""
    forced: bool = False

    @property
    def had_qemu(self) -> bool:
        """Whether there was a QEMU to end: what its disks lack, say, is seen before."""
        known = self.code is not None or self.signal is not None
        return known or self.exit_class is not ExitClass.START_FAILED


class ConditionType(StrEnum):
    """What is stated of a VM beside its state. Each is well while it is true, except STUCK.

    HOST_LOOPBACK is neither: it says what the guest reaches, and is stated only where that is so.
    """

    DEVICES_RETURNED = "DevicesReturned"
    DEVICES_USABLE = "DevicesUsable"
    DISKS_WORK = "DisksWork"
    GPUS_CHANGED = "GpusChanged"
    HELPERS_RUN = "HelpersRun"
    HOST_LOOPBACK = "HostLoopback"
    LIMITED = "Limited"
    MEDIA_CHANGED = "MediaChanged"
    MONITOR_ANSWERS = "MonitorAnswers"
    RECORDED = "Recorded"
    SECURE_BOOT = "SecureBoot"
    SOUND_PLAYS = "SoundPlays"
    STUCK = "Stuck"
    SUPERVISED = "Supervised"
    UEFI_VARIABLES = "UefiVariables"


@frozen
class Condition:
    """One statement about a VM that is true or false, since when, and why."""

    type: ConditionType
    status: bool
    reason: str
    message: str
    since: datetime

    @property
    def is_well(self) -> bool:
        """Whether it is as one would have it."""
        return self.status is not (self.type is ConditionType.STUCK)


@frozen
class Event:
    """Something that happened. ``vm`` is None for the daemon and the host."""

    time: datetime
    vm: VmName | None
    kind: str
    message: str
    data: Mapping[str, Any] = field(factory=dict)


@frozen
class SliceInUse:
    """What one GPU request got; ``type`` and ``vram_mib`` are None where nothing tells."""

    kind: GpuKind
    type: str | None
    id: str
    parent: PciAddress | None
    vram_mib: MiB | None


@frozen
class Viewing:
    """How a running VM can be looked at.

    SPICE and VNC listen on ``socket``, or on ``address`` and ``port``; ``frames`` are what a
    Looking Glass client reads, one path for each monitor.
    """

    display: DisplayType
    socket: str = ""
    address: str = ""
    port: int | None = None
    frames: tuple[str, ...] = ()


@frozen
class CgroupInUse:
    """The control group of a VM's programs; ``memory_max`` is in bytes, None for no limit."""

    path: str
    memory_max: int | None
    tasks_max: int


@frozen
class VmStatus:
    """Everything that ``list`` and ``status`` show of a VM.

    ``pending`` lists the keys of the file that differ from what runs and need a restart.
    ``mode`` are the switches of the run that the operator asked for: "preinstall", "disable-gpu".
    """

    name: VmName
    state: State
    reason: str
    since: datetime
    pid: int | None
    restarts: int
    gpus: tuple[SliceInUse, ...]
    file: str
    pending: tuple[str, ...]
    uuid: UUID | None
    qmp_socket: str
    monitor_socket: str
    console_socket: str
    argv: Argv
    numa_node: int | None
    adopted: bool
    last_exit: LastExit | None
    next_try: datetime | None
    viewing: Viewing | None = None
    conditions: tuple[Condition, ...] = ()
    events: tuple[Event, ...] = ()
    mode: tuple[str, ...] = ()
    cgroup: CgroupInUse | None = None


@frozen
class WhyLink:
    """One link of the chain from "not as desired" to its cause and the next action."""

    what: str
    because: str
    since: datetime | None = None
    next_action: str = ""
    at: datetime | None = None


@frozen
class Why:
    """The answer to ``why NAME``."""

    name: VmName
    state: State
    as_desired: bool
    chain: tuple[WhyLink, ...]


@frozen
class Step:
    """One planned action in words: what ``plan`` prints. ``verb`` is start, stop, make, …"""

    verb: str
    object: str
    because: str
