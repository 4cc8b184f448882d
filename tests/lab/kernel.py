"""What tests do to the kernel and see of it: sysfs files, uevents, VFIO handles."""

import contextlib
import fcntl
import os
import select
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from attrs import frozen

PCI = Path("/sys/bus/pci/devices")
MDEVS = Path("/sys/bus/mdev/devices")
PARENTS = Path("/sys/class/mdev_bus")


def write(path: Path, text: str) -> None:
    """Write to a sysfs file in one system call; raise what the kernel answers as OSError."""
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def read(path: Path) -> str:
    """A sysfs file's text without its last newline."""
    return path.read_text().rstrip("\n")


def errno_of(path: Path, text: str) -> int:
    """What the kernel answers to a write: an errno, or 0."""
    try:
        write(path, text)
    except OSError as error:
        return error.errno or 0
    return 0


def start_write(path: Path, text: str) -> subprocess.Popen[bytes]:
    """Write from another process: it may block where no signal reaches it."""
    return subprocess.Popen(["/bin/sh", "-c", f'printf %s "{text}" >"{path}"'])


def is_blocked(process: subprocess.Popen[bytes], seconds: float = 2) -> bool:
    """Whether the process still runs after so many seconds."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
        return False
    return True


def wait_until(what: Callable[[], bool], seconds: float = 20) -> None:
    """Look until it is so; fail after the given time."""
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, f"not so after {seconds} s"
        time.sleep(0.02)


def kill_process(pid: int) -> None:
    """Kill a process and wait until the kernel has closed what it had open.

    Its command line is gone before that; a pidfd tells of the end itself (pidfd_open(2)).
    """
    pidfd = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        assert select.select([pidfd], [], [], 20.0)[0], "it does not end"
    finally:
        os.close(pidfd)


def driver_of(function: Path) -> str | None:
    """The name of the driver that a PCI function is bound to."""
    link = function / "driver"
    return link.readlink().name if link.is_symlink() else None


def bind(function: Path, driver: str) -> None:
    """Give a PCI function to a driver, by driver_override; take it from the one it has."""
    write(function / "driver_override", driver)
    if driver_of(function) is not None:
        write(function / "driver/unbind", function.name)
    write(Path("/sys/bus/pci/drivers_probe"), function.name)
    assert driver_of(function) == driver


def unbind(function: Path) -> None:
    """Take a PCI function from its driver and forget the override."""
    write(function / "driver_override", "\n")
    if driver_of(function) is not None:
        write(function / "driver/unbind", function.name)


def types_of(parent: Path) -> dict[str, int]:
    """An mdev parent's types, each with its available instances."""
    return {
        path.name: int(read(path / "available_instances"))
        for path in sorted((parent / "mdev_supported_types").iterdir())
    }


def mdevs() -> set[str]:
    """The uuids of all mediated devices."""
    return {path.name for path in MDEVS.iterdir()}


def create(parent: Path, type_: str, uuid: str) -> Path:
    """Create a mediated device; raise what the kernel answers."""
    write(parent / "mdev_supported_types" / type_ / "create", uuid)
    return MDEVS / uuid


def remove(mdev: Path) -> None:
    """Remove a mediated device; blocks while somebody has it open."""
    write(mdev / "remove", "1")


@frozen
class Uevent:
    """A kernel uevent."""

    action: str
    subsystem: str
    name: str
    """The last part of the device's path."""
    properties: dict[str, str]


class Uevents:
    """The kernel's own uevents (netlink group 1), from the moment it is made or told to forget."""

    def __init__(self) -> None:
        netlink_kobject_uevent = 15
        self.socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, netlink_kobject_uevent
        )
        self.socket.bind((0, 1))

    def close(self) -> None:
        """Hear no more."""
        self.socket.close()

    def forget(self) -> None:
        """Drop what has come until now."""
        self.seen()

    def next(self, seconds: float = 20) -> Uevent:
        """The next event; TimeoutError when there is none in time."""
        if not select.select([self.socket], [], [], seconds)[0]:
            raise TimeoutError(f"no uevent within {seconds} s")
        header, *lines = self.socket.recv(16384).decode().rstrip("\0").split("\0")
        properties = dict(line.split("=", 1) for line in lines)
        action, path = header.split("@", 1)
        return Uevent(action, properties["SUBSYSTEM"], Path(path).name, properties)

    def wait_for(self, action: str, name: str, seconds: float = 20) -> Uevent:
        """The next event of this action and device name; others are dropped."""
        end = time.monotonic() + seconds
        while True:
            event = self.next(max(0.0, end - time.monotonic()))
            if (event.action, event.name) == (action, name):
                return event

    def seen(self) -> list[Uevent]:
        """All events until nothing has come for half a second."""
        events = []
        with contextlib.suppress(TimeoutError):
            while True:
                events.append(self.next(0.5))
        return events


@contextlib.contextmanager
def trace_functions(*names: str) -> Iterator[list[str]]:
    """Fill a list with the kernel functions, of those named, that this process has called."""
    tracing = Path("/sys/kernel/tracing")
    called: list[str] = []
    for name in names:
        write(tracing / "set_ftrace_filter", f"{name}\n")
    write(tracing / "set_ftrace_pid", str(os.getpid()))
    write(tracing / "current_tracer", "function")
    try:
        yield called
        lines = (tracing / "trace").read_text().splitlines()
        called += [line.split(": ")[1].split(" <-")[0] for line in lines if " <-" in line]
    finally:
        write(tracing / "current_tracer", "nop")
        (tracing / "set_ftrace_pid").write_text("")
        (tracing / "set_ftrace_filter").write_text("")


def vfio_group(device: Path) -> Path:
    """The VFIO group node of a mediated device or PCI function."""
    return Path("/dev/vfio") / (device / "iommu_group").readlink().name


def vfio_ioctl(descriptor: int, number: int, argument: int | bytearray = 0) -> int:
    """An ioctl of linux/vfio.h: type ';', base 100."""
    return fcntl.ioctl(descriptor, (ord(";") << 8) | (100 + number), argument)


@contextlib.contextmanager
def open_device(device: Path, *, hidden: bool = False) -> Iterator[None]:
    """Hold a device as a VMM does: container, group, type-1 IOMMU, device descriptor.

    ``hidden`` keeps the last alone, of which /proc does not tell whose device it is.
    """
    set_iommu, group_set_container, group_get_device = 2, 4, 6
    type1_iommu = 1
    with contextlib.ExitStack() as opened:
        nodes = opened.enter_context(contextlib.ExitStack())
        container = os.open("/dev/vfio/vfio", os.O_RDWR | os.O_CLOEXEC)
        nodes.callback(os.close, container)
        group = os.open(vfio_group(device), os.O_RDWR | os.O_CLOEXEC)
        nodes.callback(os.close, group)
        vfio_ioctl(group, group_set_container, bytearray(struct.pack("i", container)))
        vfio_ioctl(container, set_iommu, type1_iommu)
        name = bytearray(device.name.encode() + b"\0")
        opened.callback(os.close, vfio_ioctl(group, group_get_device, name))
        if hidden:
            nodes.close()
        yield


def renumber(function: Path, bus: int) -> Path:
    """Give a function behind a root port another bus number, as firmware may at any boot.

    ``bus`` is free. The port is found again with what is in its configuration space then. Returns
    the function at its new address. Source: PCI-to-PCI Bridge Architecture, 3.2.5 (secondary bus
    number at 0x19, subordinate at 0x1a); the kernel keeps numbers that make sense
    (drivers/pci/probe.c, pci_scan_bridge_extend).
    """
    port = function.resolve().parent
    write(function / "remove", "1")
    with (port / "config").open("r+b", buffering=0) as config:
        config.seek(0x19)
        config.write(bytes((bus, bus)))
    write(port / "remove", "1")
    write(Path("/sys/bus/pci/rescan"), "1")
    domain, _, rest = function.name.split(":")
    renumbered = PCI / f"{domain}:{bus:02x}:{rest}"
    assert renumbered.is_dir(), f"{function.name} was not found again as {renumbered.name}"
    return renumbered
