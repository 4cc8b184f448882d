"""What a guest shows is seen on the host: shared memory, VNC, SPICE, screenshots."""

import os
import struct
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import pytest
from attrs import evolve

from arcsup.model import Audio, LookingGlass, Vm
from arcsup.vm.commandline import Resources, build_command_line
from arcsup.vm.shared_memory import create_shared_memory, remove_shared_memory
from arcsup.vm.sockets import listen_unix
from tests.guest import READY, Console, open_console
from tests.qemu.test_commandline import find_everything, running
from tests.qemu.test_guest_hardware import make_linux

pytestmark = pytest.mark.guest

PATTERN = 0x51A7C0DE


@asynccontextmanager
async def booted(vm: Vm, folder: Path) -> AsyncIterator[tuple[Console, Resources]]:
    """Boot the test guest and yield its console when it is ready."""
    with ExitStack() as cleanup:
        cleanup.callback(remove_shared_memory, vm)
        host = await find_everything(vm, folder, listen_unix)
        create_shared_memory(host.shared_memory, None)
        async with (
            running((*build_command_line(vm, host), "-S"), host.sockets, seconds=180) as qmp,
            open_console(host.sockets.console.path) as console,
        ):
            await qmp.execute("cont")
            await console.wait_for(READY)
            yield console, host


async def test_what_the_guest_writes_into_its_shared_memory_is_read_on_the_host(
    short_dir: Path,
) -> None:
    vm = evolve(make_linux(), looking_glass=LookingGlass(640, 480, monitors=2), audio=Audio.SCREAM)
    async with booted(vm, short_dir) as (console, host):
        for number, piece in enumerate(host.shared_memory):
            slot = piece.place.partition("addr=0x")[2].partition(",")[0]
            device, _, function = slot.partition(".0x")
            folder = f"/sys/bus/pci/devices/0000:00:{int(device, 16):02x}.{function or 0}"
            # BAR 2 is the memory (QEMU's docs/specs/ivshmem-spec.rst, "PCI device").
            line = (
                await console.run(f"echo 1 >{folder}/enable; sed -n 3p {folder}/resource")
            ).split()
            first, last = int(line[0], 16), int(line[1], 16)
            assert last - first + 1 == piece.size_mib * 2**20
            await console.run(f"devmem {first + 4096:#x} 32 {PATTERN + number:#x}")
            await console.run(f"devmem {last - 3:#x} 32 {PATTERN - number:#x}")

            assert piece.path.stat().st_size == piece.size_mib * 2**20
            with piece.path.open("rb") as stream:
                stream.seek(4096)
                assert struct.unpack("<I", stream.read(4))[0] == PATTERN + number
                stream.seek(-4, os.SEEK_END)
                assert struct.unpack("<I", stream.read(4))[0] == PATTERN - number
