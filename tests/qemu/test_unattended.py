"""Installations that ask nobody, with real guests: what they find, and that nothing stays."""

import io
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from pycdlib import PyCdlib

from arcsup.control.client import vm_path
from tests.guest import guest_files, open_console
from tests.installer import write_installer
from tests.qemu.daemon import TINY, Daemon, running_daemon

GUEST = TINY + "disks: [{path: guest.qcow2}]\nstop: {timeout: 100ms}\n"
PASSWORD = "correct horse battery staple"


@pytest.fixture
def daemon(short_dir: Path) -> Iterator[Daemon]:
    with running_daemon(short_dir) as daemon:
        yield daemon


def create(
    daemon: Daemon, image: Path, kind: str, *more: str, text: str = GUEST
) -> CompletedProcess[str]:
    (daemon.top / "guest.yaml").write_text(text)
    (daemon.top / "password").write_text(f"{PASSWORD}\n")
    return daemon.arcsup(
        "create", str(daemon.top / "guest.yaml"), str(image), "1", "--unattended", kind,
        "--password-file", str(daemon.top / "password"), *more,
    )  # fmt: skip


def find_answers(daemon: Daemon) -> list[Path]:
    return sorted(path for path in (daemon.state / "answers").rglob("*") if path.is_file())


INIT = f"""{"#!"}/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox grep passwd/username /preseed.cfg >/dev/ttyS0
read -r line </dev/ttyS0
/bin/busybox poweroff -f
"""
"""The installer that stands in for Debian's: it tells what it was told, and waits for a line."""


def write_debian_iso(path: Path) -> Path:
    """Write an ISO laid out as Debian's installer, with the test guest's kernel."""
    kernel, initrd = guest_files()
    init = path.with_name("init")
    init.write_text(INIT)
    init.chmod(0o755)
    archive = subprocess.run(
        ["cpio", "-o", "-H", "newc", "--quiet"],
        input=b"init\n", cwd=path.parent, capture_output=True, check=True,
    )  # fmt: skip
    both = initrd.read_bytes() + bytes(-initrd.stat().st_size % 4) + archive.stdout
    iso = PyCdlib()
    iso.new(rock_ridge="1.09")
    iso.add_directory("/INSTALL", rr_name="install.amd")
    for number, (name, data) in enumerate(
        {"vmlinuz": kernel.read_bytes(), "initrd.gz": both}.items()
    ):
        iso.add_fp(io.BytesIO(data), len(data), f"/INSTALL/FILE{number}.;1", rr_name=name)
    iso.write(str(path))
    iso.close()
    return path


@pytest.mark.skipif(shutil.which("cpio") is None, reason="needs cpio")
async def test_debians_installer_is_started_with_a_preseed_that_is_gone_afterwards(
    daemon: Daemon,
) -> None:
    iso = write_debian_iso(daemon.top / "debian.iso")
    text = GUEST.replace("memory: 64", "memory: 256")

    created = create(daemon, iso, "debian", "--user", "web", text=text)

    assert created.returncode == 0, created.stderr
    initrd, kernel = find_answers(daemon)
    assert (initrd.name, kernel.name) == ("initrd", "vmlinuz")
    assert {path.stat().st_mode & 0o777 for path in (initrd, kernel)} == {0o600}
    # QEMU's user passes, to files that are its alone; nobody looks around.
    assert initrd.parent.stat().st_mode & 0o066 == 0
    log = daemon.log / "guest/console.log"
    daemon.until(lambda: "d-i passwd/username string web" in log.read_text(), "it is read")
    # A new daemon leaves them, for as long as the installer may be started again.
    daemon.kill()
    daemon.start()
    daemon.wait_for("guest", "running")
    assert find_answers(daemon) == [initrd, kernel]
    async with open_console(daemon.run / "guest/console.sock") as console:
        await console.send("go on\n")

    daemon.wait_for("guest", "stopped")
    daemon.until(lambda: find_answers(daemon) == [], "the answers are removed")
    check_nothing_tells(daemon)


def check_nothing_tells(daemon: Daemon) -> None:
    """Look for the password in everything that the daemon has written."""
    for folder in (daemon.log, daemon.state, daemon.run):
        for path in folder.rglob("*"):
            if path.is_file():
                assert PASSWORD.encode() not in path.read_bytes(), path
    assert PASSWORD not in daemon.read_log()


def name_in_qemu(daemon: Daemon, file: Path) -> str:
    """Return by what name the QEMU of a guest has a file."""
    for word in daemon.status("guest")["argv"]:
        if word.startswith("fd=") and word.endswith(f",opaque={file}"):
            return f"/dev/fdset/{word.partition(',set=')[2].partition(',')[0]}"
    return str(file)


def test_windows_has_its_answers_in_a_drive(daemon: Daemon) -> None:
    iso = write_installer(daemon.top / "windows.iso")
    drivers = write_installer(daemon.top / "drivers.iso")
    # The BIOS waits at an installer that does not boot: there is time to look.
    iso.write_bytes(bytes(len(iso.read_bytes())))

    created = create(daemon, iso, "windows", "--drivers", str(drivers))

    assert created.returncode == 0, created.stderr
    [answers] = find_answers(daemon)
    assert answers.stat().st_mode & 0o777 == 0o600
    blocks = daemon.client.post(vm_path("guest", "qmp"), {"execute": "query-block"})["return"]
    files = {it["qdev"]: it["inserted"]["file"] for it in blocks}
    for number, image in enumerate((iso, drivers, answers)):
        assert files[f"cd{number}"] == name_in_qemu(daemon, image)
    check_nothing_tells(daemon)

    daemon.arcsup("stop", "guest")

    daemon.until(lambda: find_answers(daemon) == [], "the answers are removed")


def test_a_cloud_image_lies_under_the_disk_and_finds_its_seed(daemon: Daemon) -> None:
    image = daemon.top / "cloud.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "8M"], check=True)
    before = image.read_bytes()

    created = create(daemon, image, "cloud-init")

    assert created.returncode == 0, created.stderr
    [seed] = find_answers(daemon)
    # Debian's cloud kernel has no driver for the SATA drive that an installer's media are in.
    blocks = daemon.client.post(vm_path("guest", "qmp"), {"execute": "query-block"})["return"]
    name = name_in_qemu(daemon, seed)
    [device] = [it["qdev"] for it in blocks if it.get("inserted", {}).get("file") == name]
    assert "virtio" in device
    daemon.arcsup("kill", "guest")
    daemon.wait_for("guest", "gone")
    disk = daemon.state / "images/guest.qcow2"
    told = subprocess.run(
        ["qemu-img", "info", "--output=json", disk], capture_output=True, text=True, check=True
    )
    assert str(image) in told.stdout
    assert '"virtual-size": 1073741824' in told.stdout
    assert image.read_bytes() == before
    check_nothing_tells(daemon)


def test_an_installer_that_powered_off_leaves_no_answers(daemon: Daemon) -> None:
    created = create(daemon, write_installer(daemon.top / "installer.iso"), "windows")

    assert created.returncode == 0, created.stderr
    daemon.wait_for("guest", "stopped")
    daemon.until(lambda: find_answers(daemon) == [], "the answers are removed")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--unattended", "debian", "--password-file", "password"], 6, "is no ISO image"),
        (["--unattended", "windows"], 2, "there is no terminal to ask for a password"),
        (["--user", "web"], 2, "--user goes with --unattended"),
        (["--unattended", "windows", "--password-file", "nowhere"], 4, "there is no file nowhere"),
        (
            ["--unattended", "windows", "--password-file", "password", "--user", "A B"],
            2,
            "--user: expected a name",
        ),
    ],
)
def test_what_cannot_be_is_said_in_a_line_and_leaves_nothing(
    arguments: list[str], code: int, said: str, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(daemon.top)
    (daemon.top / "guest.yaml").write_text(GUEST)
    (daemon.top / "password").write_text(PASSWORD)
    (daemon.top / "image.iso").write_bytes(bytes(4096))

    refused = daemon.arcsup("create", "guest.yaml", "image.iso", "1", *arguments)

    assert (refused.returncode, refused.stdout) == (code, "")
    assert said in refused.stderr.splitlines()[0]
    assert len(refused.stderr.splitlines()) <= 2
    assert daemon.client.get("/v1/vms") == []
    assert find_answers(daemon) == []
