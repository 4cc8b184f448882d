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
