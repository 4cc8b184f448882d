"""What a guest shows is seen on the host: shared memory, VNC, SPICE, screenshots, viewers."""

import os
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import pytest
from attrs import evolve

from arcsup.model import Audio, Display, DisplayType, LookingGlass, Vm
from arcsup.vm.commandline import Resources, build_command_line
from arcsup.vm.shared_memory import create_shared_memory, remove_shared_memory
from arcsup.vm.sockets import listen_unix
from tests.guest import READY, Console, open_console
from tests.pictures import Picture, fetch_vnc_frame, read_png, read_ppm
from tests.qemu.daemon import TINY, Daemon, running_daemon
from tests.qemu.test_commandline import find_everything, running
from tests.qemu.test_guest_hardware import make_linux
from tests.qemu.test_life import linux

PATTERN = 0x51A7C0DE

RED = (0xA8, 0, 0)
"""Colour 4 of a VGA text screen."""


@pytest.fixture
def daemon(short_dir: Path) -> Iterator[Daemon]:
    with running_daemon(short_dir) as daemon:
        yield daemon


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


@pytest.mark.guest
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
            # busybox takes the width for bytes, and would map the next page along with the last
            # word, which may be a driver's.
            await console.run(f"devmem {last - 31:#x} 32 {PATTERN - number:#x}")

            assert piece.path.stat().st_size == piece.size_mib * 2**20
            with piece.path.open("rb") as stream:
                stream.seek(4096)
                assert struct.unpack("<I", stream.read(4))[0] == PATTERN + number
                stream.seek(-32, os.SEEK_END)
                assert struct.unpack("<I", stream.read(4))[0] == PATTERN - number


async def start_red_guest(daemon: Daemon, name: str, more: str) -> None:
    """Start a guest whose screen is red."""
    daemon.drop(name, linux(more=more))
    console = daemon.wait_for(name, "running")["consoleSocket"]
    async with open_console(Path(console)) as serial:
        await serial.send("\n")
        await serial.wait_for("# ")
        # The text buffer of the VGA card (0xb8000): blanks on colour 4. The kernel was entered
        # without the loader that would tell it of this screen, so it has no console there.
        await serial.run("yes ' @' | tr -d '\\n' | head -c 4096 | dd of=/dev/mem bs=4096 seek=184")


def take_screenshot(daemon: Daemon, name: str) -> Picture:
    file = daemon.top / f"{name}.png"
    done = daemon.arcsup("screenshot", name, str(file))
    assert done.returncode == 0, done.stderr
    return read_png(file.read_bytes())


@pytest.mark.guest
async def test_a_frame_of_the_guest_is_seen_through_vnc_and_in_a_screenshot(
    daemon: Daemon,
) -> None:
    await start_red_guest(daemon, "one", "display: vnc\n")
    frame = fetch_vnc_frame(Path(daemon.status("one")["viewing"]["socket"]))
    screenshot = take_screenshot(daemon, "one")

    assert frame.share_of(*RED) > 0.9
    assert (screenshot.width, screenshot.height) == (frame.width, frame.height)
    assert screenshot.share_of(*RED) > 0.9


@pytest.mark.guest
@pytest.mark.skipif(shutil.which("spicy-screenshot") is None, reason="needs spice-client-gtk")
async def test_a_frame_of_the_guest_is_seen_by_a_spice_client(
    daemon: Daemon, short_dir: Path
) -> None:
    await start_red_guest(daemon, "one", "display: spice\n")
    socket = daemon.status("one")["viewing"]["socket"]
    file = short_dir / "spice.ppm"
    subprocess.run(
        ["spicy-screenshot", f"--uri=spice+unix://{socket}", f"--out-file={file}"],
        check=True,
        capture_output=True,
        timeout=60,
    )

    assert read_ppm(file).share_of(*RED) > 0.9
    assert take_screenshot(daemon, "one").share_of(*RED) > 0.9


def start_view(daemon: Daemon, name: str, **environment: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "arcsup", "--run", str(daemon.run), "view", name],
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def install_client(folder: Path) -> Path:
    """Put a client on a PATH of its own that stays until it is told to end, and return the PATH."""
    programs = folder / "bin"
    programs.mkdir()
    client = programs / "remote-viewer"
    client.write_text(
        f"#!/bin/sh\necho $$ >{folder}/pid && mv {folder}/pid {folder}/client\n"
        f"exec tail -f {folder}/daemon.log\n"
    )
    client.chmod(0o755)
    return programs


def test_the_client_ends_with_the_vm_and_outlives_the_daemon(
    daemon: Daemon, short_dir: Path
) -> None:
    daemon.drop("one", TINY + "display: spice\n")
    daemon.wait_for("one", "running")
    path = f"{install_client(short_dir)}:{os.environ['PATH']}"
    with start_view(daemon, "one", PATH=path) as view:
        daemon.until((short_dir / "client").exists, "the client runs")
        daemon.kill()
        daemon.start()
        daemon.wait_for("one", "running")
        assert view.poll() is None
        daemon.call("kill", "one")

        assert view.wait(60) == 0
    pid = int((short_dir / "client").read_text())
    assert not Path(f"/proc/{pid}").exists()


INTRO = """\
%YAML 1.2
%TAG !n! tag:nimyaml.org,2016:
--- !n!custom:Config
name: intro
startintro: true
introspect: none
nographics: true
spice: true
spicePort: PORT
container: {kernel: one.arc, state: [], initialSize: 1, iso: !!null ~}
cpus: {cores: 1, sockets: 1, threads: 1, ramAlloc: 64}
root: FOLDER
"""


def test_a_libvfio_file_with_startintro_is_shown_when_it_starts(
    daemon: Daemon, short_dir: Path, free_port: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = short_dir / "intro.yaml"
    images = daemon.state / "images"
    (images / "kernel").mkdir(parents=True)
    file.write_text(INTRO.replace("PORT", str(free_port())).replace("FOLDER", str(images)))
    monkeypatch.setenv("PATH", f"{install_client(short_dir)}:{os.environ['PATH']}")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.delenv("DISPLAY", raising=False)
    unseen = daemon.arcsup("start", str(file))
    assert unseen.returncode == 0, unseen.stderr
    assert "intro is not shown: this session has no screen" in unseen.stderr

    # The screen is the fake client's to open.
    monkeypatch.setenv("DISPLAY", ":none")
    shown = daemon.arcsup("start", str(file))
    assert (shown.returncode, shown.stderr) == (0, "")
    daemon.until((short_dir / "client").exists, "the client runs")
    pid = int((short_dir / "client").read_text())
    daemon.call("kill", "intro")
    daemon.until(lambda: not Path(f"/proc/{pid}").exists(), "the client ends with the VM")


def test_the_client_ends_with_the_view(daemon: Daemon, short_dir: Path) -> None:
    daemon.drop("one", TINY + "display: spice\n")
    daemon.wait_for("one", "running")
    path = f"{install_client(short_dir)}:{os.environ['PATH']}"
    with start_view(daemon, "one", PATH=path) as view:
        daemon.until((short_dir / "client").exists, "the client runs")
        view.send_signal(signal.SIGTERM)

        assert view.wait(60) == 128 + signal.SIGTERM
    pid = int((short_dir / "client").read_text())
    assert not Path(f"/proc/{pid}").exists()
    assert daemon.state_of("one") == "running"


@pytest.mark.guest
async def test_the_guest_finds_what_a_spice_client_speaks_to(short_dir: Path) -> None:
    vm = evolve(make_linux(), display=Display(DisplayType.SPICE))
    async with booted(vm, short_dir) as (console, _):
        await console.run("modprobe virtio_console")
        ports = await console.run("cat /sys/class/virtio-ports/*/name")
        classes = await console.run("cat /sys/bus/pci/devices/*/class")

    # The clipboard's agent; a screen, USB for tablet, keyboard and redirection, and sound.
    assert "com.redhat.spice.0" in ports.split()
    assert {"0x030000", "0x0c0330", "0x040300"} <= set(classes.split())
