"""A device that is plugged into a running guest has room for its memory, and it is seen if not."""

import shutil
from pathlib import Path

import pytest
import trio

from arcsup.errors import Terminal
from arcsup.host.bars import BarSizes
from arcsup.model import Argv, Firmware
from arcsup.vm.addresses import find_unaddressed, parse_functions
from arcsup.vm.firmware import find_firmware, firmware_args
from arcsup.vm.ports import GIB, Room, port_args, window_args
from arcsup.vm.qmp import Qmp
from tests.guest import READY
from tests.qemu.conftest import StartQemu

pytestmark = pytest.mark.guest

BARE_PORT = ("-device", "pcie-root-port,id=port0,chassis=1,bus=pcie.0,addr=0x19.0")
SECONDS = 60


async def plug(qmp: Qmp, name: str, port: str, size: int = 256 * 2**20) -> None:
    """Plug a device with a BAR of ``size`` bytes that no driver of the guest's knows."""
    device = {"driver": "pci-testdev", "membar": size}
    await qmp.execute("device_add", {"id": name, "bus": port, "addr": "0x0", **device})


@pytest.mark.parametrize("memory", ["256M", "3G"])
async def test_the_guest_gives_addresses_to_a_big_bar_that_no_driver_uses_yet(
    start_qemu: StartQemu, memory: str
) -> None:
    async with start_qemu(*port_args((), Room()), "-m", memory) as guest:
        await guest.console.wait_for(READY)
        await plug(guest.qmp, "gpu0", "port0")
        await plug(guest.qmp, "gpu1", "port3", 4 * GIB)

        with trio.fail_after(SECONDS):
            while await find_unaddressed(["gpu0", "gpu1"], guest.qmp):
                await guest.console.run("sleep 1")

        # That is not what QEMU says before a driver has switched the device on.
        seen = parse_functions(await guest.qmp.execute("query-pci"))["gpu0"]
        assert [(bar.size, bar.answers) for bar in seen.bars][-1] == (256 * 2**20, False)


async def test_a_port_without_room_leaves_a_big_bar_bare_and_that_is_seen(
    start_qemu: StartQemu,
) -> None:
    async with start_qemu(*BARE_PORT) as guest:
        await guest.console.wait_for(READY)
        await plug(guest.qmp, "gpu0", "port0")

        with trio.fail_after(SECONDS):
            while "no space" not in await guest.console.run("dmesg | grep 'BAR 2'; true"):
                await guest.console.run("sleep 1")

        assert await find_unaddressed(["gpu0", "gpu7"], guest.qmp) == {
            "gpu0": "no address for BAR 2 of 256 MiB",
            "gpu7": "the guest has not looked for it",
        }


@pytest.mark.parametrize(("largest", "room_of_each"), [(0, 8 * GIB), (12 * GIB, 16 * GIB)])
async def test_ovmf_sets_the_room_aside_too(
    start_qemu: StartQemu, short_dir: Path, largest: int, room_of_each: int
) -> None:
    room = Room(largest=BarSizes(high=largest))
    ports = (*port_args((), room), *window_args((), room, ()))
    async with start_qemu(*uefi_args(short_dir), *ports) as guest:
        with trio.fail_after(4 * SECONDS):
            while await window_of(guest.qmp, "port3") != room_of_each:
                await trio.lowlevel.checkpoint()


def uefi_args(folder: Path) -> Argv:
    try:
        files = find_firmware(Firmware.UEFI)
    except Terminal as error:
        pytest.skip(error.message)
    assert files is not None
    shutil.copy(files.template, folder / "vars.fd")
    machine = "q35,accel=tcg,pflash0=firmware-code,pflash1=firmware-vars"
    return ("-machine", machine, *firmware_args(files, str(folder / "vars.fd")))


async def window_of(qmp: Qmp, port: str) -> int:
    """Return the bytes of a port's window above 4 GiB; 0 where it has none yet."""
    [bus] = await qmp.execute("query-pci")
    [bridge] = [it["pci_bridge"]["bus"] for it in bus["devices"] if it["qdev_id"] == port]
    window = bridge["prefetchable_range"]
    size: int = window["limit"] - window["base"] + 1
    return size if window["base"] >= 2**32 else 0
