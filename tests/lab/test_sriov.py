"""SR-IOV behaves as Documentation/ABI/testing/sysfs-bus-pci does not say (drivers/pci/iov.c)."""

import errno
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from arcsup.host.host_use import find_network_use
from arcsup.host.sysfs import Sysfs
from tests.lab.kernel import (
    PCI,
    Uevents,
    bind,
    driver_of,
    errno_of,
    is_blocked,
    open_device,
    read,
    start_write,
    unbind,
    wait_until,
    write,
)


def enable(pf: Path, count: int, driver: str | None = None) -> list[Path]:
    write(pf / "sriov_drivers_autoprobe", "0")
    write(pf / "sriov_numvfs", str(count))
    functions = [PCI / (pf / f"virtfn{number}").resolve().name for number in range(count)]
    if driver is not None:
        for function in functions:
            bind(function, driver)
    return functions


def test_a_count_in_place_of_another_is_ebusy(pf: Path) -> None:
    enable(pf, 2)
    assert errno_of(pf / "sriov_numvfs", "4") == errno.EBUSY
    assert errno_of(pf / "sriov_numvfs", "2") == 0, "the same is no change"
    assert read(pf / "sriov_numvfs") == "2"


@pytest.mark.parametrize(
    ("text", "answer"), [("5", errno.ERANGE), ("lots", errno.EINVAL), ("-1", errno.EINVAL)]
)
def test_an_impossible_count_is_refused(pf: Path, text: str, answer: int) -> None:
    assert errno_of(pf / "sriov_numvfs", text) == answer


def test_a_count_without_a_driver_is_enoent(pf: Path) -> None:
    driver = driver_of(pf)
    assert driver is not None
    write(pf / "driver/unbind", pf.name)
    try:
        assert errno_of(pf / "sriov_numvfs", "1") == errno.ENOENT
        assert errno_of(pf / "sriov_numvfs", "0") == 0
    finally:
        write(Path("/sys/bus/pci/drivers_probe"), pf.name)


def test_vfs_have_their_own_groups_and_their_pfs_node(pf: Path) -> None:
    functions = enable(pf, 4)
    assert len({(function / "iommu_group").resolve() for function in functions}) == 4
    assert {read(function / "numa_node") for function in functions} == {"1"}
    assert {(function / "physfn").resolve().name for function in functions} == {pf.name}


def test_each_new_vf_is_told_twice_and_the_pf_last(pf: Path, uevents: Uevents) -> None:
    write(pf / "sriov_drivers_autoprobe", "0")
    uevents.forget()
    write(pf / "sriov_numvfs", "2")
    names = [(pf / f"virtfn{number}").resolve().name for number in range(2)]
    seen = [(event.action, event.name) for event in uevents.seen() if event.subsystem == "pci"]
    assert seen == [
        *((action, name) for name in names for action in ("add", "change")),
        ("change", pf.name),
    ]


def test_an_end_of_vfs_is_not_told_by_the_pf(pf: Path, uevents: Uevents) -> None:
    (vf,) = enable(pf, 1)
    uevents.forget()
    write(pf / "sriov_numvfs", "0")
    seen = [(event.action, event.name) for event in uevents.seen() if event.subsystem == "pci"]
    assert seen == [("remove", vf.name)]


def test_reading_numvfs_hangs_while_a_write_is_stuck(pf: Path) -> None:
    (vf,) = enable(pf, 1, "vfio-pci")
    with open_device(vf):
        removal = start_write(pf / "sriov_numvfs", "0")
        assert is_blocked(removal)
        reader = subprocess.Popen(["/bin/cat", pf / "sriov_numvfs"], stdout=subprocess.DEVNULL)
        assert is_blocked(reader, 1)
        reader.kill()
        assert is_blocked(reader, 1), "a signal does not end it"
        # Counting the links tells without waiting.
        assert len(list(pf.glob("virtfn*"))) in (0, 1)
    assert removal.wait(20) == 0
    reader.wait(20)


def test_an_override_does_not_survive_the_vf(pf: Path) -> None:
    (vf,) = enable(pf, 1, "vfio-pci")
    write(pf / "sriov_numvfs", "0")
    enable(pf, 1)
    assert read(vf / "driver_override") == "(null)"
    assert driver_of(vf) is None


def test_probing_a_vf_without_autoprobe_binds_by_override_only(pf: Path) -> None:
    (vf,) = enable(pf, 1)
    write(Path("/sys/bus/pci/drivers_probe"), vf.name)
    assert driver_of(vf) is None
    bind(vf, "vfio-pci")


def test_taking_a_function_from_vfio_pci_blocks_while_it_is_open(cards: list[Path]) -> None:
    card = cards[0]
    bind(card, "vfio-pci")
    with open_device(card):
        unbinding = start_write(card / "driver/unbind", card.name)
        wait_until(lambda: driver_of(card) is None)
        assert is_blocked(unbinding)
    assert unbinding.wait(20) == 0
    unbind(card)


@pytest.fixture
def igb() -> Iterator[Path]:
    """A network card with SR-IOV (outer QEMU 8.0 or later), without VFs before and after."""
    functions = [path for path in PCI.iterdir() if driver_of(path) == "igb"]
    if not functions:
        pytest.skip("the outer QEMU has no igb; use make lab SUITE=trixie")
    yield functions[0]
    write(functions[0] / "sriov_numvfs", "0")


def test_vfs_of_igb_are_far_from_their_pf(igb: Path) -> None:
    assert read(igb / "sriov_totalvfs") == "7"
    assert (read(igb / "sriov_offset"), read(igb / "sriov_stride")) == ("128", "2")
    vfs = enable(igb, 3, "vfio-pci")
    assert [vf.name[-4:] for vf in vfs] == ["10.0", "10.2", "10.4"]
    with open_device(vfs[0]):
        pass


def test_igb_takes_its_vfs_away_when_it_goes(igb: Path) -> None:
    enable(igb, 2)
    write(igb / "driver/unbind", igb.name)
    try:
        assert list(igb.glob("virtfn*")) == []
    finally:
        write(Path("/sys/bus/pci/drivers_probe"), igb.name)


def test_an_interface_in_another_namespace_leaves_an_empty_folder(igb: Path) -> None:
    container = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])

    def moves() -> bool:
        # udev may be about to give it its name.
        [interface] = (path.name for path in (igb / "net").iterdir())
        move = ["ip", "link", "set", "dev", interface, "netns", str(container.pid)]
        return subprocess.run(move, check=False).returncode == 0

    try:
        namespace, ours = Path(f"/proc/{container.pid}/ns/net"), Path("/proc/self/ns/net")
        wait_until(lambda: namespace.readlink() != ours.readlink())
        wait_until(moves)
        assert list((igb / "net").iterdir()) == []
        use = find_network_use(Sysfs(Path("/sys")), f"bus/pci/devices/{igb.name}")
        assert use == "has its interface in another network namespace"
    finally:
        container.kill()
        container.wait()
    wait_until(lambda: any((igb / "net").iterdir()))
    unbind(igb)
    try:
        assert not (igb / "net").exists()
    finally:
        write(Path("/sys/bus/pci/drivers_probe"), igb.name)
