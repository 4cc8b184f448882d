"""The keys of a LibVF.IO file, in one table as those of the native one.

Every key but ``container`` may be left out: the older the file, the fewer it has. The meanings are
those of LibVF.IO 1.0.5; ``lgKey`` is of a fork.
"""

from collections.abc import Iterator
from enum import StrEnum

from attrs import evolve, frozen

from arcsup.spec.codec import Choice, Codec, Flag, Items, Json, Number, Text
from arcsup.spec.nodes import Node, Scalar
from arcsup.spec.struct import Key, Rule, Struct

LARGEST_PORT = 65535
LARGEST_MIB = 1 << 24
DEFAULT_ROOT = "~/.local/libvf.io"


class GpuType(StrEnum):
    """How LibVF.IO finds a GPU: AMD's VFs, mediated devices, a whole device by address."""

    SRIOV = "sriovdev"
    MDEV = "sysfsdev"
    PASSTHROUGH = "passthrough"


class Introspect(StrEnum):
    """What shows the guest's picture."""

    NONE = "none"
    LOOKING_GLASS = "looking-glass"


class InstallOs(StrEnum):
    """What `arcd create` installs unattended."""

    NONE = "none"
    WIN10 = "win10"


class Protocol(StrEnum):
    """What a port is of."""

    TCP = "tcp"
    UDP = "udp"


@frozen
class Port:
    """A port of the host that leads to one of the guest."""

    guest: int
    host: int
    protocol: Protocol = Protocol.TCP


@frozen
class Connectivity:
    """Ports besides SSH."""

    exposed_ports: tuple[Port, ...] = ()


@frozen
class Container:
    """The images: ``kernel`` is one in ROOT/kernel, ``state`` are more in ROOT/states."""

    kernel: str
    state: tuple[str, ...] = ()
    initial_size: int | None = None
    iso: str | None = None


@frozen
class Cpus:
    """``ram_alloc`` is the memory in MiB."""

    cores: int = 4
    sockets: int = 1
    threads: int = 1
    ram_alloc: int = 8192


@frozen
class Gpu:
    """One entry of ``gpus``; video memory in MiB, -1 is no limit, None was not said."""

    gpu_type: GpuType
    max_vram: int | None = None
    min_vram: int | None = None
    acceptable_types: tuple[str, ...] = ()
    mdev_type: str = ""
    parent_port: str | None = None
    dev_id: str = "hostdev0"
    suffix: str = ""
    bdf: str | None = None
    passthrough_type: str | None = None


@frozen
class Nic:
    """A virtual function of a network card."""

    mac: str


@frozen
class Command:
    """A QEMU option; its value is ``values`` with commas between."""

    arg: str
    values: tuple[str, ...] = ()


@frozen
class Program:
    """A word and more words, which LibVF.IO joins and hands to a shell."""

    exec: str
    args: tuple[str, ...] = ()


@frozen
class Programs:
    """Programs to run one after the other."""

    is_root: bool = False
    list: tuple[Program, ...] = ()


@frozen
class Config:
    """A LibVF.IO file."""

    container: Container
    name: str = ""
    startintro: bool = False
    startapp: bool = False
    install_os: InstallOs = InstallOs.NONE
    nographics: bool = False
    spice: bool = False
    showhypervisor: bool = True
    introspect: Introspect = Introspect.LOOKING_GLASS
    shareddir: str | None = None
    spice_port: int = 5900
    ssh_port: int = 2222
    vnc_port: int = -1
    connectivity: Connectivity = Connectivity()
    cpus: Cpus = Cpus()
    gpus: tuple[Gpu, ...] = ()
    nics: tuple[Nic, ...] = ()
    root: str = DEFAULT_ROOT
    sudo: bool = False
    commands: tuple[Command, ...] = ()
    startup_commands: tuple[Programs, ...] = ()
    teardown_commands: tuple[Programs, ...] = ()
    install_commands: tuple[Programs, ...] = ()
    app_commands: tuple[Programs, ...] = ()
    blacklisted_pci: tuple[str, ...] = ()
    lg_key: int | None = None


@frozen
class Written(Text):
    """Text as it is written: LibVF.IO takes 007 and on for text where it wants text."""

    def read(self, node: Node, path: str) -> str:
        """Return the text."""
        if isinstance(node, Scalar) and node.type != "null":
            node = evolve(node, type="str")
        return super().read(node, path)


@frozen
class Nullable:
    """A value or ``!!null ~``."""

    other: Codec[object]

    @property
    def kind(self) -> str:
        """What is expected."""
        return f"{self.other.kind} or ~"

    def read(self, node: Node, path: str) -> object:
        """Return the value, None for null."""
        if isinstance(node, Scalar) and node.type == "null":
            return None
        return self.other.read(node, path)

    def write(self, value: object) -> Json:
        """Return what ``read`` reads."""
        return None if value is None else self.other.write(value)

    def schema(self) -> dict[str, Json]:
        """Return the schema of the value or null."""
        return {"anyOf": [{"type": "null"}, self.other.schema()]}


TEXT = Written()
MAYBE_TEXT = Written(least=0)
FLAG = Flag()
PORT = Number(1, LARGEST_PORT)
MAYBE_PORT = Number(-LARGEST_PORT, LARGEST_PORT)
VRAM = Number(-1, LARGEST_MIB)

_OWN_KEYS = {
    GpuType.SRIOV: ("acceptableTypes",),
    GpuType.MDEV: ("mdevType", "parentPort", "devId", "suffix"),
    GpuType.PASSTHROUGH: ("bdf", "passthroughType"),
}


def _check_gpu(gpu: Gpu) -> Iterator[tuple[str, str]]:
    said = {
        "acceptableTypes": gpu.acceptable_types,
        "mdevType": gpu.mdev_type,
        "parentPort": gpu.parent_port,
        "suffix": gpu.suffix,
        "bdf": gpu.bdf,
        "passthroughType": gpu.passthrough_type,
    }
    for kind, keys in _OWN_KEYS.items():
        for key in keys:
            if kind is not gpu.gpu_type and said.get(key):
                yield key, f"is for `gpuType: {kind}` only, this is {gpu.gpu_type}"
    if gpu.gpu_type is GpuType.PASSTHROUGH and not gpu.bdf:
        yield "bdf", "is missing: give the PCI address of the device"


GPU = Struct(
    Gpu,
    (
        Key("gpuType", Choice(GpuType), "how it is found", required=True),
        Key("maxVRam", VRAM, "most video memory, MiB", "max_vram"),
        Key("minVRam", VRAM, "least video memory, MiB", "min_vram"),
        Key("acceptableTypes", Items(TEXT), "sriovdev: types of AMD's driver"),
        Key("mdevType", MAYBE_TEXT, "sysfsdev: type id"),
        Key("parentPort", Nullable(TEXT), "sysfsdev: the card"),
        Key("devId", TEXT, "sysfsdev: QEMU's id, for `commands`"),
        Key("suffix", MAYBE_TEXT, "sysfsdev: last letters of the type's name"),
        Key("bdf", Nullable(TEXT), "passthrough: PCI address"),
        Key("passthroughType", Nullable(TEXT), "passthrough: not used"),
    ),
    (
        Rule(
            (
                "gpuType",
                "acceptableTypes",
                "mdevType",
                "parentPort",
                "suffix",
                "bdf",
                "passthroughType",
            ),
            _check_gpu,
        ),
    ),
)

PROGRAMS = Items(
    Struct(
        Programs,
        (
            Key("is_root", FLAG, "as root"),
            Key(
                "list",
                Items(
                    Struct(
                        Program,
                        (
                            Key("exec", TEXT, "program", required=True),
                            Key("args", Items(MAYBE_TEXT, most=256), "arguments"),
                        ),
                    )
                ),
                "programs",
            ),
        ),
    )
)

LIBVFIO = Struct(
    Config,
    (
        Key("name", MAYBE_TEXT, "label"),
        Key("startintro", FLAG, "start the viewer"),
        Key("startapp", FLAG, "run appCommands after start"),
        Key("installOs", Choice(InstallOs), "unattended installation"),
        Key("nographics", FLAG, "no window"),
        Key("spice", FLAG, "SPICE server"),
        Key("showhypervisor", FLAG, "the guest may know"),
        Key("introspect", Choice(Introspect), "viewer"),
        Key("shareddir", Nullable(TEXT), "directory for the guest"),
        Key("spicePort", PORT, "SPICE port"),
        Key("sshPort", MAYBE_PORT, "host port to the guest's 22"),
        Key("vncPort", MAYBE_PORT, "VNC port"),
        Key(
            "connectivity",
            Struct(
                Connectivity,
                (
                    Key(
                        "exposedPorts",
                        Items(
                            Struct(
                                Port,
                                (
                                    Key("guest", PORT, "guest's port", required=True),
                                    Key("host", PORT, "host's port", required=True),
                                    Key("protocol", Choice(Protocol), "tcp or udp"),
                                ),
                            )
                        ),
                        "forwards",
                    ),
                ),
            ),
            "more forwards",
        ),
        Key(
            "container",
            Struct(
                Container,
                (
                    Key("kernel", TEXT, "image in ROOT/kernel", required=True),
                    Key("state", Items(TEXT), "images in ROOT/states"),
                    Key("initialSize", Number(1, 1 << 20), "GiB of a new image"),
                    Key("iso", Nullable(TEXT), "CD-ROM image"),
                ),
            ),
            "images",
            required=True,
        ),
        Key(
            "cpus",
            Struct(
                Cpus,
                (
                    Key("cores", Number(1, 1024), "cores"),
                    Key("sockets", Number(1, 64), "sockets"),
                    Key("threads", Number(1, 64), "threads"),
                    Key("ramAlloc", Number(1, 1 << 30), "memory, MiB"),
                ),
            ),
            "CPUs and memory",
        ),
        Key("gpus", Items(GPU, most=32), "GPUs"),
        Key(
            "nics",
            Items(Struct(Nic, (Key("mac", TEXT, "MAC address", required=True),)), most=31),
            "virtual functions of network cards",
        ),
        Key("root", TEXT, "where the images are"),
        Key("sudo", FLAG, "QEMU runs as root"),
        Key(
            "commands",
            Items(
                Struct(
                    Command,
                    (
                        Key("arg", TEXT, "QEMU option", required=True),
                        Key("values", Items(MAYBE_TEXT), "its value's parts"),
                    ),
                )
            ),
            "QEMU options",
        ),
        Key("startupCommands", PROGRAMS, "before start"),
        Key("teardownCommands", PROGRAMS, "after the end"),
        Key("installCommands", PROGRAMS, "after installation"),
        Key("appCommands", PROGRAMS, "by `arcd app`"),
        Key("blacklistedPci", Items(TEXT), "devices not to take"),
        Key("lgKey", Number(0, 1 << 16), "Looking Glass's escape key"),
    ),
    reference="the README of LibVF.IO has its keys",
)
