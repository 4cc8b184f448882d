"""The lab's machine has what a host with cards has."""

import os
import select
from collections.abc import Callable
from pathlib import Path

import pytest
import pyudev

from tests.lab.inner import StartQemu
from tests.lab.kernel import (
    PARENTS,
    PCI,
    Uevents,
    bind,
    create,
    driver_of,
    open_device,
    read,
    types_of,
    unbind,
    wait_until,
)


def test_udevd_hands_events_on(mtty: Path, uuid: str) -> None:
    assert Path("/run/udev/control").exists()
    monitor = pyudev.Monitor.from_netlink(pyudev.Context(), source="udev")
    monitor.filter_by("mdev")
    monitor.start()
    create(mtty, "mtty-1", uuid)
    event = monitor.poll(timeout=20)
    assert event is not None
    assert (event.action, event.sys_name) == ("add", uuid)


def test_the_sample_parents_offer_their_types() -> None:
    assert types_of(PARENTS / "mtty") == {"mtty-1": 24, "mtty-2": 12}
    assert types_of(PARENTS / "mdpy") == {"mdpy-hd": 4, "mdpy-vga": 4, "mdpy-xga": 4}
    assert types_of(PARENTS / "mbochs") == {
        "mbochs-large": 4,
        "mbochs-medium": 16,
        "mbochs-small": 64,
    }


def test_vfio_opens_a_function_without_unsafe_interrupts(cards: list[Path]) -> None:
    assert read(Path("/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts")) == "N"
    bind(cards[0], "vfio-pci")
    try:
        with open_device(cards[0]):
            assert (cards[0] / "vfio-dev").is_dir()
    finally:
        unbind(cards[0])


def test_each_function_on_a_root_port_has_its_own_iommu_group(cards: list[Path]) -> None:
    groups = [(card / "iommu_group").resolve() for card in cards]
    assert groups[0] != groups[1]
    assert read(groups[0] / "type") == "DMA-FQ" or read(groups[0] / "type") == "DMA"


def test_the_pf_has_four_vfs_to_give_and_sits_on_node_1(pf: Path) -> None:
    assert read(pf / "sriov_totalvfs") == "4"
    assert read(pf / "sriov_numvfs") == "0"
    assert read(pf / "numa_node") == "1"


def test_there_are_two_nodes_with_a_cpu_and_hugepages_each() -> None:
    for number in (0, 1):
        node = Path(f"/sys/devices/system/node/node{number}")
        assert read(node / "cpulist") == str(number)
        assert int(read(node / "hugepages/hugepages-2048kB/nr_hugepages")) == 32


def test_a_plugged_card_is_announced_with_its_class_and_gets_its_memory(
    plug: Callable[[str], None], unplug: Callable[[str], None], uevents: Uevents
) -> None:
    plug("bochs-display")
    while True:
        event = uevents.next()
        if event.action == "add" and event.subsystem == "pci":
            break
    assert event.properties["PCI_CLASS"] == "38000"
    # The event comes before memory is assigned: whoever reads at once may find zeros.
    resources = PCI / event.name / "resource"
    wait_until(lambda: int(resources.read_text().split()[0], 16) != 0)
    unplug("bochs-display")
    uevents.wait_for("remove", event.name)


def test_the_power_button_is_a_key(power_button: Callable[[], None]) -> None:
    (button,) = (
        path
        for path in Path("/sys/class/input").glob("event*")
        if read(path / "device/name") == "Power Button"
    )
    descriptor = os.open(Path("/dev/input") / button.name, os.O_RDONLY | os.O_NONBLOCK)
    try:
        power_button()
        assert select.select([descriptor], [], [], 20)[0]
    finally:
        os.close(descriptor)


def test_an_inner_qemu_shows_a_vgpu_as_a_display_controller(
    mbochs: Path, uuid: str, inner_qemu: StartQemu
) -> None:
    mdev = create(mbochs, "mbochs-small", uuid)
    qemu = inner_qemu([f"vfio-pci,sysfsdev={mdev}"])
    assert 0x0380 in qemu.classes() or 0x0300 in qemu.classes()


@pytest.mark.usefixtures("inner_kvm")
def test_kvm_works_inside(inner_qemu: StartQemu) -> None:
    assert inner_qemu([], accel="kvm").execute("query-kvm") == {"enabled": True, "present": True}


def test_functions_of_cards_are_bound_by_nobody(cards: list[Path]) -> None:
    assert [driver_of(card) for card in cards] == [None, None]
