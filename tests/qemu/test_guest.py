"""The guest that all other guest tests rely on does what contrib/guest promises."""

from pathlib import Path

import pytest
import trio

from arcsup.vm.qmp import Qmp, QmpEvent
from tests.guest import READY
from tests.qemu.conftest import StartQemu

pytestmark = pytest.mark.guest


async def next_event(qmp: Qmp, name: str) -> QmpEvent:
    with trio.fail_after(60):
        async for event in qmp.events:
            if event.name == name:
                return event
    raise AssertionError(f"QEMU ended without {name}")


async def test_it_says_its_name_when_it_is_ready_and_runs_commands(start_qemu: StartQemu) -> None:
    async with start_qemu(cmdline="arcsup.name=alpha") as guest:
        await guest.console.wait_for(f"{READY}: alpha, up ")
        assert await guest.console.run("echo one; echo two") == "one\ntwo\n"
        with pytest.raises(AssertionError, match="exit status 3"):
            await guest.console.run("(exit 3)")


async def test_the_power_button_powers_it_down(start_qemu: StartQemu) -> None:
    async with start_qemu() as guest:
        await guest.console.wait_for(READY)
        await guest.qmp.execute("system_powerdown")
        event = await next_event(guest.qmp, "SHUTDOWN")
        assert event.data["reason"] == "guest-shutdown"
        with trio.fail_after(10):
            assert await guest.process.wait() == 0


async def test_told_so_it_ignores_the_power_button(start_qemu: StartQemu) -> None:
    async with start_qemu(cmdline="arcsup.powerbutton=ignore arcsup.heartbeat") as guest:
        await guest.console.wait_for(READY)
        await guest.qmp.execute("system_powerdown")
        await next_event(guest.qmp, "POWERDOWN")
        await guest.console.wait_for("heartbeat 3\n")
        assert guest.process.returncode is None


async def test_it_reboots_inside_one_qemu(start_qemu: StartQemu) -> None:
    async with start_qemu() as guest:
        await guest.console.wait_for(READY)
        await guest.console.send("reboot -f\n")
        event = await next_event(guest.qmp, "RESET")
        assert event.data["reason"] == "guest-reset"
        await guest.console.wait_for(READY)


@pytest.mark.parametrize("device", ["pvpanic", "pvpanic-pci"])
async def test_a_panic_is_told_by_pvpanic(start_qemu: StartQemu, device: str) -> None:
    async with start_qemu("-device", device) as guest:
        await guest.console.wait_for(READY)
        await guest.console.send("echo c >/proc/sysrq-trigger\n")
        await next_event(guest.qmp, "GUEST_PANICKED")


async def test_it_has_its_devices(start_qemu: StartQemu, short_dir: Path) -> None:
    for name in ("disk", "cdrom"):
        (short_dir / name).write_bytes(f"on the {name}".encode().ljust(2**20, b"\0"))
    async with start_qemu(
        "-drive", f"file={short_dir}/disk,format=raw,if=virtio",
        "-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net",
        "-device", "virtio-rng-pci",
        "-cdrom", f"{short_dir}/cdrom",
        "-virtfs", f"local,path={short_dir},mount_tag=share,security_model=none",
    ) as guest:  # fmt: skip
        await guest.console.wait_for(READY)
        run = guest.console.run
        assert await run("head -c 11 /dev/vda") == "on the disk"
        assert "virtio" in await run("cat /sys/class/misc/hw_random/rng_available")
        await run("until ip -4 addr show eth0 | grep -q 10.0.2.15; do sleep 0.1; done")
        await run("modprobe 9p && modprobe 9pnet_virtio && mkdir /s && mount -t 9p share /s")
        await run("echo hello >/s/from-guest")
        assert (short_dir / "from-guest").read_text() == "hello\n"
        await run("modprobe sr_mod && modprobe ahci")
        await run("until [ -b /dev/sr0 ]; do sleep 0.1; done")
        assert await run("head -c 12 /dev/sr0") == "on the cdrom"
