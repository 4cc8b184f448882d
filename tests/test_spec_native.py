from pathlib import Path

import pytest
import yaml
from attrs import evolve

from arcsup.errors import SpecError
from arcsup.model import (
    AUTO,
    Boot,
    Cpus,
    CpuSet,
    Disk,
    Display,
    DisplayType,
    GpuKind,
    GpuRequest,
    LookingGlass,
    MacAddress,
    MiB,
    Network,
    PciAddress,
    Restart,
    Seconds,
    UsbByPort,
    UsbByProduct,
    Vm,
    VmName,
)
from arcsup.spec.identity import derive_mac, derive_uuid
from arcsup.spec.native import differences, load_vm, read_vm, vm_to_native
from arcsup.spec.tables import VM

DATA = Path(__file__).parent / "data"
MACHINE = "0123456789abcdef0123456789abcdef"


def vm(text: str) -> Vm:
    return load_vm(text, Path("box.yaml"), MACHINE)


def faults(text: str, file: str = "box.yaml") -> list[str]:
    parsed = read_vm(text, Path(file), MACHINE)
    assert (parsed.vm is None) == bool(parsed.faults)
    return [str(fault) for fault in parsed.faults]


def fault(text: str) -> str:
    (only,) = faults(text)
    return only


def test_a_file_that_says_nearly_nothing_has_every_default() -> None:
    assert vm("memory: 2GiB\n") == Vm(VmName("box"), derive_uuid(MACHINE, "box"))


def test_the_uuid_is_the_same_for_ever_and_another_on_another_machine() -> None:
    assert str(derive_uuid(MACHINE, "box")) == "fb626700-934f-56ac-ad31-c4d335b51a8a"
    assert derive_uuid(MACHINE + "\n", "box") == derive_uuid(MACHINE, "box")
    assert derive_uuid(MACHINE, "cat") != derive_uuid(MACHINE, "box")
    assert derive_uuid("f" * 32, "box") != derive_uuid(MACHINE, "box")


def test_a_derived_mac_is_in_the_range_of_qemu_and_differs_by_card() -> None:
    macs = {derive_mac(derive_uuid(MACHINE, "box"), index) for index in range(8)}

    assert len(macs) == 8
    assert all(mac.startswith("52:54:00:") and len(mac) == 17 for mac in macs)


@pytest.mark.parametrize(
    ("text", "attribute", "value"),
    [
        ("lookingGlass: true", "looking_glass", LookingGlass()),
        ("lookingGlass: false", "looking_glass", None),
        ("lookingGlass: {width: 2560}", "looking_glass", LookingGlass(2560)),
        ("display: spice", "display", Display(DisplayType.SPICE)),
        ("display: {type: vnc, port: 5901}", "display", Display(DisplayType.VNC, None, 5901)),
        ("numa: none", "numa", None),
        ("numa: auto", "numa", AUTO),
        ("numa: 1", "numa", 1),
        ("hugepages: yes", "hugepages", True),
        ("hugepages: 2MiB", "hugepages", MiB(2)),
        ("cpus: {pin: auto}", "cpus", Cpus(pin=AUTO)),
        ("cpus: {pin: none}", "cpus", Cpus()),
        ("cpus: {pin: 5}", "cpus", Cpus(pin=CpuSet(frozenset({5})))),
        ("cpus: {pin: [0, 2-3]}", "cpus", Cpus(pin=CpuSet(frozenset({0, 2, 3})))),
        ("boot: none", "boot", None),
        ("boot: {kernel: /boot/vmlinuz}", "boot", Boot("/boot/vmlinuz")),
        ("networks: []", "networks", ()),
        ("memory: 512", "memory_mib", MiB(512)),
        ("tpm: on", "tpm", True),
        ("usb: [{vendor: 046d, product: 1234}]", "usb", (UsbByProduct(0x046D, 0x1234),)),
        ("usb: [{bus: 1, port: 1.10}]", "usb", (UsbByPort(1, "1.10"),)),
        ("cdroms: ['a,b.iso']", "cdroms", ("a,b.iso",)),
        ("disks: [{path: b.qcow2, base: a.qcow2}]", "disks", (Disk("b.qcow2", base="a.qcow2"),)),
        ("restart: {delay: 1s}", "restart", Restart(delay=Seconds(1.0))),
        ("description: |\n  two\n  lines\n", "description", "two\nlines\n"),
    ],
)
def test_values_have_their_short_forms(text: str, attribute: str, value: object) -> None:
    assert getattr(vm(text), attribute) == value


def test_a_mac_of_digits_only_needs_no_quotes_although_yaml_takes_it_for_a_number() -> None:
    network = vm("networks: [{mac: 52:54:00:12:34:56}]").networks[0]

    assert network == Network(mac=MacAddress("52:54:00:12:34:56"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "description: no",
            'box.yaml:1:14: description: expected text; YAML takes no for a boolean, quote it: "',
        ),
        (
            "description: 2026-01-01",
            'description: expected text; YAML takes 2026-01-01 for a date, quote it: "2026-01-01"',
        ),
        ("description: 22:22", "YAML takes 22:22 for a number, quote it"),
        ("description: 1.5", "YAML takes 1.5 for a number, quote it"),
        ("description:", "box.yaml:1:13: description: has no value, expected text"),
        ('cdroms: ["a\\0b"]', "holds the control character U+0000, remove it"),
        ('cdroms: [""]', "cdroms[0]: must not be empty"),
        ("cdroms: [~/a.iso]", "cdroms[0]: expected a path"),
        (
            "cpus: {cores: 0123}",
            "cpus.cores: YAML takes 0123 for a number to another base, write it in decimal",
        ),
        ("cpus: {cores: 22:22}", "cpus.cores: YAML takes 22:22 for a number to another base"),
        (
            'cpus: {cores: "8"}',
            "cpus.cores: expected a whole number from 1 to 1024, got the text '8', unquote it",
        ),
        (
            "cpus: {cores: 2.0}",
            "cpus.cores: expected a whole number from 1 to 1024, got the number '2.0'",
        ),
        ("cpus: {cores: 0}", "from 1 to 1024, got the number '0'"),
        (
            "cpus: {cores: 1024, sockets: 64}",
            "cpus.cores: 65536 virtual CPUs in all, expected at most 4096",
        ),
        (
            "cpus: 4",
            "cpus: expected a map of cores, threads, sockets, model, pin, got the number '4'",
        ),
        ("memory: true", "memory: expected a size, got the boolean 'true'"),
        ("memory: 0", "expected 1MiB to 1024TiB"),
        ("tpm: 1", "tpm: expected true or false, got the number '1'"),
        ("accel: KVM", "accel: expected auto, kvm or tcg, got 'KVM'"),
        ("memroy: 1", "memroy: unknown key, did you mean memory?"),
        ("looking_glass: true", "unknown key, did you mean lookingGlass?"),
        ("cores: 4", "cores: unknown key, did you mean cpus.cores?"),
        ("<<: {memory: 1}", "merge keys are not supported"),
        ("xyzzy: 4", "xyzzy: unknown key, the README's table and `arcsup schema` have all"),
        ("stop: {zzz: 4}", "stop.zzz: unknown key, expected one of timeout"),
        (
            "memory: 1\nmemory: 2",
            "box.yaml:2:1: memory: the key is there already, on line 1; remove one",
        ),
        ("cpus: {cores: 1, cores: 2}", "box.yaml:1:18: cpus.cores: the key is there already"),
        ('"a\\nb": 1', "box.yaml:1:1: 'a\\nb': unknown key"),
        ("name: on", 'name: expected a name; YAML takes on for a boolean, quote it: "on"'),
        ("numa: far", "numa: expected auto, none or a whole number from 0 to 1023, got 'far'"),
        ("on: 1", "expected a key, got the boolean 'on', quote it: \"on\""),
        ("? [a]\n: 1", "expected a key, got a list"),
        ("after: [box]", "after[0]: names the VM itself"),
        ("after: [a, a]", "after[1]: a is named twice"),
        ("hugepages: 3MiB", "hugepages: 3 MiB is no page size"),
        (
            "hugepages: 1GiB\nmemory: 1536",
            "memory: 1536 MiB is no multiple of the huge page, 1024 MiB",
        ),
        ("disks: [{path: a}, {path: a}]", "disks[1].path: 'a' is disks[0].path already"),
        ("disks: [{path: a}, {path: ./a}]", "disks[1].path: './a' is disks[0].path already"),
        ("disks: [{path: a}, {path: b, base: a}]", "disks[1].base: 'a' is disks[0].path too"),
        ("disks: [{path: a}]\ncdroms: [a]", "cdroms[0]: 'a' is disks[0].path already"),
        ("disks: [{path: a, base: a}]", "disks[0].base: is the disk itself"),
        ("disks: [{path: a, base: b, format: raw}]", "an overlay needs `format: qcow2`, got raw"),
        (
            "disks: [{path: a, size: 1G, readonly: true}]",
            "disks[0].size: makes an image that nothing",
        ),
        ("disks: [{size: 1G}]", "disks[0].path: is missing"),
        (
            "disks: {path: a}",
            "a map of path, size, format, bus, readonly, base, ephemeral, got a map",
        ),
        (
            "gpus: [{kind: virtio, minVRam: 1}]",
            "gpus[0].minVRam: is for `kind: vgpu` and `kind: vf` only, this is virtio",
        ),
        ("gpus: [{kind: virtio, vendor: amd}]", "gpus[0].vendor: is for GPUs of the host"),
        ("networks: [{type: bridge}]", "networks[0].bridge: is missing"),
        (
            "networks: [{bridge: br0}]",
            "networks[0].bridge: is for `type: bridge` only, this is user",
        ),
        (
            "networks: [{type: tap, tap: t0, forwards: ['tcp::1:1']}]",
            "forwards: is for `type: user` only",
        ),
        (
            "networks: [{type: bridge, bridge: br0, hostLoopback: true}]",
            "networks[0].hostLoopback: is for `type: user` only, this is bridge",
        ),
        (
            "networks: [{mac: 52:54:00:00:00:01}, {mac: '52:54:0:0:0:1'}]",
            "networks[1].mac: 52:54:00:00:00:01 is that of networks[0]",
        ),
        (
            "networks: [{forwards: ['tcp::80:80', 'tcp:127.0.0.1:80:81']}]",
            "networks[0].forwards[1]: port 80 is taken by networks[0].forwards[0]",
        ),
        (
            "display: {type: none, port: 5900}",
            "display.port: is for spice and vnc only, this is none",
        ),
        ("display: {port: 5900}", "display.type: is missing"),
        (
            "display: spicy",
            "display: expected none, spice, vnc, gtk, egl-headless or a map of type, listen, port",
        ),
        ("audio: spice", "audio: spice needs `display: spice`, the display is none"),
        ("firmware: uefi-secure\nmachine: pc", "firmware: uefi-secure needs `machine: q35`"),
        (
            "shares: [{path: /a, tag: t}, {path: /b, tag: t}]",
            "shares[1].tag: 't' is the tag of shares[0]",
        ),
        (
            "hooks: {postStop: [[logger]]}",
            "hooks.postStop[0][0]: expected an absolute path, got 'logger'",
        ),
        ("hooks: {preStart: [[]]}", "hooks.preStart[0]: has 0 entries, expected 1 to 256"),
        ("qemu: {args: [1]}", "qemu.args[0]: expected an argument; YAML takes 1 for a number"),
        ("qemu: {binary: ./qemu}", "qemu.binary: expected a program's name or an absolute path"),
        ("restart: {delay: 1m}", "restart.delay: 60 s is more than maxDelay, 30 s"),
        ("usb: [{bus: 1}]", "usb[0].port: is missing"),
        ("usb: [046d:c52b]", "usb[0]: expected a map of vendor, product or of bus, port"),
        (
            "%TAG !n! tag:nimyaml.org,2016:\n---\nmemory: !n!custom:Config 1",
            "box.yaml:3:9: tag 'tag:nimyaml.org,2016:custom:Config' is not supported, remove it",
        ),
    ],
)
def test_a_fault_says_where_what_and_what_is_expected(text: str, expected: str) -> None:
    assert expected in fault(text)


def test_the_name_comes_from_the_key_else_from_the_file() -> None:
    assert vm("name: web-1").name == "web-1"
    assert vm("memory: 1G").name == "box"
    assert faults("memory: 1G", "/x/My VM.yaml") == [
        (
            "/x/My VM.yaml:1:1: name: the file's stem 'My VM': expected 1 to 63 of a-z, 0-9 and "
            "'-', no '-' at either end; rename the file or give a name"
        )
    ]


def test_a_faulty_file_still_tells_its_name() -> None:
    assert read_vm("name: web\nmemory: lots", Path("box.yaml"), MACHINE).name == "web"
    assert read_vm("name: [", Path("box.yaml"), MACHINE).name == "box"


def test_every_fault_of_an_awful_file_is_told_at_once() -> None:
    source = (DATA / "awful.yaml").read_bytes()

    told = read_vm(source, Path("awful.yaml"), MACHINE).faults

    assert "\n".join(map(str, told)) + "\n" == (DATA / "awful.faults").read_text()


def test_a_hundred_faults_are_enough() -> None:
    told = faults("\n".join(f"key{number}: 1" for number in range(150)))

    assert len(told) == 101
    assert told[-1] == "box.yaml:101:1: and 50 more faults"


def test_load_vm_raises_all_faults_one_a_line() -> None:
    with pytest.raises(SpecError) as caught:
        vm("memory: lots\nnaem: x\n")

    assert len(caught.value.message.splitlines()) == 2
    assert caught.value.message.startswith("box.yaml:1:9: memory: ")


def test_all_kinds_of_gpu_are_read() -> None:
    text = (
        "gpus:\n- {minVRam: 1G, maxVRam: 4096, suffix: Q, display: on, parent: 41:00.0}\n"
        "- {kind: passthrough, vendor: nvidia, device: 0x2230, count: 2, optional: true}\n"
    )
    wanted = Vm(
        VmName("box"),
        derive_uuid(MACHINE, "box"),
        gpus=(
            GpuRequest(
                min_vram_mib=MiB(1024),
                max_vram_mib=MiB(4096),
                suffix="Q",
                display=True,
                parent=PciAddress("0000:41:00.0"),
            ),
            GpuRequest(GpuKind.PASSTHROUGH, vendor="10de", device="2230", count=2, optional=True),
        ),
    )

    assert read_vm(text, Path("box.yaml"), MACHINE).vm == wanted


def test_a_screen_open_to_the_network_is_doubted_not_refused() -> None:
    parsed = read_vm("display: {type: vnc, listen: 0.0.0.0}", Path("box.yaml"), MACHINE)

    assert parsed.vm is not None
    assert "without a password" in parsed.warnings[0]
    asked = "display: {type: vnc, listen: 0.0.0.0, passwordFile: secret}"
    assert not read_vm(asked, Path("box.yaml"), MACHINE).warnings


def test_a_guest_that_may_reach_the_hosts_loopback_is_doubted_not_refused() -> None:
    parsed = read_vm("networks: [{}, {hostLoopback: true}]", Path("box.yaml"), MACHINE)

    assert parsed.vm is not None
    assert [network.host_loopback for network in parsed.vm.networks] == [False, True]
    [warning] = parsed.warnings
    assert "networks[1].hostLoopback: " in warning
    assert not read_vm("networks: [{}]", Path("box.yaml"), MACHINE).warnings


def test_a_password_is_for_tcp_only() -> None:
    parsed = read_vm("display: {type: vnc, passwordFile: secret}", Path("box.yaml"), MACHINE)

    assert [str(fault) for fault in parsed.faults] == [
        "box.yaml:1:36: display.passwordFile: is for TCP only: set listen or port, or leave it out"
    ]


def test_what_is_written_has_every_default_in_the_files_own_keys() -> None:
    written = vm_to_native(vm("cpus: {cores: 4}"))

    assert written["memory"] == "2GiB"
    assert written["cpus"] == {
        "cores": 4,
        "threads": 1,
        "sockets": 1,
        "model": "host",
        "pin": "none",
    }
    assert written["display"] == "none"
    assert [key.name for key in VM.keys if key.name != "description"] == list(written)
    assert vm(yaml.safe_dump(written)) == vm("cpus: {cores: 4}")


def test_differences_name_the_keys_of_the_file() -> None:
    old = vm("cpus: {cores: 2}\ndisks: [{path: a, size: 1G}]")
    new = vm("cpus: {cores: 4}\nmemory: 1G\ndisks: [{path: a, size: 2G}, {path: b}]\ntpm: on")

    assert differences(old, old) == ()
    assert differences(old, new) == ("cpus.cores", "memory", "tpm", "disks[0].size", "disks[1]")
    assert differences(old, evolve(old, display=Display(DisplayType.VNC, port=5901))) == (
        "display",
    )


def test_only_a_function_that_is_named_can_be_taken_by_force() -> None:
    parsed = read_vm("gpus: [{kind: passthrough, force: true}]\n", Path("a.yaml"), MACHINE)
    assert [fault.message for fault in parsed.faults] == [
        "is for the very function that `address` names, and there is none"
    ]
