"""What a real Linux guest finds of the hardware that its VM file asks for."""

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from attrs import evolve

from arcsup.model import (
    Boot,
    Cpus,
    Disk,
    Firmware,
    MiB,
    Network,
    NetworkModel,
    Share,
    Vm,
)
from arcsup.spec.identity import derive_mac
from arcsup.vm.commandline import Resources, build_command_line
from arcsup.vm.qmp import Qmp, QmpEvent
from arcsup.vm.shares import check_share, find_virtiofsd, virtiofs_helper
from arcsup.vm.sockets import listen_unix
from arcsup.vm.tpm import create_tpm_folder, find_swtpm, tpm_folder, tpm_helper
from tests.guest import CMDLINE, READY, Console, guest_files, open_console
from tests.qemu.test_commandline import SMALL, find_everything, running
from tests.qemu.test_helpers import helping

pytestmark = pytest.mark.guest


def make_linux() -> Vm:
    kernel, initrd = guest_files()
    return evolve(SMALL, memory_mib=MiB(256), boot=Boot(str(kernel), str(initrd), CMDLINE))


@asynccontextmanager
async def booted(vm: Vm, host: Resources) -> AsyncIterator[tuple[Qmp, Console]]:
    """Run a guest until its shell has answered; end it afterwards."""
    async with (
        running((*build_command_line(vm, host), "-S"), host.sockets, seconds=120) as qmp,
        open_console(host.sockets.console.path) as console,
    ):
        await qmp.execute("cont")
        await console.wait_for(READY, seconds=110)
        yield qmp, console


async def wait_for_event(qmp: Qmp, name: str) -> QmpEvent:
    """Return the next event of a name; others are passed over."""
    with trio.fail_after(30):
        async for event in qmp.events:
            if event.name == name:
                return event
    raise AssertionError(f"QEMU ended before {name}")


async def test_the_guest_sees_its_disks_cards_cpus_and_identity(short_dir: Path) -> None:
    vm = evolve(
        make_linux(),
        cpus=Cpus(cores=2),
        disks=tuple(Disk(f"{i}.qcow2", MiB(i + 1)) for i in range(9)),
        networks=(Network(), Network(model=NetworkModel.E1000E), Network()),
        shares=(Share(".", "a,tag", readonly=True),),
    )
    (short_dir / "letter").write_text("hello guest\n")
    host = await find_everything(vm, short_dir, listen_unix)
    async with booted(vm, host) as (_, console):
        # The ninth disk is function 0 of the second slot: all eight functions were found.
        sizes = await console.run("cat /sys/block/vd[a-i]/size")
        assert [int(size) // 2048 for size in sizes.split()] == list(range(1, 10))
        assert (await console.run("cat /sys/class/net/eth0/address")).strip() == derive_mac(
            vm.uuid, 0
        )
        assert "0x10d3" in await console.run("cat /sys/bus/pci/devices/0000:00:14.1/device")
        assert (await console.run("nproc")).strip() == "2"
        identity = await console.run("cat /sys/class/dmi/id/product_uuid")
        assert identity.strip() == str(vm.uuid)
        await console.run("modprobe 9pnet_virtio; modprobe 9p; mkdir /tmp/share")
        await console.run("mount -t 9p -o trans=virtio,version=9p2000.L a,tag /tmp/share")
        assert "hello guest" in await console.run("cat /tmp/share/letter")
        assert "Read-only" in await console.run("touch /tmp/share/x 2>&1 || true")
    assert READY in (short_dir / "console.log").read_text()


async def test_the_guest_writes_into_a_share(short_dir: Path) -> None:
    virtiofsd = await find_virtiofsd(root=os.geteuid() == 0)
    if virtiofsd is None:
        pytest.skip("needs a virtiofsd that can run here")
    share = Share("shared", "tag")
    (short_dir / "shared").mkdir()
    vm = evolve(make_linux(), shares=(share,))
    host = await find_everything(vm, short_dir, listen_unix)
    listener = listen_unix(short_dir / "share0")
    host = evolve(host, sockets=evolve(host.sockets, shares=(listener,)))
    helper = virtiofs_helper(virtiofsd, share, check_share(share, short_dir), listener, 0)
    async with helping(helper):
        listener.close()
        async with booted(vm, host) as (_, console):
            await console.run("modprobe virtiofs; mkdir /tmp/share")
            await console.run("mount -t virtiofs tag /tmp/share && echo hi >/tmp/share/letter")

            assert (short_dir / "shared" / "letter").read_text() == "hi\n"


@pytest.mark.skipif(shutil.which("swtpm") is None, reason="needs swtpm")
async def test_a_uefi_guest_finds_firmware_and_tpm(short_dir: Path) -> None:
    # The test guest's kernel is unpacked, which only a BIOS guest can start.
    # Ubuntu lets only root read its kernels.
    kernels = [file for file in sorted(Path("/boot").glob("vmlinuz-*")) if os.access(file, os.R_OK)]
    if not kernels:
        pytest.skip("needs a kernel in /boot that can be read")
    boot = Boot(str(kernels[-1]), str(guest_files()[1]), CMDLINE)
    vm = evolve(make_linux(), boot=boot, firmware=Firmware.UEFI, tpm=True)
    folder = tpm_folder(short_dir, vm.name)
    create_tpm_folder(folder)
    host = await find_everything(vm, short_dir, listen_unix)
    tpm = listen_unix(short_dir / "tpm.sock")
    host = evolve(host, sockets=evolve(host.sockets, tpm=tpm))
    fresh = host.firmware_vars.read_bytes()
    async with helping(tpm_helper(find_swtpm(), folder, tpm, short_dir / "tpm.log")):
        tpm.close()
        async with booted(vm, host) as (_, console):
            await console.run("test -d /sys/firmware/efi")
            version = await console.run("cat /sys/class/tpm/tpm0/tpm_version_major")
            assert version.strip() == "2"
    assert host.firmware_vars.read_bytes() != fresh


async def test_a_guest_that_powers_off_stays_readable(short_dir: Path) -> None:
    vm = evolve(make_linux(), networks=())
    host = await find_everything(vm, short_dir, listen_unix)
    async with booted(vm, host) as (qmp, console):
        await console.send("poweroff -f\n")
        event = await wait_for_event(qmp, "SHUTDOWN")
        status = await qmp.execute("query-status")

        assert event.data["reason"] == "guest-shutdown"
        assert status["status"] == "shutdown"


async def test_a_panic_is_told_by_the_panic_device_and_stays_readable(short_dir: Path) -> None:
    vm = evolve(make_linux(), networks=())
    host = await find_everything(vm, short_dir, listen_unix)
    async with booted(vm, host) as (qmp, console):
        await console.send("modprobe pvpanic-pci; echo c >/proc/sysrq-trigger\n")
        event = await wait_for_event(qmp, "GUEST_PANICKED")
        with trio.fail_after(10):
            while (status := await qmp.execute("query-status"))["status"] != "guest-panicked":
                await qmp.events.receive()

        assert event.data["action"] == "pause"
        assert not status["running"]
