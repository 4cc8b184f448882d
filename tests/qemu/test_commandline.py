"""The real QEMU accepts what is built, and shows every device that was asked for.

ARCSUP_TEST_QEMU names another binary to ask, to see that a newer QEMU is served too.
"""

import os
import shlex
import socket
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import pytest
import trio
from attrs import evolve

from arcsup.model import (
    Argv,
    Audio,
    Cpus,
    Disk,
    DiskBus,
    DiskFormat,
    Display,
    DisplayType,
    Firmware,
    Forward,
    GpuKind,
    GpuRequest,
    LookingGlass,
    MiB,
    Network,
    NetworkModel,
    Share,
    UsbByPort,
    UsbByProduct,
    Vm,
)
from arcsup.vm.capabilities import ask_binary, find_qemu
from arcsup.vm.commandline import Resources, Sockets, build_command_line, expected_devices
from arcsup.vm.cpu_features import ENLIGHTENMENTS, HIDING, SIBLINGS
from arcsup.vm.disks import create_missing_disks, find_medium
from arcsup.vm.firmware import find_firmware
from arcsup.vm.qmp import Qmp, connect_qmp_socket, open_qmp
from arcsup.vm.shared_memory import (
    create_shared_memory,
    find_shared_memory,
    remove_shared_memory,
)
from arcsup.vm.sockets import Listener, listen_unix
from arcsup.vm.variables import create_vars
from tests.vm_samples import make_vm

SMALL = evolve(make_vm("small"), memory_mib=MiB(64))

DISKS = (
    Disk("virtio.qcow2", MiB(10)),
    Disk("sata,comma.qcow2", MiB(10), bus=DiskBus.SATA),
    Disk("scsi.raw", MiB(10), format=DiskFormat.RAW, bus=DiskBus.SCSI),
    Disk("nvme.raw", MiB(10), format=DiskFormat.RAW, bus=DiskBus.NVME),
    Disk("overlay.qcow2", base="base.raw", readonly=True),
)

REPRESENTATIVES = {
    "minimal": SMALL,
    "disks": evolve(SMALL, disks=DISKS, cdroms=("a,b.iso", "c.iso")),
    "many disks": evolve(SMALL, disks=tuple(Disk(f"{i}.qcow2", MiB(1)) for i in range(32))),
    "networks": evolve(
        SMALL,
        networks=(
            Network(forwards=(Forward("tcp", "127.0.0.1", 0, 22), Forward("udp", "", 0, 53))),
            *(Network(model=model) for model in NetworkModel),
        ),
    ),
    "spice": evolve(
        SMALL, display=Display(DisplayType.SPICE), looking_glass=LookingGlass(640, 480)
    ),
    "vnc": evolve(SMALL, display=Display(DisplayType.VNC), audio=Audio.SCREAM),
    "virtio gpus": evolve(
        SMALL,
        display=Display(DisplayType.VNC),
        gpus=(GpuRequest(GpuKind.VIRTIO, count=3),),
        looking_glass=LookingGlass(640, 480),
    ),
    "usb": evolve(SMALL, usb=(UsbByProduct(0x1234, 0x5678), UsbByPort(9, "1.2"))),
    "uefi": evolve(SMALL, firmware=Firmware.UEFI),
    "secure boot": evolve(SMALL, firmware=Firmware.UEFI_SECURE, hide_hypervisor=True),
    "9p": evolve(SMALL, shares=(Share(".", "a,tag"), Share(".", "b", readonly=True))),
    "topology": evolve(SMALL, cpus=Cpus(2, 2, 2, model="qemu64"), numa=0),
}


async def find_everything(vm: Vm, folder: Path, listen: Callable[[Path], Listener]) -> Resources:
    """Return the resources of this host, all files below ``folder``."""
    binary = os.environ.get("ARCSUP_TEST_QEMU")
    qemu = Path(binary) if binary else find_qemu(vm)
    for path in vm.cdroms:
        (folder / path).write_bytes(bytes(2048))
    (folder / "base.raw").write_bytes(bytes(2**20))
    await create_missing_disks(vm, folder)
    firmware, variables = find_firmware(vm.firmware), folder / "vars.fd"
    if firmware is not None:
        create_vars(firmware, variables)
    return Resources(
        qemu=qemu,
        capabilities=await ask_binary(qemu),
        accel="tcg",
        sockets=Sockets(
            qmp=listen(folder / "qmp,1"),
            monitor=listen(folder / "monitor"),
            console=listen(folder / "console"),
            agent=listen(folder / "agent"),
            display=folder / "display,1",
            shares=(None,) * len(vm.shares),
        ),
        log=folder,
        images=folder,
        root=True,
        disks=tuple(find_medium(disk.path, folder) for disk in vm.disks),
        cdroms=tuple(find_medium(path, folder) for path in vm.cdroms),
        firmware=firmware,
        firmware_vars=variables,
        numa_node=vm.numa if isinstance(vm.numa, int) else None,
        shared_memory=find_shared_memory(vm, lambda _: False),
    )


@asynccontextmanager
async def running(argv: Argv, sockets: Sockets, *, seconds: float = 60) -> AsyncIterator[Qmp]:
    """Start a QEMU, negotiate QMP, and end it after the block, or after ``seconds``."""
    listeners = (sockets.qmp, sockets.monitor, sockets.console, sockets.agent)
    process = await trio.lowlevel.open_process(
        argv,
        pass_fds=[listener.fd for listener in listeners if listener.fd is not None],
        stdin=subprocess.DEVNULL,
    )
    for listener in listeners:
        # While anybody else holds them, a client of a QEMU that has ended waits for ever.
        listener.close()
    try:
        with trio.fail_after(seconds):
            stream, _ = await connect_qmp_socket(sockets.qmp.path)
            async with open_qmp(stream) as qmp:
                yield qmp
    finally:
        process.kill()
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 10):
            await process.wait()


async def peripherals(qmp: Qmp) -> set[str]:
    listed = await qmp.execute("qom-list", {"path": "/machine/peripheral"})
    return {entry["name"] for entry in listed}


@pytest.mark.parametrize("vm", REPRESENTATIVES.values(), ids=REPRESENTATIVES.keys())
async def test_qemu_has_every_device_that_was_asked_for(vm: Vm, short_dir: Path) -> None:
    with ExitStack() as cleanup:
        cleanup.callback(remove_shared_memory, vm)
        host = await find_everything(vm, short_dir, listen_unix)
        create_shared_memory(host.shared_memory, None)
        async with running((*build_command_line(vm, host), "-S"), host.sockets) as qmp:
            status = await qmp.execute("query-status")

            assert status["status"] == "prelaunch"
            assert expected_devices(vm, host) <= await peripherals(qmp)
            assert (await qmp.execute("query-uuid"))["UUID"] == str(vm.uuid)


async def test_this_qemu_knows_every_cpu_feature_that_is_added(short_dir: Path) -> None:
    host = await find_everything(SMALL, short_dir, listen_unix)
    async with running((*build_command_line(SMALL, host), "-S"), host.sockets) as qmp:
        listed = await qmp.execute("device-list-properties", {"typename": "max-x86_64-cpu"})

    known = {entry["name"] for entry in listed}
    assert {feature.name for feature in (*ENLIGHTENMENTS, *HIDING, SIBLINGS)} <= known


async def test_media_are_changed_by_the_drives_id(short_dir: Path) -> None:
    vm = evolve(SMALL, cdroms=("one.iso",))
    (short_dir / "two.iso").write_bytes(bytes(4096))
    host = await find_everything(vm, short_dir, listen_unix)
    async with running((*build_command_line(vm, host), "-S"), host.sockets) as qmp:
        file = str(short_dir / "two.iso")
        await qmp.execute("blockdev-change-medium", {"id": "cd0", "filename": file, "force": True})
        (drive,) = await qmp.execute("query-block")

        assert drive["inserted"]["file"] == file


async def test_the_printed_command_line_can_be_pasted_into_a_shell(short_dir: Path) -> None:
    vm = evolve(
        SMALL,
        disks=DISKS[:2],
        display=Display(DisplayType.VNC),
        networks=(Network(forwards=(Forward("tcp", "127.0.0.1", 0, 22),)),),
    )
    host = await find_everything(vm, short_dir, Listener)
    line = shlex.join((*build_command_line(vm, host), "-S"))
    async with trio.open_nursery() as nursery:
        shell = await nursery.start(trio.run_process, ["sh", "-c", f"exec {line}"])
        with trio.fail_after(30):
            while not await can_connect(host.sockets.qmp.path):
                assert shell.returncode is None, "QEMU rejected its arguments"
                await trio.sleep(0.02)
            stream, pid = await connect_qmp_socket(host.sockets.qmp.path)
            async with open_qmp(stream) as qmp:
                assert pid == shell.pid
                assert expected_devices(vm, host) <= await peripherals(qmp)
        nursery.cancel_scope.cancel()


async def can_connect(path: Path) -> bool:
    """Whether somebody listens at a path that nobody was given a descriptor for."""
    with socket.socket(socket.AF_UNIX) as probe:
        return path.exists() and probe.connect_ex(str(path)) == 0


async def test_a_wrong_argument_ends_qemu_in_its_own_words(short_dir: Path) -> None:
    vm = evolve(SMALL, qemu=evolve(SMALL.qemu, args=("-device", "no-such-thing")))
    host = await find_everything(vm, short_dir, Listener)
    finished = await trio.run_process(
        build_command_line(vm, host), check=False, capture_stderr=True, stdin=b""
    )

    assert finished.returncode == 1
    assert b"'no-such-thing' is not a valid device model name" in finished.stderr
