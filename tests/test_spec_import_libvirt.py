from pathlib import Path
from uuid import UUID

import pytest

from arcsup.errors import SpecError
from arcsup.model import (
    Audio,
    Cpus,
    CpuSet,
    Disk,
    DiskBus,
    DiskFormat,
    Display,
    DisplayType,
    Firmware,
    GpuKind,
    GpuRequest,
    Hooks,
    LookingGlass,
    MacAddress,
    Network,
    NetworkModel,
    NetworkType,
    PciAddress,
    Share,
    UsbByProduct,
    Vm,
)
from arcsup.spec.imported import Imported, import_vm
from arcsup.spec.native import load_vm

DATA = Path(__file__).parent / "data" / "import"


def convert(text: str) -> tuple[Imported, Vm]:
    imported = import_vm(text, Path("box.xml"))
    return imported, load_vm(imported.text, Path("box.yaml"), "0")


def domain(inside: str, kind: str = "kvm") -> str:
    return f"<domain type='{kind}'>\n<name>box</name>\n{inside}\n</domain>"


def test_a_domain_is_carried_over() -> None:
    imported, vm = convert((DATA / "build.xml").read_text())

    assert (vm.name, vm.description) == ("build-machine", "builds")
    assert vm.uuid == UUID("3d0a29c5-bd0a-4f0c-9f3f-0d9c3f1a2b4c")
    assert (vm.memory_mib, vm.hugepages, vm.autostart) == (8192, True, False)
    pin = CpuSet(frozenset({2, 3}))
    assert vm.cpus == Cpus(cores=2, threads=2, model="host,vmx=off", pin=pin)
    assert (vm.machine, vm.firmware, vm.tpm) == ("pc-q35-7.2", Firmware.UEFI_SECURE, True)
    assert vm.disks == (
        Disk("/var/lib/libvirt/images/build.qcow2"),
        Disk("/dev/vg0/scratch", None, DiskFormat.RAW, DiskBus.SATA, readonly=True),
    )
    assert vm.cdroms == ("/srv/iso/tools.iso",)
    assert vm.gpus == (
        GpuRequest(display=True),
        GpuRequest(GpuKind.PASSTHROUGH, address=PciAddress("0000:41:00.0")),
    )
    assert vm.networks == (
        Network(NetworkType.BRIDGE, bridge="br0", mac=MacAddress("52:54:00:aa:bb:cc")),
        Network(model=NetworkModel.E1000E),
    )
    assert vm.display == Display(DisplayType.SPICE, None, 5940)
    assert (vm.audio, vm.looking_glass) == (Audio.SPICE, LookingGlass())
    assert vm.shares == (Share("/srv/ccache", "c-cache"),)
    assert vm.usb == (UsbByProduct(0x046D, 0xC52B),)
    assert vm.hide_hypervisor is True
    assert vm.qemu.args == ("-global", "ICH9-LPC.disable_s3=1")
    assert "# the build machine" in imported.text
    assert "  # grows fast\n  - path:" in imported.text


@pytest.mark.parametrize(
    "words",
    [
        "<currentMemory>: is not carried over",
        "<cputune>/<shares>: is not carried over",
        "<disk> vdb: is not carried over: a disk from a network",
        "mdev b1b0c7a0-5b5a-4cf4-9d3c-8f1c7a0b5b5a: libvirt does not say of which type",
        "0000:41:00.1 comes along",
        "the password is not carried over",
        "<channel>: org.example.0: is not carried over",
        "<watchdog>: is not carried over",
        "-no-hpet is left out",
        "offset localtime",
    ],
)
def test_what_is_not_carried_over_is_listed(words: str) -> None:
    imported, _ = convert((DATA / "build.xml").read_text())

    assert words in "\n".join(str(note) for note in imported.notes)
    assert words in imported.text


def test_an_element_that_nobody_knows_is_listed() -> None:
    imported, _ = convert(domain("<future/><devices><gadget/></devices>"))

    assert [n.path for n in imported.notes] == ["", "<future>", "<gadget>"]


def hostdev(bus: int, slot: int, function: int) -> str:
    address = f"<address domain='0x0' bus='{bus:#x}' slot='{slot:#x}' function='{function:#x}'/>"
    return f"<hostdev mode='subsystem' type='pci'><source>{address}</source></hostdev>"


def test_the_sound_of_a_card_comes_along_wherever_it_stands() -> None:
    imported, vm = convert(domain(f"<devices>{hostdev(1, 0, 1)}{hostdev(1, 0, 0)}</devices>"))

    assert vm.gpus == (GpuRequest(GpuKind.PASSTHROUGH, address=PciAddress("0000:01:00.0")),)
    assert "<hostdev>: 0000:01:00.1 comes along with 0000:01:00.0" in imported.text


def test_a_usb_device_on_a_bus_of_the_same_number_is_no_card() -> None:
    usb = "<hostdev type='usb'><source><address bus='1' device='3'/></source></hostdev>"

    _, vm = convert(domain(f"<devices>{usb}{hostdev(1, 0, 1)}</devices>"))

    assert vm.gpus == (GpuRequest(GpuKind.PASSTHROUGH, address=PciAddress("0000:01:00.1")),)


def test_virtual_functions_of_one_slot_are_requests_of_their_own() -> None:
    imported, vm = convert(domain(f"<devices>{hostdev(3, 2, 0)}{hostdev(3, 2, 1)}</devices>"))

    assert vm.gpus == (
        GpuRequest(GpuKind.VF, address=PciAddress("0000:03:02.0")),
        GpuRequest(GpuKind.VF, address=PciAddress("0000:03:02.1")),
    )
    assert "comes along" not in imported.text


def test_a_device_that_may_be_no_gpu_is_told() -> None:
    imported, _ = convert(domain(f"<devices>{hostdev(3, 0, 0)}</devices>"))

    assert "<hostdev>: 0000:03:00.0 is taken for a whole device: a GPU's virtual" in imported.text


def test_a_network_cards_function_is_the_one_that_the_domain_names() -> None:
    address = "<address type='pci' domain='0x0' bus='0x3' slot='0x2' function='0x1'/>"
    interface = f"<interface type='hostdev'><source>{address}</source></interface>"

    _, vm = convert(domain(f"<devices>{interface}</devices>"))

    assert vm.networks == (Network(NetworkType.VF, parent=PciAddress("0000:03:02.1")),)


@pytest.mark.parametrize("end", ["&#10;", "&#13;", "&#x85;", "&#x2028;"])
def test_what_a_note_quotes_cannot_go_on_as_a_key_of_the_file(end: str) -> None:
    source = f"<source network='a{end}hooks: {{preStart: [[/bin/sh]]}}{end}#'/>"

    _, vm = convert(domain(f"<devices><interface type='network'>{source}</interface></devices>"))

    assert vm.hooks == Hooks()


def test_the_name_of_the_file_cannot_go_on_as_a_key() -> None:
    imported = import_vm(domain(""), Path("a\nautostart: true\n#.xml"))

    assert load_vm(imported.text, Path("box.yaml"), "0").autostart is False


def test_of_a_plain_desktop_there_is_nothing_to_tell() -> None:
    imported, vm = convert((DATA / "desktop.xml").read_text())

    assert [str(note) for note in imported.notes] == [
        "libvirt keeps elsewhere what starts by itself: autostart is false"
    ]
    assert vm.display == Display(DisplayType.SPICE)


DISK = "<disk><source file='/a'/>{}<target dev='vda' bus='virtio'/></disk>"
CARD = "<interface type='bridge'><source bridge='br0'/>{}</interface>"


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        (DISK.format("<driver cache='unsafe'/>"), "<disk> vda/<driver>: cache unsafe"),
        (DISK.format("<driver discard='ignore'/>"), "<disk> vda/<driver>: discard ignore"),
        (DISK.format("<serial>1</serial>"), "<disk> vda/<serial>"),
        (DISK.format("<auth username='me'/>"), "<disk> vda/<auth>"),
        (DISK.format("<blockio logical_block_size='4096'/>"), "<disk> vda/<blockio>"),
        (DISK.format("<future/>"), "<disk> vda/<future>"),
        ("<disk future='on'><source file='/a'/></disk>", "<disk>: future on"),
        (CARD.format("<link state='down'/>"), "<interface>/<link>: state down"),
        (CARD.format("<mtu size='9000'/>"), "<interface>/<mtu>"),
        (CARD.format("<boot order='1'/>"), "<interface>/<boot>"),
        (CARD.format("<virtualport type='openvswitch'/>"), "<interface>/<virtualport>"),
        (CARD.format("<vlan><tag id='4'/></vlan>"), "<interface>/<vlan>"),
        ("<graphics type='spice'><gl enable='yes'/></graphics>", "<graphics>/<gl>: enable yes"),
        (
            "<graphics type='vnc'/><graphics type='egl-headless'><gl rendernode='/r'/></graphics>",
            "<graphics>/<gl>: rendernode /r",
        ),
        ("<video><model type='vga' heads='2'/></video>", "<video>/<model>: heads 2"),
        ("<hostdev type='mdev' ramfb='on'/>", "<hostdev>: ramfb on"),
        ("<tpm><backend type='emulator' version='1.2'/></tpm>", "<tpm>/<backend>: version 1.2"),
        (
            "<filesystem accessmode='mapped'><source dir='/a'/><target dir='a'/></filesystem>",
            "<filesystem>: accessmode mapped",
        ),
        ("<input type='evdev'/>", "<input>: type evdev"),
        ("<serial type='tcp'/>", "<serial>: type tcp"),
        ("<memory model='dimm'/>", "<memory>"),
        ("<disk type='network' device='cdrom'/>", "<disk>"),
    ],
)
def test_what_changes_a_device_and_is_not_carried_over_is_listed(
    device: str, expected: str
) -> None:
    imported, _ = convert(domain(f"<devices>{device}</devices>"))

    assert any(str(note).startswith(f"{expected}: is not ca") for note in imported.notes)


@pytest.mark.parametrize(
    ("inside", "expected"),
    [
        ("<os><boot dev='network'/></os>", "<os>/<boot>: dev network: is not carried over"),
        ("<os><boot dev='cdrom'/></os>", "<os>/<boot>: cdrom boots first there"),
        ("<os><loader type='rom'>/bios</loader></os>", "<os>/<loader>: is not carried over"),
        ("<os><bootmenu enable='yes'/></os>", "<os>/<bootmenu>: enable yes: is not carried over"),
        (
            "<cpu mode='custom'><model vendor_id='X'>host</model></cpu>",
            "<cpu>/<model>: vendor_id X",
        ),
        ("<cpu><cache mode='passthrough'/></cpu>", "<cpu>/<cache>: is not carried over"),
        ("<cpu><topology dies='2'/></cpu>", "<cpu>/<topology>: dies 2: is not carried over"),
        ("<features><pmu state='off'/></features>", "<features>/<pmu>: is not carried over"),
        ("<memoryBacking><locked/></memoryBacking>", "<memoryBacking>/<locked>: is not carried"),
        ("<vcpu placement='auto'>2</vcpu>", "<vcpu>: placement auto: is not carried over"),
        ("<clock><timer name='tsc'/></clock>", "<clock>/<timer>: name tsc: is not carried over"),
        (
            "<devices><disk device='cdrom'><source file='/a'/><boot order='1'/></disk></devices>",
            "<disk>: boots first there: here disks do, then CD-ROMs",
        ),
        (
            "<devices><graphics type='vnc' autoport='yes' listen='0.0.0.0'/></devices>",
            "<graphics>: listens on 0.0.0.0 there: here on a unix socket",
        ),
    ],
)
def test_what_changes_the_machine_and_is_not_carried_over_is_listed(
    inside: str, expected: str
) -> None:
    imported, _ = convert(domain(inside))

    assert any(str(note).startswith(expected) for note in imported.notes)


def test_disks_are_in_the_order_in_which_they_boot() -> None:
    order = {"a": "", "b": "<boot order='3'/>", "c": "<boot order='2'/>"}
    disks = "".join(f"<disk><source file='/{n}'/>{boot}</disk>" for n, boot in order.items())

    _, vm = convert(domain(f"<devices>{disks}</devices>"))

    assert [disk.path for disk in vm.disks] == ["/c", "/b", "/a"]


def test_the_password_of_a_display_is_written_nowhere() -> None:
    imported, _ = convert((DATA / "build.xml").read_text())

    assert "secret" not in imported.text


@pytest.mark.parametrize(
    "inside",
    [
        "<source file='/a'><encryption format='luks'/></source>",
        "<source file='/a'/><encryption format='qcow'/>",
    ],
)
def test_an_encrypted_disk_is_refused(inside: str) -> None:
    with pytest.raises(SpecError) as caught:
        convert(domain(f"<devices><disk>{inside}</disk></devices>"))

    assert "<disk>: is encrypted, and arcsup has no key: qemu-img convert it" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<domain>", "no XML: no element found"),
        ("<network/>", "1:1: expected <domain>, got <network>"),
        (domain("", "xen"), "1:1: <domain>: type 'xen' is no QEMU"),
        (domain("<memory>lots</memory>"), "3:1: <memory>: 'lots' 'KiB' is no size"),
        (domain("<uuid>1</uuid>"), "3:1: uuid: '1': expected a UUID"),
        (domain("<vcpu>no</vcpu>"), "3:1: cpus.cores: expected"),
        (domain("<os><type arch='aarch64'/></os>"), "arch aarch64 is not supported"),
        (
            '<!DOCTYPE domain [<!ENTITY a "b">]>\n' + domain("<title>&a;</title>"),
            "a document type is not supported, remove it",
        ),
        ("<domain>" + "<a>" * 40, "more than 32 levels"),
        (
            domain("<devices><disk><driver type='vmdk'/><source file='/a'/></disk></devices>"),
            "<disk>: format vmdk is not supported: qemu-img convert it",
        ),
    ],
)
def test_a_faulty_domain_is_told_at_its_place(text: str, expected: str) -> None:
    with pytest.raises(SpecError) as caught:
        import_vm(text, Path("box.xml"))
    assert expected in caught.value.message
    assert caught.value.message.startswith("box.xml:")
