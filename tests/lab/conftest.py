"""Fixtures of the lab. What they need is only in its guest, so only there tests are collected."""

import os
import subprocess
import tempfile
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from uuid import uuid4

import pytest

from tests.lab.inner import InnerQemu, StartQemu
from tests.lab.kernel import (
    MDEVS,
    PARENTS,
    PCI,
    Uevents,
    bind,
    driver_of,
    mdevs,
    read,
    remove,
    unbind,
    wait_until,
    write,
)
from tests.lab.outer import Outer
from tests.lab.vms import lab_daemon
from tests.lab.warm import WarmPrograms
from tests.qemu.daemon import Daemon

if "ARCSUP_LAB" not in os.environ:
    collect_ignore_glob = ["test_*.py"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let ``make soak`` say how much of what."""
    parser.addoption("--soak-steps", type=int, default=60, help="random steps of test_soak.py")
    parser.addoption("--soak-seed", type=int, default=1, help="what they are made from")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Tell at once what failed: a guest that hangs later would take it along."""
    report = yield
    if report.failed:
        item.config.get_terminal_writer().line(f"\n{report.longreprtext}")
    return report


SIMULATION = Path("/sys/module/vgpu_sim/parameters")


@pytest.fixture(scope="session")
def lab_output() -> Path:
    """The folder on the host that survives the guest: logs go here."""
    return Path(os.environ["ARCSUP_LAB"])


@pytest.fixture(scope="session")
def daemon_log(lab_output: Path) -> Path:
    """Where a test lets arcsup's daemon write its log."""
    return lab_output / "daemon.log"


@pytest.fixture(scope="session")
def warm_programs() -> Iterator[WarmPrograms]:
    """The process that daemons are forked from."""
    with WarmPrograms() as programs:
        yield programs


@pytest.fixture
def daemon(daemon_log: Path, warm_programs: WarmPrograms) -> Iterator[Daemon]:
    """A daemon of its own; its VMs go after the test, and no mediated device may be left."""
    with lab_daemon(daemon_log, warm_programs) as daemon:
        yield daemon
    assert not mdevs()


@pytest.fixture(scope="session")
def outer() -> Iterator[Outer]:
    """The QEMU that runs the lab's machine."""
    outer = Outer()
    yield outer
    outer.close()


@pytest.fixture
def plug(outer: Outer) -> Iterator[Callable[[str], None]]:
    """Push a card into the empty slot; it is taken out after the test."""
    yield outer.plug
    for card in outer.plugged():
        outer.unplug(card)
    wait_until(lambda: not outer.plugged())


@pytest.fixture
def unplug(outer: Outer) -> Callable[[str], None]:
    """Take the plugged card out."""
    return outer.unplug


@pytest.fixture
def power_button(outer: Outer) -> Callable[[], None]:
    """Press the machine's power button."""
    return outer.power_button


@pytest.fixture
def uuid() -> str:
    """A UUID that no mediated device has."""
    return str(uuid4())


@pytest.fixture
def uevents() -> Iterator[Uevents]:
    """Hear the kernel's uevents from the test's start."""
    uevents = Uevents()
    yield uevents
    uevents.close()


@pytest.fixture(autouse=True)
def no_mdevs_left() -> Iterator[None]:
    """Remove the mediated devices that a test has left."""
    yield
    for mdev in list(MDEVS.iterdir()):
        remove(mdev)


@pytest.fixture(params=["mtty", "mdpy", "mbochs"])
def sample_parent(request: pytest.FixtureRequest) -> Path:
    """Each of the kernel's sample parents."""
    name = request.param
    assert isinstance(name, str)
    return PARENTS / name


@pytest.fixture
def mtty() -> Path:
    """The sample with a driver-counted capacity and no description: serial ports."""
    return PARENTS / "mtty"


@pytest.fixture
def mdpy() -> Path:
    """The sample with a core-counted capacity: four displays."""
    return PARENTS / "mdpy"


@pytest.fixture
def mbochs() -> Path:
    """The sample display device with video memory: the stand-in for a vGPU."""
    return PARENTS / "mbochs"


@pytest.fixture(scope="session")
def cards() -> list[Path]:
    """The two display functions that no driver has bound, for vgpu_sim to play a card on."""
    found = sorted(
        path
        for path in PCI.iterdir()
        if (path / "class").read_text().startswith("0x0380") and not path.name.startswith("0000:00")
    )
    assert len(found) >= 2
    return found[:2]


@pytest.fixture
def simulate() -> Iterator[Callable[..., None]]:
    """Set vgpu_sim's parameters for cards that are bound from now on; undone after the test."""
    before = {path.name: read(path) for path in SIMULATION.iterdir()}

    def simulate(**parameters: str) -> None:
        for name, value in parameters.items():
            write(SIMULATION / name, value)

    yield simulate
    simulate(**before)


@pytest.fixture
def nvidia(cards: list[Path], simulate: Callable[..., None]) -> Iterator[Callable[..., Path]]:
    """Let a display function be an NVIDIA card with mdev types: nvidia(card="p4", rule="mixed")."""
    function = cards[0]

    def nvidia(**parameters: str) -> Path:
        simulate(**parameters)
        bind(function, "nvidia")
        return function

    yield nvidia
    unbind(function)


@pytest.fixture
def gvtg(cards: list[Path]) -> Iterator[Path]:
    """An Intel integrated graphics with GVT-g."""
    bind(cards[1], "i915")
    yield cards[1]
    unbind(cards[1])


@pytest.fixture
def pf() -> Iterator[Path]:
    """The SR-IOV physical function (NVMe, four VFs), without VFs before and after."""
    (function,) = (path for path in PCI.iterdir() if driver_of(path) == "nvme")
    yield function
    write(function / "sriov_drivers_autoprobe", "1")
    write(function / "sriov_numvfs", "0")


@pytest.fixture
def vendor_vfs(pf: Path, simulate: Callable[..., None]) -> Callable[..., list[Path]]:
    """Make the PF's four VFs NVIDIA's: vendor_vfs(vf_interface="mdev") for those of old kernels."""

    def vendor_vfs(**parameters: str) -> list[Path]:
        simulate(**parameters)
        write(pf / "sriov_drivers_autoprobe", "0")
        write(pf / "sriov_numvfs", "4")
        functions = [(pf / f"virtfn{number}").resolve() for number in range(4)]
        for function in functions:
            bind(PCI / function.name, "nvidia")
        return [PCI / function.name for function in functions]

    return vendor_vfs


@pytest.fixture
def inner_kvm() -> None:
    """Make /dev/kvm work inside: TCG emulates AMD's SVM."""
    subprocess.run(["/usr/sbin/modprobe", "kvm_amd"], check=True)


@pytest.fixture
def inner_qemu() -> Iterator[StartQemu]:
    """Start a QEMU inside with the given -device options (and accel="kvm"); ended afterwards."""
    started: list[InnerQemu] = []

    def inner_qemu(
        devices: Sequence[str], accel: str = "tcg", objects: Sequence[str] = ()
    ) -> InnerQemu:
        directory = Path(tempfile.mkdtemp(prefix="lab", dir="/run"))
        started.append(InnerQemu(directory, devices, accel, objects))
        return started[-1]

    yield inner_qemu
    for qemu in started:
        qemu.end()
