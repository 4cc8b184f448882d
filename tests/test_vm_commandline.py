"""The command line, held against files that a person can read.

ARCSUP_WRITE_GOLDEN=1 writes the files anew; look at the difference before you keep it.
"""

import os
import shlex
from pathlib import Path
from uuid import UUID

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from arcsup.errors import Terminal
from arcsup.model import (
    Argv,
    Cpus,
    Disk,
    DiskBus,
    Display,
    DisplayType,
    GpuKind,
    GpuRequest,
    LookingGlass,
    Network,
    NetworkType,
    Share,
    Vm,
)
from arcsup.spec.identity import derive_mac
from arcsup.vm.commandline import SliceDevice, build_command_line, expected_devices
from arcsup.vm.iommufd import Iommufd
from arcsup.vm.options import AccelName, escape
from arcsup.vm.sockets import Listener
from tests.vm_samples import GOLDEN, QEMU_VERSIONS, find_resources, make_vm, sample_cases


def as_lines(argv: Argv) -> str:
    """Return one option with its argument per line, quoted for a shell."""
    lines: list[list[str]] = []
    for word in argv:
        if word.startswith("-") or not lines:
            lines.append([word])
        else:
            lines[-1].append(word)
    return "".join(f"{shlex.join(line)}\n" for line in lines)


@pytest.mark.parametrize("version", QEMU_VERSIONS)
@pytest.mark.parametrize("case", sorted(sample_cases("7.2")))
def test_the_command_line_is_the_golden_one_for_every_qemu(case: str, version: str) -> None:
    vm, host = sample_cases(version)[case]
    file = GOLDEN / f"{case}.args"
    built = as_lines(build_command_line(vm, host))
    if os.environ.get("ARCSUP_WRITE_GOLDEN"):
        file.write_text(built)

    assert file.read_text() == built


def device_places(vm: Vm) -> dict[str, str]:
    """Return where each device sits, by id."""
    argv = build_command_line(vm, find_resources(vm))
    devices = [argv[i + 1] for i, word in enumerate(argv) if word == "-device"]
    parts = [dict(part.partition("=")[::2] for part in text.split(",")[1:]) for text in devices]
    return {p["id"]: f"{p.get('bus')}@{p.get('addr', p.get('port'))}" for p in parts}


EVERYTHING = evolve(
    make_vm("all"),
    disks=(Disk("a"), Disk("b", bus=DiskBus.SATA), Disk("c", bus=DiskBus.SCSI)),
    cdroms=("x.iso",),
    display=Display(DisplayType.SPICE),
    gpus=(GpuRequest(GpuKind.VIRTIO),),
    looking_glass=LookingGlass(),
    shares=(Share("/srv", "srv"),),
)


@pytest.mark.parametrize(
    "without",
    [
        evolve(EVERYTHING, display=Display()),
        evolve(EVERYTHING, gpus=()),
        evolve(EVERYTHING, looking_glass=None),
        evolve(EVERYTHING, shares=()),
        evolve(EVERYTHING, cdroms=()),
        evolve(EVERYTHING, networks=()),
        evolve(EVERYTHING, disks=EVERYTHING.disks[:2]),
        make_vm("all"),
    ],
)
def test_taking_one_thing_away_moves_nothing_else(without: Vm) -> None:
    full, rest = device_places(EVERYTHING), device_places(without)

    assert {name: full[name] for name in rest if name in full} == {
        name: place for name, place in rest.items() if name in full
    }


def test_no_two_devices_share_a_place() -> None:
    places = [place for place in device_places(EVERYTHING).values() if "pcie.0" in place]

    assert len(places) == len(set(places))


def test_a_gpu_of_the_host_moves_nothing_else() -> None:
    vm, host = make_vm("gpu"), find_resources(make_vm("gpu"))
    gpu = SliceDevice("gpu0", Path("/sys/bus/pci/devices/0000:41:00.0"), 0)
    without, with_gpu = (
        # What is set aside behind a port is no place: a device that is there needs none.
        [
            word.partition(",mem-reserve=")[0]
            for word in build_command_line(vm, evolve(host, slices=slices))
        ]
        for slices in ((), (gpu,))
    )

    assert set(with_gpu) - set(without) == {
        "vfio-pci,id=gpu0,sysfsdev=/sys/bus/pci/devices/0000:41:00.0,bus=port0,addr=0x0.0x0"
    }


def test_all_devices_that_go_by_iommufd_share_one_object() -> None:
    vm, host = sample_cases("10.0")["iommufd"]
    argv = build_command_line(vm, host)

    assert [word for word in argv if word.startswith("iommufd,")] == ["iommufd,id=iommufd0,fd=20"]
    devices = [word for word in argv if word.startswith("vfio-pci,")]
    assert [word.endswith(",iommufd=iommufd0") for word in devices] == [True, True, False]
    printed = build_command_line(vm, evolve(host, iommufd=Iommufd()))
    assert "iommufd,id=iommufd0" in printed, "who pastes it opens /dev/iommu by name"


def test_a_printed_command_line_binds_the_paths_itself() -> None:
    vm = make_vm("printed")
    host = find_resources(vm)
    printed = evolve(
        host.sockets,
        qmp=Listener(Path("/run/a,b/qmp.sock")),
        monitor=Listener(Path("/run/m")),
        console=Listener(Path("/run/c")),
        agent=Listener(Path("/run/g")),
    )
    argv = build_command_line(vm, evolve(host, sockets=printed))

    assert "socket,id=qmp,path=/run/a,,b/qmp.sock,server=on,wait=off" in argv
    assert not any("fd=" in word for word in argv)


def test_every_requested_device_is_expected() -> None:
    vm = EVERYTHING

    expected = expected_devices(vm, find_resources(vm))

    assert {"disk0", "disk1", "disk2", "cd0", "nic0", "share0", "virtio-gpu0"} <= expected


@pytest.mark.parametrize(
    ("vm", "what"),
    [
        (evolve(make_vm("a"), machine="pc"), "PCI Express"),
        (evolve(make_vm("a"), disks=(Disk("d"),) * 33), "more than 32"),
        (evolve(make_vm("a"), cdroms=("c",) * 7), "7 SATA"),
        (evolve(make_vm("a"), networks=(Network(),) * 17), "more than 16"),
        (evolve(make_vm("a"), display=Display(DisplayType.GTK)), "no display gtk"),
        (evolve(make_vm("a"), display=Display(DisplayType.VNC, port=80)), "cannot listen on 80"),
        (evolve(make_vm("a"), display=Display(DisplayType.VNC, listen="x")), "no IP address"),
        (evolve(make_vm("a"), gpus=(GpuRequest(GpuKind.VIRTIO, gl=True),)), "renderD"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_line(vm: Vm, what: str) -> None:
    with pytest.raises(Terminal, match=what) as caught:
        build_command_line(vm, find_resources(vm))

    assert caught.value.hint
    assert "\n" not in caught.value.message


def test_a_vf_is_no_emulated_card() -> None:
    networks = (Network(NetworkType.VF), Network())
    vm = evolve(make_vm("vf"), networks=networks)

    assert "nic1" in expected_devices(vm, find_resources(vm))
    assert "nic0" not in expected_devices(vm, find_resources(vm))


@pytest.mark.parametrize(
    ("model", "accel", "cpu"),
    [
        ("host", "tcg", "max"),
        ("host,-vmx", "tcg", "max,-vmx"),
        ("EPYC", "tcg", "EPYC"),
        ("EPYC,-svm", "tcg", "EPYC,-svm"),
    ],
)
def test_a_host_cpu_is_the_best_that_the_accelerator_has(
    model: str, accel: AccelName, cpu: str
) -> None:
    vm = evolve(make_vm("a"), cpus=Cpus(model=model))
    argv = build_command_line(vm, find_resources(vm, accel=accel))

    assert argv[argv.index("-cpu") + 1] == cpu


@given(st.text())
def test_an_escaped_value_can_be_read_back(text: str) -> None:
    assert escape(text).replace(",,", "\0").count(",") == 0
    assert escape(text).replace(",,", ",") == text


@given(st.uuids(), st.integers(0, 15), st.integers(0, 15))
def test_derived_macs_are_stable_unicast_and_different(uuid: UUID, one: int, two: int) -> None:
    assert derive_mac(uuid, one) == derive_mac(uuid, one)
    assert (derive_mac(uuid, one) == derive_mac(uuid, two)) is (one == two)
    assert int(derive_mac(uuid, one)[:2], 16) & 0b11 == 0b10


@pytest.mark.parametrize(
    ("display", "frames", "pointer"),
    [
        (DisplayType.SPICE, LookingGlass(), "usb-mouse"),
        (DisplayType.VNC, LookingGlass(), "usb-tablet"),
        (DisplayType.SPICE, None, "usb-tablet"),
    ],
)
def test_looking_glass_gets_a_mouse_and_everybody_else_a_tablet(
    display: DisplayType, frames: LookingGlass | None, pointer: str
) -> None:
    vm = evolve(make_vm("a"), display=Display(display), looking_glass=frames)
    line = " ".join(build_command_line(vm, find_resources(vm)))

    assert f"{pointer},id=" in line
    assert line.count("usb-mouse") + line.count("usb-tablet") == 1
