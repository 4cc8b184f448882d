"""What a real kernel tells of USB devices, and what of the host uses them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from arcsup.host.sysfs import Sysfs
from arcsup.host.usb import observe_usb
from arcsup.model import UsbByPort
from arcsup.plan.usb import UsbDevice
from arcsup.spec.config import UsbPolicy
from arcsup.vm.usb import judge_usb
from tests.lab.kernel import wait_until, write

SYS = Path("/sys")


def find(title: str) -> UsbDevice:
    def devices() -> list[UsbDevice]:
        return [it for it in observe_usb(Sysfs(SYS)) if title in it.title]

    wait_until(lambda: bool(devices()))
    return devices()[0]


def why(device: UsbDevice, *entries: UsbPolicy) -> str:
    """Return what speaks against giving a VM a device."""
    found, because = judge_usb((UsbByPort(device.bus, device.port),), entries, SYS)
    assert because or [it.node for _, it in found] == [device.node]
    return because


@pytest.fixture
def stick() -> UsbDevice:
    return find("HARDDRIVE")


@pytest.fixture
def disk(stick: UsbDevice) -> Path:
    """The node of the stick's disk."""

    def disks() -> list[Path]:
        return list((SYS / "bus/usb/devices" / stick.name).resolve().glob("*/host*/**/block/*"))

    wait_until(lambda: bool(disks()))
    node = Path("/dev", disks()[0].name)
    wait_until(node.exists)
    return node


@contextmanager
def opened(node: Path, flags: int) -> Iterator[None]:
    descriptor = os.open(node, flags)
    try:
        yield
    finally:
        os.close(descriptor)


def test_no_hub_is_among_the_devices() -> None:
    find("HARDDRIVE")
    assert not [it for it in observe_usb(Sysfs(SYS)) if "Host Controller" in it.title]


def test_a_stick_is_given_while_nothing_uses_it(stick: UsbDevice, disk: Path) -> None:
    assert why(stick) == ""
    assert Path(stick.node).is_char_device()
    with opened(disk, os.O_RDONLY):
        told = f"is used by process {os.getpid()} "
        assert told in why(stick)
        assert f"through {disk}" in why(stick)
    with opened(Path(stick.node), os.O_RDONLY):
        assert f"through {stick.node}" in why(stick)
        assert why(stick, UsbPolicy(stick.name, force=True)) == ""
    assert why(stick) == ""


def test_a_stick_that_the_kernel_has_for_somebody_is_kept(stick: UsbDevice, disk: Path) -> None:
    with opened(disk, os.O_RDONLY | os.O_EXCL):
        assert f"has the disk {disk.name}, which a file system or a program has" in why(stick)
    assert "is excluded" in why(stick, UsbPolicy("*", exclude=True))


def test_the_only_keyboard_stays_with_the_host() -> None:
    keyboard, board = find("Keyboard"), SYS / "bus/serio/devices/serio0"
    boards_own = board / "input"
    wait_until(boards_own.exists)
    assert why(keyboard) == "", "the board has one of its own"
    write(board / "drvctl", "none")
    try:
        wait_until(lambda: not boards_own.exists())
        assert "has the host's only keyboard 'QEMU QEMU USB Keyboard'" in why(keyboard)
    finally:
        write(board / "drvctl", "rescan")
        wait_until(boards_own.exists)
