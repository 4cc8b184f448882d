import os
from pathlib import Path

import pytest
from hypothesis import given, settings

from arcsup.model import (
    Audio,
    Cpus,
    Disk,
    DiskBus,
    DiskFormat,
    Display,
    DisplayType,
    Forward,
    GpuKind,
    GpuRequest,
    Hooks,
    LookingGlass,
    MacAddress,
    MiB,
    Network,
    NetworkModel,
    NetworkType,
    PciAddress,
    Share,
    Vm,
)
from arcsup.spec.native import Parsed, read_vm
from arcsup.spec.qemu_arguments import Verdict, judge_option
from arcsup.spec.together import Source, check_together
from tests.mutated import check_places, mutations

DATA = Path(__file__).parent / "data" / "import"
HEAD = "%YAML 1.2\n%TAG !n! tag:nimyaml.org,2016:\n--- !n!custom:Config\n"
LEAST = (
    HEAD + "root: /srv/arc\ncontainer: {kernel: a.arc, state: [], initialSize: 8, iso: !!null ~}\n"
)
FILE = Path("/home/ann/box.yaml")


def parse(text: str, file: Path = FILE) -> Parsed:
    parsed = read_vm(text, file, "0")
    assert (parsed.vm is None) == bool(parsed.faults)
    return parsed


def vm(text: str, file: Path = FILE) -> Vm:
    parsed = parse(text, file)
    assert parsed.vm is not None, parsed.faults
    return parsed.vm


def faults(text: str) -> list[str]:
    return [str(fault).removeprefix(f"{FILE}:") for fault in parse(text).faults]


def warnings(text: str) -> str:
    return "\n".join(parse(text).warnings)


def gpu(*keys: str) -> GpuRequest:
    (request,) = vm(LEAST + "gpus:\n  -\n" + "".join(f"    - {key}\n" for key in keys)).gpus
    return request


def test_the_least_file_is_the_machine_that_arcd_made_of_it() -> None:
    found = vm(LEAST)

    assert (found.name, found.autostart, found.memory_mib) == ("box", False, 8192)
    assert found.cpus == Cpus(cores=4, threads=1, sockets=1)
    assert found.disks == (
        Disk("/srv/arc/kernel/a.arc", MiB(8192), DiskFormat.QCOW2, DiskBus.SATA),
    )
    forwards = (Forward("tcp", "127.0.0.1", 2222, 22),)
    assert found.networks == (Network(model=NetworkModel.RTL8139, forwards=forwards),)
    assert (found.looking_glass, found.audio) == (LookingGlass(3840, 2160), Audio.SCREAM)
    assert found.hide_hypervisor is False


def test_every_key_is_read_into_the_same_model_as_a_native_file() -> None:
    found = vm((DATA / "workstation.yaml").read_text(), DATA / "workstation.yaml")

    assert found.description == "CAD # 1"
    assert found.cpus == Cpus(cores=6, threads=2, model="EPYC,topoext=on")
    assert (found.memory_mib, found.hide_hypervisor) == (16384, True)
    assert [disk.path for disk in found.disks] == [
        "/srv/arc/kernel/workstation.arc",
        "/srv/arc/states/projects.qcow2",
        "/srv/arc/states/scratch.raw",
    ]
    assert [disk.format for disk in found.disks] == ["qcow2", "qcow2", "raw"]
    assert found.cdroms == ("/srv/iso/tools.iso",)
    assert found.gpus == (
        GpuRequest(
            min_vram_mib=MiB(2048),
            max_vram_mib=MiB(4096),
            suffix="Q",
            parent=PciAddress("0000:41:00.0"),
        ),
        GpuRequest(GpuKind.VF, vendor="1002", acceptable_types=("S7150",), min_vram_mib=MiB(512)),
        GpuRequest(GpuKind.PASSTHROUGH, address=PciAddress("0000:42:00.0")),
    )
    assert found.networks[0].forwards == (
        Forward("tcp", "127.0.0.1", 2230, 22),
        Forward("tcp", "127.0.0.1", 13389, 3389),
        Forward("udp", "127.0.0.1", 15000, 5000),
    )
    assert found.networks[1] == Network(NetworkType.VF, mac=MacAddress("02:11:22:33:44:55"))
    assert found.display == Display(DisplayType.SPICE, "127.0.0.1", 5930)
    assert found.shares == (Share("/srv/projects", "shared"),)
    assert found.hooks == Hooks(
        pre_start=(("/bin/sh", "-c", "/usr/bin/smbd -i &"), ("/usr/bin/logger", "starts")),
        post_start=(("/bin/sh", "-c", 'ssh -p 2230 localhost "$ARCSUP_UUID"'),),
        post_stop=(("/usr/bin/killall", "smbd"),),
    )
    assert found.qemu.args == ("-set", "device.gpu0.x-pci-device-id=0x1e30", "-global")


def test_what_is_otherwise_than_it_was_is_said_once_each() -> None:
    file = DATA / "workstation.yaml"
    paths = [
        w.removeprefix(f"{file}: ").split(":")[0] for w in parse(file.read_text(), file).warnings
    ]

    assert sorted(paths) == sorted(
        [
            *("is started by `arcsup start` only, as arcd did (autostart", "connectivity"),
            *("nographics", "vncPort", "shareddir"),
            *("startupCommands[0].list[0]", "startupCommands[0].is_root", "installCommands"),
            *("commands[3]", "startintro"),
            *("installOs", "sudo", "blacklistedPci[0]", "qemu.args"),
        ]
    )


def test_a_file_of_the_first_version_is_read() -> None:
    found = vm((DATA / "first.yaml").read_text(), DATA / "first.yaml")

    assert found.networks[0].forwards == (Forward("tcp", "127.0.0.1", 2222, 22),)
    assert found.display == Display(DisplayType.VNC)
    assert found.qemu.args[0] == "-device"


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (("gpuType: sysfsdev", "mdevType: nvidia-1"), GpuRequest(mdev_type="nvidia-1")),
        (
            ("gpuType: sysfsdev", 'mdevType: ""', "parentPort: !!null ~"),
            GpuRequest(min_vram_mib=MiB(1000), max_vram_mib=MiB(2000)),
        ),
        (("maxVRam: -1", "minVRam: 0", "gpuType: sysfsdev"), GpuRequest()),
        (
            ("gpuType: passthrough", "bdf: 41:00.0"),
            GpuRequest(GpuKind.PASSTHROUGH, address=PciAddress("0000:41:00.0")),
        ),
        (("gpuType: sriovdev", "acceptableTypes: []"), GpuRequest(GpuKind.VF, vendor="1002")),
        (
            ("maxVRam: -1", "minVRam: 1000", "gpuType: sriovdev", "acceptableTypes: [S7150, V]"),
            GpuRequest(
                GpuKind.VF,
                vendor="1002",
                acceptable_types=("S7150", "V"),
                min_vram_mib=MiB(1000),
            ),
        ),
    ],
)
def test_a_gpu_is_asked_for_as_arcd_looked_for_it(
    keys: tuple[str, ...], expected: GpuRequest
) -> None:
    assert gpu(*keys) == expected


def test_limits_beside_an_address_are_not_looked_at_and_that_is_said() -> None:
    text = LEAST + "gpus: [{gpuType: passthrough, bdf: 41:00.0, maxVRam: 9}]"

    assert any("gpus[0].maxVRam: is not looked at" in told for told in parse(text).warnings)


def test_a_gpu_may_be_one_map_too() -> None:
    found = vm(LEAST + "gpus: [{gpuType: sysfsdev, mdevType: nvidia-1}]")

    assert found.gpus == (GpuRequest(mdev_type="nvidia-1"),)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (HEAD + "root: /x", "3:5: container: is missing"),
        (LEAST + "sshport: 1", "6:1: sshport: unknown key, did you mean sshPort?"),
        (LEAST + "memory: 1", "6:1: memory: unknown key, the README of LibVF.IO has its keys"),
        (LEAST + "spicePort: many", "6:12: spicePort: expected"),
        (LEAST + "gpus:\n  - - gpuType: nvidia", "7:16: gpus[0].gpuType: expected sriovdev"),
        (LEAST + "gpus:\n  - - maxVram: 1\n    - gpuType: sysfsdev", "did you mean maxVRam?"),
        (LEAST + "gpus:\n  - - maxVRam: 1", "7:5: gpus[0].gpuType: is missing"),
        (LEAST + "gpus: [[1]]", "6:8: gpus[0]: expected a map of gpuType"),
        (LEAST + "gpus: [{gpuType: passthrough}]", "gpus[0].bdf: is missing: give the PCI address"),
        (
            LEAST + "gpus: [{gpuType: passthrough, bdf: x}]",
            "6:36: gpus[0].bdf: 'x': expected a PCI address",
        ),
        (
            LEAST + "gpus: [{gpuType: sriovdev, mdevType: x}]",
            "gpus[0].mdevType: is for `gpuType: sysfsdev` only",
        ),
        (
            LEAST + "gpus: [{gpuType: sysfsdev, minVRam: 9, maxVRam: 8}]",
            "6:37: gpus[0].minVRam: 9 MiB is more than maxVRam",
        ),
        (
            LEAST + "nics: [{mac: 01:02:03:04:05:06}]",
            "6:14: nics[0].mac: '01:02:03:04:05:06': is a multicast",
        ),
        (LEAST + "spice: true\nsshPort: 5900", "display.port"),
        (LEAST.replace("/srv/arc", "images"), "4:7: root: expected an absolute path"),
        (LEAST + "blacklistedPci: [x]", "6:18: blacklistedPci[0]: 'x': expected a PCI address"),
        (
            LEAST + "commands: [{arg: -qmp, values: [stdio]}]",
            "6:12: commands[0]: -qmp: arcsup has its own monitor",
        ),
        (
            LEAST + "commands: [{arg: --chardev, values: [null, id=qmp]}]",
            "commands[0].values[0]: has no value",
        ),
        (
            LEAST + "commands: [{arg: --chardev, values: [stdio, id=qmp]}]",
            "commands[0]: -chardev: id qmp is arcsup's own",
        ),
        (LEAST + "commands: [{arg: device}]", "commands[0]: 'device' is no option"),
        (HEAD + "container: {kernel: a}\n---\nb: 1", "5:1: a second document begins"),
        ("%TAG !n! tag:nimyaml.org,2016:\n--- !n!custom:Other\ncontainer: 1", "is not supported"),
    ],
)
def test_a_fault_is_told_in_the_words_and_at_the_place_of_the_file(
    text: str, expected: str
) -> None:
    assert expected in "\n".join(faults(text))


def test_a_file_without_the_tag_is_known_by_its_container() -> None:
    assert vm("root: /x\ncontainer: {kernel: a}").disks[0].path == "/x/kernel/a"


def test_tags_of_libvfio_are_taken_anywhere_in_its_files() -> None:
    text = HEAD + "root: /x\nsshPort: !n!system:int32 99\ncontainer: !n!custom:C {kernel: a}\n"

    assert vm(text).networks[0].forwards[0].host_port == 99


def test_the_home_in_root_is_that_of_whose_file_it_is() -> None:
    text = LEAST.replace("/srv/arc", "~/arc")

    assert vm(text).disks[0].path == "/home/ann/arc/kernel/a.arc"
    elsewhere = parse(text, Path("/etc/arcsup/vms/box.yaml"))
    assert elsewhere.vm is not None
    assert elsewhere.vm.disks[0].path == os.path.expanduser("~/arc/kernel/a.arc")
    assert any("root: ~ is taken for" in warning for warning in elsewhere.warnings)


def test_the_name_is_made_of_the_files_name_and_else_of_the_label() -> None:
    assert vm(LEAST, Path("/x/My VM!.yaml")).name == "my-vm"
    assert vm(LEAST + "name: Ann's", Path("/x/#.yaml")).name == "ann-s"
    assert parse(LEAST, Path("/x/#.yaml")).vm is None


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ("spice: true", Display(DisplayType.SPICE, "127.0.0.1", 5900)),
        ("vncPort: 5901", Display(DisplayType.VNC, "127.0.0.1", 5901)),
        ("vncPort: 80\nnographics: true", Display()),
        ("nographics: true", Display()),
        ("nographics: false", Display(DisplayType.VNC)),
    ],
)
def test_the_picture_is_shown_to_nobody_but_this_host(keys: str, expected: Display) -> None:
    assert vm(LEAST + keys).display == expected


def test_a_port_for_ssh_can_be_left_out_and_is_given_once() -> None:
    assert vm(LEAST + "sshPort: -1").networks[0].forwards == ()
    double = "sshPort: 2222\nconnectivity: {exposedPorts: [{guest: 22, host: 2222}]}"
    assert len(vm(LEAST + double).networks[0].forwards) == 1


def test_images_that_two_files_write_are_told_at_their_lines() -> None:
    sources = []
    for name in ("a", "b"):
        file = Path(f"/x/{name}.yaml")
        text = LEAST + f"sshPort: {2000 + ord(name)}\n"
        parsed = parse(text, file)
        sources.append(Source(file, parsed.name, text, parsed.vm))

    (found,) = check_together(sources, os.path.normpath)[Path("/x/b.yaml")]

    assert str(found).startswith("/x/b.yaml:5:21: disks[0].path: image /srv/arc/kernel/a.arc")


@pytest.mark.parametrize(
    ("option", "value", "verdict"),
    [
        ("-mon", "chardev=x", Verdict.REFUSED),
        ("--uuid", "x", Verdict.REFUSED),
        ("-sandbox", "off", Verdict.REFUSED),
        ("-m", "1G", Verdict.REFUSED),
        ("-vnc", "0.0.0.0:0", Verdict.REFUSED),
        ("-device", "e1000e,id=gpu0", Verdict.REFUSED),
        ("-netdev", "user,id=net0", Verdict.REFUSED),
        ("-soundhw", "hda", Verdict.LEFT_OUT),
        ("-device", "e1000e,id=mine", Verdict.PASSED),
        ("-global", "", Verdict.PASSED),
    ],
)
def test_raw_options_are_held_against_what_arcsup_sets(
    option: str, value: str, verdict: Verdict
) -> None:
    assert judge_option(option, value).verdict is verdict


SEEDS = [(DATA / name).read_text() for name in ("workstation.yaml", "first.yaml")]


@given(mutations(SEEDS, ":-[]{}\"'&*!~ \n0129.,noay/"))
@settings(max_examples=250, deadline=None)
def test_mutated_files_give_a_vm_or_faults_inside_the_file(source: str) -> None:
    parsed = read_vm(source, FILE, "0")

    assert (parsed.vm is None) == bool(parsed.faults)
    check_places(parsed.faults, source)
    assert not any("\n" in warning for warning in parsed.warnings)
