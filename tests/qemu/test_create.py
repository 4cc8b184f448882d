"""The three steps of the LibVF.IO guide, with a real installer: create, then start."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.installer import INSTALLED, INSTALLING, write_installer
from tests.qemu.daemon import TINY, Daemon, running_daemon

GUEST = TINY + "disks: [{path: guest.qcow2}]\nlookingGlass: true\nstop: {timeout: 100ms}\n"

LIBVFIO = """\
%YAML 1.2
%TAG !n! tag:nimyaml.org,2016:
--- !n!custom:Config
name: a guest
nographics: true
spice: true
spicePort: 5987
sshPort: -1
introspect: looking-glass
container: {{kernel: one.arc, state: [], initialSize: 1, iso: !!null ~}}
cpus: {{cores: 1, sockets: 1, threads: 1, ramAlloc: 64}}
gpus:
  -
    - gpuType: sysfsdev
    - mdevType: ""
commands:
  - arg: "-set"
    values: ["device.hostdev0.x-pci-device-id=0x1e30"]
root: {root}
"""


@pytest.fixture
def daemon(short_dir: Path) -> Iterator[Daemon]:
    config = short_dir / "arcsup.yaml"
    config.write_text(f"imageDirs: [{short_dir}/arc]\n")
    with running_daemon(short_dir, "--config", str(config)) as daemon:
        yield daemon


@pytest.fixture
def iso(short_dir: Path) -> Path:
    return write_installer(short_dir / "installer.iso")


def write(daemon: Daemon, name: str, text: str) -> Path:
    file = daemon.top / name
    file.write_text(text)
    return file


def wait_for_console(daemon: Daemon, name: str, text: str) -> None:
    log = daemon.log / name / "console.log"
    daemon.until(lambda: log.exists() and text in log.read_text(), f"the console says {text}")


def test_an_installer_fills_the_disk_and_start_boots_it(daemon: Daemon, iso: Path) -> None:
    file = write(daemon, "guest.yaml", GUEST)
    disk = daemon.state / "images/guest.qcow2"

    created = daemon.arcsup("create", str(file), str(iso), "1")

    assert created.returncode == 0, created.stderr
    # It may have powered off by the time that it is looked at: then it has no screen any more.
    screen = f"its screen is VNC on {daemon.run}/guest/display.sock: arcsup view guest"
    assert created.stdout.splitlines() in (["guest: running", screen], ["guest: stopped"])
    wait_for_console(daemon, "guest", INSTALLING)
    stopped = daemon.wait_for("guest", "stopped")
    assert (stopped["reason"], stopped["mode"]) == ("the guest powered off", [])
    assert stopped["file"] == str(file)
    assert disk.read_bytes()[:4] == b"QFI\xfb"
    # A new daemon knows it as well.
    daemon.kill()
    daemon.start()
    assert daemon.state_of("guest") == "stopped"

    daemon.arcsup("start", str(file), "--no-wait")

    wait_for_console(daemon, "guest", INSTALLED)
    daemon.wait_for("guest", "gone")


def test_arcd_does_the_same_with_a_file_of_its_own(daemon: Daemon, iso: Path) -> None:
    root = daemon.top / "arc"
    (root / "kernel").mkdir(parents=True)
    file = write(daemon, "windows.yaml", LIBVFIO.format(root=root))
    daemon.program = (str(Path(daemon.program[0]).with_name("arcd")),)

    created = daemon.arcsup("create", str(file), str(iso), "2")

    assert created.returncode == 0, created.stderr
    wait_for_console(daemon, "windows", INSTALLING)
    assert daemon.wait_for("windows", "stopped")["gpus"] == []
    assert (root / "kernel/one.arc").stat().st_size > 0
    # Its GPU is not there: the guide's way out.
    started = daemon.arcsup("start", str(file), "--disable-gpu", "--no-wait")
    assert started.returncode == 0, started.stderr
    wait_for_console(daemon, "windows", INSTALLED)
    daemon.wait_for("windows", "gone")


def test_a_disk_that_is_there_is_never_installed_over(daemon: Daemon, iso: Path) -> None:
    file = write(daemon, "guest.yaml", GUEST)
    disk = daemon.state / "images/guest.qcow2"
    disk.parent.mkdir(exist_ok=True)
    disk.write_bytes(b"precious")

    refused = daemon.arcsup("create", str(file), str(iso), "1")

    assert refused.returncode == 6
    assert refused.stderr.splitlines() == [
        f"arcsup: the disk {disk} is there already, and nothing is installed over it",
        "  hint: start the VM, or remove the disk or name another in the file",
    ]
    assert disk.read_bytes() == b"precious"
    assert daemon.client.get("/v1/vms") == []


def test_an_installer_that_did_not_come_up_can_be_tried_again(daemon: Daemon, iso: Path) -> None:
    broken = "qemu: {args: [-nonsense]}\n"
    file = write(daemon, "guest.yaml", GUEST + broken)

    failed = daemon.arcsup("create", str(file), str(iso), "1")

    assert failed.returncode == 1
    assert "invalid option" in failed.stderr
    assert (daemon.state / "images/guest.qcow2").exists()
    file.write_text(GUEST)
    again = daemon.arcsup("create", str(file), str(iso), "1")
    assert again.returncode == 0, again.stderr
    daemon.wait_for("guest", "stopped")


@pytest.mark.parametrize(
    ("file", "iso", "size", "code", "said"),
    [
        (GUEST, "nowhere.iso", "1", 4, "there is no image nowhere.iso"),
        (GUEST, "installer.iso", "lots", 2, "expected a number of GiB such as 64"),
        (GUEST, "installer.iso", "0", 2, "expected a number of GiB such as 64"),
        (GUEST, "installer.iso", "99999999999", 2, "expected a number of GiB such as 64"),
        (TINY, "installer.iso", "1", 1, "disks: expected a disk to install on, got none"),
        (TINY + "memori: 1\n", "installer.iso", "1", 1, "memori: unknown key"),
        (
            TINY + "disks: [{path: /nowhere/at/all.qcow2}]\n",
            "installer.iso",
            "1",
            6,
            "there is no folder /nowhere/at",
        ),
    ],
)
def test_what_cannot_be_is_said_in_a_line(
    file: str,
    iso: str,
    size: str,
    code: int,
    said: str,
    daemon: Daemon,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(daemon.top)
    write_installer(daemon.top / "installer.iso")
    write(daemon, "guest.yaml", file)

    refused = daemon.arcsup("create", "guest.yaml", iso, size)

    assert (refused.returncode, refused.stdout) == (code, "")
    assert said in refused.stderr.splitlines()[0]
    assert len(refused.stderr.splitlines()) <= 2
    assert daemon.client.get("/v1/vms") == []


def test_a_vm_of_the_directory_is_created_and_stays_there(daemon: Daemon, iso: Path) -> None:
    file = daemon.drop("guest", GUEST + "autostart: false\n")

    created = daemon.arcsup("create", str(file), str(iso), "1")

    assert created.returncode == 0, created.stderr
    wait_for_console(daemon, "guest", INSTALLING)
    daemon.wait_for("guest", "stopped")
    daemon.arcsup("start", "guest", "--no-wait")
    wait_for_console(daemon, "guest", INSTALLED)
    daemon.wait_for("guest", "stopped")
