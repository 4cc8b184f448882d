from pathlib import Path
from uuid import UUID

import pytest

from arcsup.errors import SpecError
from arcsup.model import (
    Cpus,
    Disk,
    DiskBus,
    DiskFormat,
    DisplayType,
    Firmware,
    GpuKind,
    GpuRequest,
    MacAddress,
    Network,
    NetworkModel,
    NetworkType,
    PciAddress,
    UsbByPort,
    UsbByProduct,
    Vm,
)
from arcsup.spec.imported import Imported, import_vm
from arcsup.spec.native import load_vm

DATA = Path(__file__).parent / "data" / "import"


def convert(text: str) -> tuple[Imported, Vm]:
    imported = import_vm(text, Path("100.conf"))
    return imported, load_vm(imported.text, Path("box.yaml"), "0")


def test_a_machine_is_carried_over() -> None:
    _, vm = convert((DATA / "104.conf").read_text())

    assert (vm.name, vm.description) == ("render-farm", "Renders: night shift only")
    assert vm.uuid == UUID("9a2f6f5e-1d5b-4d62-8f7e-2a5d5f1b8c3d")
    assert (vm.memory_mib, vm.autostart, vm.hide_hypervisor) == (16384, True, True)
    assert vm.cpus == Cpus(cores=8, model="host,pcid=on,aes=off")
    assert (vm.machine, vm.firmware, vm.tpm) == ("pc-q35-7.2", Firmware.UEFI_SECURE, True)
    assert vm.disks == (
        Disk("vm-104-disk-0.qcow2"),
        Disk("/dev/pve/vm-104-disk-0", None, DiskFormat.RAW, DiskBus.SCSI),
    )
    assert vm.cdroms == ("/var/lib/vz/template/iso/virtio-win.iso",)
    assert vm.gpus == (
        GpuRequest(mdev_type="nvidia-259", parent=PciAddress("0000:41:00.4")),
        GpuRequest(GpuKind.PASSTHROUGH, address=PciAddress("0000:42:00.0")),
    )
    assert vm.networks == (
        Network(NetworkType.BRIDGE, bridge="vmbr0", mac=MacAddress("bc:24:11:5c:3e:7a")),
        Network(mac=MacAddress("bc:24:11:5c:3e:7b"), model=NetworkModel.E1000E),
    )
    assert vm.display.type is DisplayType.SPICE
    assert vm.usb == (UsbByProduct(0x046D, 0xC52B), UsbByPort(1, "1.2"))
    assert vm.qemu.args == ("-global", "ICH9-LPC.disable_s3=1")


@pytest.mark.parametrize(
    "words",
    [
        "efidisk0: is not carried over",
        "hostpci1: x-vga: is not carried over",
        "net0: firewall, tag: is not carried over",
        "scsi0: iops: is not carried over",
        "scsi0: storage local-lvm is taken to be at /dev/pve",
        "virtio1: where storage tank is stands in Proxmox VE's storage.cfg",
        "protection: is not carried over",
        "[before-update]: and what follows is not carried over",
    ],
)
def test_what_is_not_carried_over_is_listed(words: str) -> None:
    imported, _ = convert((DATA / "104.conf").read_text())

    assert words in "\n".join(str(note) for note in imported.notes)
    assert words in imported.text


def test_a_key_that_nobody_knows_is_listed() -> None:
    imported, _ = convert("cores: 2\nfuture: 1\nfuture7: 1\n")

    assert [str(note) for note in imported.notes] == [
        "future: is not carried over",
        "future7: is not carried over",
    ]


def test_options_that_would_take_the_vm_out_of_hand_are_left_out_and_listed() -> None:
    imported, vm = convert("args: -qmp stdio -global a.b=1 -device e1000e,id=gpu0 -s\ncores: 1\n")

    assert vm.qemu.args == ("-global", "a.b=1")
    assert [str(note) for note in imported.notes] == [
        "args: -qmp: arcsup has its own monitor: use `arcsup qmp`, so it is left out",
        "args: -device: id gpu0 is arcsup's own, so it is left out",
        "args: -s: whoever connects could read and change the guest's memory, so it is left out",
    ]


def test_the_defaults_are_those_of_proxmox() -> None:
    _, vm = convert("ostype: l26\n")

    assert (vm.cpus, vm.memory_mib) == (Cpus(cores=1, model="kvm64"), 512)
    assert (vm.autostart, vm.networks, vm.display.type) == (False, (), DisplayType.VNC)


@pytest.mark.parametrize(
    ("volume", "expected"),
    [
        (
            "local:100/base-100-disk-0.qcow2/101/vm-101-disk-0.qcow2",
            Disk("/var/lib/vz/images/101/vm-101-disk-0.qcow2", bus=DiskBus.SCSI),
        ),
        (
            "local-zfs:base-100-disk-0/vm-101-disk-0",
            Disk("/dev/zvol/rpool/data/vm-101-disk-0", None, DiskFormat.RAW, DiskBus.SCSI),
        ),
        (
            "tank:100/base-100-disk-0.raw/101/vm-101-disk-0.qcow2",
            Disk("vm-101-disk-0.qcow2", bus=DiskBus.SCSI),
        ),
    ],
)
def test_a_linked_clone_is_found_where_its_own_volume_is(volume: str, expected: Disk) -> None:
    _, vm = convert(f"scsi0: {volume},size=8G\n")

    assert vm.disks == (expected,)


def test_the_base_of_a_linked_clone_in_a_file_is_told() -> None:
    imported, _ = convert("scsi0: local:100/base-100-disk-0.qcow2/101/vm-101-disk-0.qcow2\n")

    assert (
        "scsi0: is a linked clone: its base must be there, too, as ../100/base-100-disk-0.qcow2"
        in [str(note) for note in imported.notes]
    )


@pytest.mark.parametrize(
    "text",
    [
        "hostpci0: 0000:01:00.0;0000:01:00.1,x-vga=1\n",
        "hostpci0: host=01:00.0;01:00.1,x-vga=1\n",
        "hostpci0: 01:00.1\nhostpci1: 0000:01:00.0,x-vga=1\n",
    ],
)
def test_the_functions_of_one_card_are_one_gpu_and_the_others_are_told(text: str) -> None:
    imported, vm = convert(text)

    assert vm.gpus == (GpuRequest(GpuKind.PASSTHROUGH, address=PciAddress("0000:01:00.0")),)
    assert "0000:01:00.1 comes along with 0000:01:00.0 as its sound or USB" in imported.text


def test_a_slot_without_a_function_is_the_first_one_and_the_others_are_told() -> None:
    imported, vm = convert("hostpci0: 01:00,x-vga=1\n")

    assert vm.gpus == (GpuRequest(GpuKind.PASSTHROUGH, address=PciAddress("0000:01:00.0")),)
    assert [str(note) for note in imported.notes] == [
        "hostpci0: all functions of 01:00: here 0000:01:00.0, its sound and its USB",
        "hostpci0: x-vga: is not carried over",
    ]


def test_virtual_functions_of_one_slot_are_requests_of_their_own() -> None:
    _, vm = convert("hostpci0: 41:01.0;41:01.1\n")

    assert vm.gpus == (
        GpuRequest(GpuKind.VF, address=PciAddress("0000:41:01.0")),
        GpuRequest(GpuKind.VF, address=PciAddress("0000:41:01.1")),
    )


def test_a_device_that_may_be_no_gpu_is_told() -> None:
    imported, _ = convert("hostpci0: 03:00.0\nhostpci1: 03:02.0\n")

    first, second = (str(note) for note in imported.notes)
    assert first.startswith("hostpci0: 0000:03:00.0 is taken for a whole device: a GPU's virtual")
    assert second.startswith("hostpci1: 0000:03:02.0 is taken for a GPU's virtual function: a ne")


@pytest.mark.parametrize("cache", ["unsafe", "writethrough", "directsync"])
def test_a_cache_that_treats_writes_otherwise_is_told(cache: str) -> None:
    imported, _ = convert(f"scsi0: /srv/a.raw,cache={cache}\n")

    assert [str(note) for note in imported.notes] == ["scsi0: cache: is not carried over"]


def test_a_device_whose_name_has_a_dot_is_a_raw_disk() -> None:
    _, vm = convert("scsi0: /dev/disk/by-id/ata-Disk_1.5\n")

    assert vm.disks[0].format is DiskFormat.RAW


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cores\n", "100.conf:1:1: expected KEY: VALUE"),
        ("cores: 1\ncores: 2\n", "100.conf:2:1: cores: the key is there already"),
        ("cores: x\n", "100.conf:1:8: cpus.cores: expected"),
        ("hostpci0: mapping=gpu\n", "100.conf:1:11: hostpci0: mapping 'gpu' is known to Proxmox"),
        ("args: -qmp 'stdio\n", "100.conf:1:7: args: No closing quotation"),
        ("scsi0: local:100/a,format=vmdk\n", "scsi0: format vmdk is not supported: qemu-img"),
        ("scsi0: local:100/vm-100-disk-0.vmdk\n", "scsi0: format vmdk is not supported"),
        ("scsi0: /srv/old.qed\n", "scsi0: format qed is not supported"),
        ("net0: virtio=01:00:00:00:00:01\n", "networks[0].mac: '01:00:00:00:00:01'"),
    ],
)
def test_a_faulty_file_is_told_at_its_place(text: str, expected: str) -> None:
    with pytest.raises(SpecError) as caught:
        import_vm(text, Path("100.conf"))
    assert expected in caught.value.message
