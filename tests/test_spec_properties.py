"""No input does anything but give a VM or faults with a place; what is written is read back."""

from pathlib import Path
from posixpath import normpath
from uuid import UUID

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from arcsup import model
from arcsup.model import AUTO, CpuSet, MacAddress, MiB, PciAddress, Seconds, VmName
from arcsup.spec.native import load_vm, read_vm, vm_to_native
from arcsup.spec.nodes import compose
from arcsup.spec.tables import GPU
from tests.mutated import check_places, mutations

ROOT = Path(__file__).parent.parent
SEEDS = [file.read_text() for file in sorted((ROOT / "examples").glob("*.yaml"))]
SEEDS.append((ROOT / "tests" / "data" / "awful.yaml").read_text())
FILE = Path("box.yaml")


def check(source: str | bytes) -> None:
    parsed = read_vm(source, FILE, "0")
    assert (parsed.vm is None) == bool(parsed.faults)
    text = source.decode("utf-8", "replace") if isinstance(source, bytes) else source
    check_places(parsed.faults, text)


@given(st.binary(max_size=300))
@settings(deadline=None)
def test_random_bytes_give_faults_inside_the_file(source: bytes) -> None:
    check(source)


@given(st.text(st.sampled_from("ab:-[]{}\"'&*!|>%@#,?<\t\r\n 01.~\x85\ufeff"), max_size=80))
@settings(deadline=None)
def test_random_punctuation_gives_faults_inside_the_file(source: str) -> None:
    check(source)


@given(mutations(SEEDS, ":-[]{}\"'&*! \n0129.,~noay"))
@settings(max_examples=300, deadline=None)
def test_mutated_examples_give_faults_inside_the_file(source: str) -> None:
    check(source)


TEXT = st.text(
    st.characters(min_codepoint=32, exclude_categories=["Cc", "Cs", "Zl", "Zp", "Cn", "Co"]),
    min_size=1,
    max_size=12,
).filter(lambda text: "\ufeff" not in text)
PATHS = TEXT.filter(lambda text: not text.startswith("~"))
NAMES = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True).map(VmName)
SIZES = st.integers(1, 1 << 22).map(MiB)
TIMES = st.integers(1, 10_000_000).map(lambda ms: Seconds(ms / 1000))
ADDRESSES = st.from_regex(r"[0-9a-f]{4}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]", fullmatch=True).map(
    PciAddress
)
MACS = st.binary(min_size=6, max_size=6).map(
    lambda octets: MacAddress(f"{octets[0] & 0xFE | 2:02x}:" + octets[1:].hex(":"))
)
PORTS = st.integers(1, 65535)
IPS = st.ip_addresses().map(str).filter(lambda address: "%" not in address)


ARGV = st.lists(TEXT, max_size=3).map(lambda rest: ("/usr/bin/true", *rest))
ARGVS = st.lists(ARGV, max_size=2).map(tuple)
DISKS = st.lists(
    st.builds(
        model.Disk,
        path=PATHS,
        size_mib=st.none() | SIZES,
        bus=st.sampled_from(model.DiskBus),
    ),
    max_size=3,
    unique_by=lambda disk: normpath(disk.path),
).map(tuple)
NETWORKS = st.lists(
    st.builds(model.Network, mac=st.none() | MACS, model=st.sampled_from(model.NetworkModel))
    | st.builds(
        model.Network,
        forwards=st.tuples(
            st.builds(
                model.Forward, st.sampled_from(["tcp", "udp"]), IPS | st.just(""), PORTS, PORTS
            )
        ),
    )
    | st.builds(
        model.Network, type=st.just(model.NetworkType.BRIDGE), bridge=st.just("br0"), mac=MACS
    ),
    max_size=1,
).map(tuple)
SHARES = st.lists(
    st.builds(
        model.Share, PATHS, st.from_regex("[A-Za-z0-9._-]{1,31}", fullmatch=True), st.booleans()
    ),
    max_size=3,
    unique_by=lambda share: share.tag,
).map(tuple)
USB = st.builds(model.UsbByProduct, st.integers(0, 0xFFFF), st.integers(0, 0xFFFF)) | st.builds(
    model.UsbByPort, st.integers(1, 255), st.just("1.10")
)
PIN = st.none() | st.just(AUTO) | st.frozensets(st.integers(0, 8191), min_size=1).map(CpuSet)
VMS = st.builds(
    model.Vm,
    name=NAMES,
    uuid=st.uuids().filter(lambda uuid: uuid != UUID(int=0)),
    description=st.just("") | TEXT | st.just("two\n\tlines\n"),
    autostart=st.booleans(),
    after=st.just((VmName("never-the-name-itself-as-it-is-long"),)),
    cpus=st.builds(
        model.Cpus, st.integers(1, 64), st.integers(1, 8), st.integers(1, 8), st.just("host"), PIN
    ),
    memory_mib=SIZES,
    hugepages=st.booleans(),
    numa=st.none() | st.just(AUTO) | st.integers(0, 1023),
    accel=st.sampled_from(model.Accel),
    firmware=st.sampled_from(model.Firmware),
    tpm=st.booleans(),
    boot=st.none() | st.builds(model.Boot, PATHS, st.none() | PATHS, st.just("") | TEXT),
    disks=DISKS,
    gpus=st.lists(
        st.builds(model.GpuRequest, kind=st.just(model.GpuKind.VIRTIO), gl=st.booleans()),
        max_size=2,
    ).map(tuple),
    networks=NETWORKS,
    display=st.sampled_from(model.DisplayType).map(model.Display)
    | st.builds(model.Display, st.just(model.DisplayType.VNC), st.none() | IPS),
    looking_glass=st.none()
    | st.builds(model.LookingGlass, st.integers(320, 9999), st.integers(200, 9999), st.booleans()),
    shares=SHARES,
    usb=st.lists(USB, max_size=2).map(tuple),
    guest_tools=st.booleans(),
    restart=st.builds(
        model.Restart, st.sampled_from(model.RestartPolicy), st.integers(1, 1000), TIMES
    ),
    stop=st.builds(model.Stop, TIMES),
    hooks=st.builds(model.Hooks, ARGVS, ARGVS, ARGVS, ARGVS),
    qemu=st.builds(model.QemuOptions, st.none() | st.just("/opt/qemu"), st.lists(TEXT).map(tuple)),
)


@given(VMS)
@settings(max_examples=150, deadline=None)
def test_every_vm_is_read_back_from_what_is_written(vm: model.Vm) -> None:
    assert load_vm(yaml.safe_dump(vm_to_native(vm), allow_unicode=True), FILE, "0") == vm


GPUS = st.builds(
    model.GpuRequest,
    min_vram_mib=st.none() | SIZES,
    suffix=st.just("") | TEXT,
    mdev_type=st.just("") | TEXT,
    display=st.booleans(),
    parent=st.none() | ADDRESSES,
    vendor=st.sampled_from(["", "10de", "8086"]),
    device=st.just("") | st.from_regex("[0-9a-f]{4}", fullmatch=True),
    count=st.integers(1, 64),
    optional=st.booleans(),
)


VFS = st.builds(
    model.GpuRequest,
    kind=st.just(model.GpuKind.VF),
    acceptable_types=st.lists(TEXT.filter(bool), max_size=4).map(tuple),
    max_vram_mib=st.none() | SIZES,
)


@given(GPUS | VFS)
@settings(deadline=None)
def test_every_request_for_a_host_gpu_is_read_back(gpu: model.GpuRequest) -> None:
    text = yaml.safe_dump(GPU.write(gpu), allow_unicode=True)

    assert GPU.read(compose(text), "") == gpu
