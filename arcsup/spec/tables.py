"""The VM file's keys: one table that the reader, the writer, the schema and the README use.

Meanings are written for the person who edits a file; defaults are those of ``arcsup.model``.
"""

from arcsup import model
from arcsup.model import AUTO, Display, DisplayType, LookingGlass, UsbByPort, UsbByProduct
from arcsup.spec import rules
from arcsup.spec.codec import Choice, Flag, Items, Number, Text, Token
from arcsup.spec.nodes import Mapping, Node
from arcsup.spec.struct import Key, OneOf, Rule, Struct, Words
from arcsup.spec.units import (
    CPU_LIST,
    DURATION,
    FORWARD,
    HEX_ID,
    MAC,
    NAME,
    PCI_ADDRESS,
    SIZE,
    parse_cpus,
    parse_device_id,
    parse_duration,
    parse_forward,
    parse_hex_id,
    parse_ip,
    parse_mac,
    parse_name,
    parse_pci_address,
    parse_size,
    parse_uuid,
    parse_vendor,
    show_cpus,
    show_duration,
    show_forward,
    show_hex_id,
    show_size,
)

SIZE_TOKEN = Token("a size", SIZE, parse_size, show_size, number=True)
DURATION_TOKEN = Token("a duration", DURATION, parse_duration, show_duration, number=True)
PCI_TOKEN = Token("a PCI address", PCI_ADDRESS, parse_pci_address)
FILE = Text("a path (absolute, or below STATE/images)", pattern=r"[^~].*")
NAME_TEXT = Token("a name", NAME, parse_name)
UUID_TOKEN = Token("a UUID", r"[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}", parse_uuid)
HEX_TOKEN = Token("a hexadecimal id", f"{HEX_ID}", parse_hex_id, show_hex_id, number=True)
INTERFACE = Text("an interface name of the host", pattern=r"[^\s/:]{1,15}")
FLAG = Flag()
ARGV = Items(Text("an argument", least=0), most=256, least=1)

CPUS = Struct(
    model.Cpus,
    (
        Key("cores", Number(1, 1024), "cores of each socket"),
        Key("threads", Number(1, 64), "threads of each core"),
        Key("sockets", Number(1, 64), "sockets"),
        Key(
            "model",
            Text("a CPU model of QEMU", pattern=r"[A-Za-z0-9._+-]+(,[A-Za-z0-9._=+-]+)*"),
            "CPU model and flags in QEMU's words; `host` is the host's own CPU",
        ),
        Key(
            "pin",
            Words(
                Token(
                    "host CPUs such as 0-3,8",
                    CPU_LIST,
                    parse_cpus,
                    show_cpus,
                    number=True,
                    joined=True,
                ),
                words={"none": None, "auto": AUTO},
            ),
            "host CPUs that run the guest: none, auto (those of the GPU's NUMA node), or a list",
        ),
    ),
    (Rule(("cores", "threads", "sockets"), rules.check_cpus),),
)

BOOT = Struct(
    model.Boot,
    (
        Key("kernel", FILE, "Linux kernel to start without a boot loader", required=True),
        Key("initrd", FILE, "initial RAM disk"),
        Key("cmdline", Text("a command line", least=0), "kernel command line"),
    ),
)

DISK = Struct(
    model.Disk,
    (
        Key("path", FILE, "image file or block device; made when missing if it may", required=True),
        Key("size", SIZE_TOKEN, "size of the image to make when there is none", "size_mib"),
        Key("format", Choice(model.DiskFormat), "image format"),
        Key("bus", Choice(model.DiskBus), "what the guest sees the disk on"),
        Key("readonly", FLAG, "the guest cannot write"),
        Key("base", FILE, "image that this one is an overlay of; it is never written to"),
        Key(
            "ephemeral", FLAG, "what the guest writes is thrown away, unless `stop --save` keeps it"
        ),
    ),
    (Rule(("path", "size", "format", "readonly", "base", "ephemeral"), rules.check_disk),),
)

GPU = Struct(
    model.GpuRequest,
    (
        Key(
            "kind",
            Choice(model.GpuKind),
            "vgpu (a mediated device or an NVIDIA vGPU), vf (an SR-IOV virtual function), "
            "passthrough (a whole PCI function), virtio (no host GPU needed)",
        ),
        Key("gl", FLAG, "virtio: 3D by VirGL on the host's renderer"),
        Key("minVRam", SIZE_TOKEN, "vgpu, vf: least video memory", "min_vram_mib"),
        Key("maxVRam", SIZE_TOKEN, "vgpu, vf: most video memory", "max_vram_mib"),
        Key("suffix", Text("a suffix", least=0, most=64), "vgpu: last letters of the type's name"),
        Key(
            "mdevType",
            Text("an mdev type", least=0, most=128),
            "vgpu: type id (`nvidia-64`) or name (`GRID P4-2Q`)",
        ),
        Key(
            "acceptableTypes",
            Items(Text("a type", most=64)),
            "vf: what AMD's GIM calls the functions that will do (`S7150`); any by default",
        ),
        Key("display", FLAG, "vgpu: show its picture (off, on)"),
        Key("parent", PCI_TOKEN, "PCI address of the card that is to provide it"),
        Key("address", PCI_TOKEN, "PCI address of the very function to use"),
        Key(
            "vendor",
            Token("a PCI vendor", f"{HEX_ID}|nvidia|amd|intel", parse_vendor, number=True),
            "PCI vendor id, or nvidia, amd, intel",
        ),
        Key(
            "device",
            Token("a PCI device id", HEX_ID, parse_device_id, number=True),
            "PCI device id",
        ),
        Key("count", Number(1, 64), "how many of the kind"),
        Key("optional", FLAG, "start the VM without it when there is none"),
        Key("force", FLAG, "with `address`: take it even from the host's programs that use it"),
    ),
    rules.GPU_RULES,
)

NETWORK = Struct(
    model.Network,
    (
        Key(
            "type",
            Choice(model.NetworkType),
            "user (QEMU's own NAT), bridge, tap, vf (a virtual function of a network card)",
        ),
        Key("bridge", INTERFACE, "bridge: the host's bridge to join"),
        Key("tap", INTERFACE, "tap: the host's tap device to use"),
        Key("mac", Token("a MAC address", MAC, parse_mac), "made from the VM's uuid by default"),
        Key("model", Choice(model.NetworkModel), "what card the guest sees"),
        Key(
            "forwards",
            Items(
                Token(
                    "a forward such as tcp:127.0.0.1:2222:22", FORWARD, parse_forward, show_forward
                )
            ),
            "user: PROTOCOL:ADDRESS:HOSTPORT:GUESTPORT; an empty address is every address",
        ),
        Key(
            "hostLoopback",
            FLAG,
            "user: the guest may reach what listens on the host's loopback, as 10.0.2.2",
        ),
        Key("parent", PCI_TOKEN, "vf: PCI address of the network card, or of the very function"),
    ),
    rules.NETWORK_RULES,
)

DISPLAY = Words(
    Struct(
        Display,
        (
            Key("type", Choice(DisplayType), "where the picture goes", required=True),
            Key(
                "listen",
                Token("an IP address", r"[0-9A-Fa-f:.]+", parse_ip),
                "spice, vnc: IP address; a unix socket in the runtime folder by default",
            ),
            Key("port", Number(1, 65535), "spice, vnc: TCP port, on loopback unless `listen` is"),
            Key("passwordFile", FILE, "spice, vnc on TCP: file with the password, no newline"),
        ),
        (Rule(("type", "listen", "port", "passwordFile"), rules.check_display),),
    ),
    words={str(kind): Display(kind) for kind in DisplayType},
)

LOOKING_GLASS = Words(
    Struct(
        LookingGlass,
        (
            Key("width", Number(320, 16384), "pixels of the guest's screen"),
            Key("height", Number(200, 16384), "pixels of the guest's screen"),
            Key("hdr", FLAG, "room for 16 bits a channel"),
            Key("monitors", Number(1, 8), "shared frames: the guest's Nth host takes the Nth"),
        ),
    ),
    flags={False: None, True: LookingGlass()},
)

SHARE = Struct(
    model.Share,
    (
        Key("path", FILE, "directory of the host", required=True),
        # virtio-9p takes 31 bytes (MAX_TAG_LEN, hw/9pfs/9p.h), virtiofs 36.
        Key(
            "tag",
            Text("1 to 31 of A-Z, a-z, 0-9, '.', '_', '-'", pattern=r"[A-Za-z0-9._-]{1,31}"),
            "what the guest mounts it by",
            required=True,
        ),
        Key("readonly", FLAG, "the guest cannot write"),
    ),
)

USB_BY_PRODUCT = Struct(
    UsbByProduct,
    (
        Key("vendor", HEX_TOKEN, "vendor id as lsusb tells it", required=True),
        Key("product", HEX_TOKEN, "product id as lsusb tells it", required=True),
    ),
)

USB_BY_PORT = Struct(
    UsbByPort,
    (
        Key("bus", Number(1, 255), "bus number", required=True),
        Key(
            "port",
            Token(
                "a port such as 1.2",
                rules.USB_PORT,
                rules.parse_usb_port,
                number=True,
            ),
            "ports from the root hub to the device",
            required=True,
        ),
    ),
)


def _is_by_port(node: Node) -> bool:
    return isinstance(node, Mapping) and any(node.find(key) is not None for key in ("bus", "port"))


USB = OneOf(USB_BY_PRODUCT, USB_BY_PORT, _is_by_port, UsbByPort)

RESTART = Struct(
    model.Restart,
    (
        Key("policy", Choice(model.RestartPolicy), "after which ends the VM is started again"),
        Key("burst", Number(1, 1000), "restarts allowed within `period`"),
        Key("period", DURATION_TOKEN, "what counts as one burst; running so long resets the delay"),
        Key("delay", DURATION_TOKEN, "wait before the second restart in a row; it doubles"),
        Key("maxDelay", DURATION_TOKEN, "longest wait"),
    ),
    (Rule(("delay", "maxDelay"), rules.check_restart),),
)

STOP = Struct(
    model.Stop,
    (Key("timeout", DURATION_TOKEN, "how long the guest may take before it is made to end"),),
)

HOOKS = Struct(
    model.Hooks,
    (
        Key(
            "preStart", Items(ARGV), "before QEMU is started; a failure keeps the VM from starting"
        ),
        Key("postStart", Items(ARGV), "once the VM runs"),
        Key("preStop", Items(ARGV), "before the guest is asked to power down"),
        Key("postStop", Items(ARGV), "once QEMU has ended"),
    ),
    tuple(Rule((key,), rules.check_argv_of(key)) for key in rules.HOOK_KEYS),
)

QEMU = Struct(
    model.QemuOptions,
    (
        Key("binary", FILE, "another QEMU than the one on the PATH"),
        Key("args", Items(Text("an argument", least=0), most=256), "appended as they are"),
    ),
    (Rule(("binary",), rules.check_binary),),
)

VM = Struct(
    model.Vm,
    (
        Key("name", NAME_TEXT, "name of the VM; the file's stem by default"),
        Key("description", Text(least=0, lines=True), "for people"),
        Key("autostart", FLAG, "run as soon as its devices are there; false: only by `start`"),
        Key("after", Items(NAME_TEXT), "names of VMs that must be running first"),
        Key("uuid", UUID_TOKEN, "identity of the VM, made from the machine id and the name"),
        Key("cpus", CPUS, "virtual CPUs"),
        Key("memory", SIZE_TOKEN, "memory of the guest; a bare number is MiB", "memory_mib"),
        Key(
            "hugepages",
            Words(SIZE_TOKEN, flags={False: False, True: True}),
            "back the memory with huge pages: false, true (the host's default size), or a size",
        ),
        Key(
            "numa",
            Words(Number(0, 1023), words={"auto": AUTO, "none": None}),
            "NUMA node of the memory: auto (that of its GPU), none, or a node",
        ),
        Key(
            "machine",
            Text("a machine type of QEMU", pattern=r"[A-Za-z0-9._-]+", most=64),
            "machine type in QEMU's words",
        ),
        Key("accel", Choice(model.Accel), "auto takes KVM where it works, else TCG"),
        Key("firmware", Choice(model.Firmware), "SeaBIOS, or OVMF without or with secure boot"),
        Key("tpm", FLAG, "a TPM 2.0 (swtpm) whose state is kept"),
        Key("boot", Words(BOOT, words={"none": None}), "direct Linux boot"),
        Key("disks", Items(DISK), "disks, the first is booted from"),
        Key("cdroms", Items(FILE, most=8), "ISO images"),
        Key("gpus", Items(GPU, most=32), "what the VM asks of GPUs"),
        Key("networks", Items(NETWORK, most=32), "network cards; `[]` is none"),
        Key("display", DISPLAY, "where the picture goes: a word, or a map with a place"),
        Key("lookingGlass", LOOKING_GLASS, "shared frame for Looking Glass, of the right size"),
        Key(
            "audio",
            Choice(model.Audio),
            "where the sound goes; auto is spice with `display: spice`",
        ),
        Key("shares", Items(SHARE), "directories of the host for the guest: virtiofs, else 9p"),
        Key("usb", Items(USB), "USB devices of the host: {vendor, product} or {bus, port}"),
        Key("guestTools", FLAG, "attach the guest-tools ISO"),
        Key("hideHypervisor", FLAG, "do not tell the guest that it is one"),
        Key("restart", RESTART, "when the VM is started again"),
        Key("stop", STOP, "how the VM is stopped"),
        Key("hooks", HOOKS, "programs around a VM's life: lists of argument lists, no shell"),
        Key("qemu", QEMU, "escape hatch, listed by `arcsup doctor`"),
    ),
    rules.VM_RULES,
)
