"""Disks that are copied while their VMs write to them, by a real daemon and a real QEMU."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trio

from arcsup.control.client import vm_path
from arcsup.errors import Refused
from tests.guest import CMDLINE, guest_files, open_console
from tests.qemu.daemon import TINY, Daemon, running_daemon
from tests.qemu.guest_disks import holds, write_as_guest

DISK_MIB = 256
DISK = TINY + f"disks: [{{path: a.qcow2, size: {DISK_MIB}MiB}}]\n"

JOB = "arcsup-clone"


@pytest.fixture
def daemon(short_dir: Path) -> Iterator[Daemon]:
    with running_daemon(short_dir) as daemon:
        yield daemon


def qmp(daemon: Daemon, command: str, **arguments: Any) -> Any:
    body = {"execute": command, "arguments": arguments}
    return daemon.client.post(vm_path("web", "qmp"), body)["return"]


def images(daemon: Daemon) -> list[str]:
    return sorted(path.name for path in (daemon.state / "images").iterdir() if path.is_file())


def run_with_data(daemon: Daemon) -> None:
    """Start a VM whose disk is full of ones."""
    daemon.drop("web", DISK)
    daemon.wait_for("web", "running")
    for at in range(0, DISK_MIB, 64):
        line = f'qemu-io -d disk0/virtio-backend "write -P 1 {at}M 64M"'
        assert qmp(daemon, "human-monitor-command", **{"command-line": line}) == ""


def begin_clone(daemon: Daemon) -> "subprocess.Popen[str]":
    """Have the disk copied to b.qcow2, so slowly that it lasts until it is hurried."""
    while True:
        client = subprocess.Popen(
            [*daemon.program, "--run", str(daemon.run), "image", "clone", "a.qcow2", "b.qcow2"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        while client.poll() is None:
            with suppress(Refused):
                qmp(daemon, "block-job-set-speed", device=JOB, speed=1 << 20)
                if qmp(daemon, "query-jobs")[0]["status"] == "running":
                    return client
        # It was quicker than we are.
        said = client.communicate()
        assert client.returncode == 0, said
        (daemon.state / "images" / "b.qcow2").unlink()


def hurry(daemon: Daemon) -> None:
    qmp(daemon, "block-job-set-speed", device=JOB, speed=0)


def finish(client: "subprocess.Popen[str]", seconds: float) -> tuple[int, str]:
    out, err = client.communicate(timeout=seconds)
    assert out == ""
    return client.returncode, err


def whose(image: Path) -> tuple[int, int, int]:
    status = image.stat()
    return status.st_uid, status.st_gid, status.st_mode & 0o777


def nothing_is_left(daemon: Daemon) -> bool:
    nodes = [node["node-name"] for node in qmp(daemon, "query-named-block-nodes", flat=True)]
    return qmp(daemon, "query-jobs") == [] and JOB not in nodes and images(daemon) == ["a.qcow2"]


def test_a_copy_is_of_the_moment_it_began_while_the_guest_goes_on_writing(daemon: Daemon) -> None:
    run_with_data(daemon)

    client = begin_clone(daemon)
    write_as_guest(daemon, "web", "disk0", 9)
    line = f'qemu-io -d disk0/virtio-backend "write -P 9 {DISK_MIB - 1}M 1M"'
    assert qmp(daemon, "human-monitor-command", **{"command-line": line}) == ""
    assert "b.qcow2" not in images(daemon)
    hurry(daemon)

    assert finish(client, daemon.patience) == (0, "")
    copy = daemon.state / "images" / "b.qcow2"
    subprocess.run(["qemu-img", "check", "-q", copy], check=True)
    verify = ["qemu-io", "-r", "-f", "qcow2", "-c", f"read -P 1 0 {DISK_MIB}M", str(copy)]
    shown = subprocess.run(verify, capture_output=True, text=True, check=True).stdout
    assert "verification failed" not in shown
    daemon.call("kill", "web", wait="30")
    original = daemon.state / "images" / "a.qcow2"
    assert holds(original, 9)
    assert whose(copy) == whose(original)


def test_a_copy_that_is_interrupted_leaves_nothing(daemon: Daemon) -> None:
    run_with_data(daemon)

    client = begin_clone(daemon)
    busy = daemon.arcsup("image", "clone", "a.qcow2", "c.qcow2")
    client.send_signal(signal.SIGINT)

    assert finish(client, daemon.patience)[0] == 130
    assert (busy.returncode, "is being copied already" in busy.stderr) == (6, True)
    daemon.until(lambda: nothing_is_left(daemon), "nothing is left")
    assert daemon.state_of("web") == "running"
    assert daemon.arcsup("image", "clone", "a.qcow2", "b.qcow2").returncode == 0


def test_a_copy_ends_with_its_vm(daemon: Daemon) -> None:
    run_with_data(daemon)

    client = begin_clone(daemon)
    daemon.call("kill", "web", wait="30")

    code, err = finish(client, daemon.patience)
    assert code == 1
    assert "QEMU ended, or answers no more, before" in err
    assert images(daemon) == ["a.qcow2"]


def test_a_copy_ends_with_the_daemon_and_its_vm_goes_on(daemon: Daemon) -> None:
    run_with_data(daemon)

    client = begin_clone(daemon)
    daemon.terminate()

    assert finish(client, daemon.patience)[0] == 69
    assert images(daemon) == ["a.qcow2"]
    daemon.start()
    daemon.wait_for("web", "running")
    assert nothing_is_left(daemon)


def test_what_a_killed_daemon_was_copying_is_ended_by_the_next(daemon: Daemon) -> None:
    run_with_data(daemon)

    client = begin_clone(daemon)
    daemon.kill()
    assert finish(client, daemon.patience)[0] == 69
    daemon.start()
    daemon.wait_for_event("web", "clone-ended")

    assert qmp(daemon, "query-jobs") == []
    assert daemon.arcsup("image", "clone", "a.qcow2", "b.qcow2").returncode == 0
    assert images(daemon) == ["a.qcow2", "b.qcow2"]


def test_a_raw_disk_becomes_qcow2_and_takes_no_more_room(daemon: Daemon) -> None:
    daemon.drop("web", TINY + "disks: [{path: a.raw, format: raw, size: 64MiB}]\n")
    daemon.wait_for("web", "running")
    write_as_guest(daemon, "web", "disk0", 7)

    cloned = daemon.arcsup("image", "clone", "a.raw", "sub/b.qcow2")

    assert (cloned.returncode, cloned.stdout) == (0, "")
    assert cloned.stderr == "sub/b.qcow2 is qcow2: a VM file says `format: qcow2`\n"
    copy = daemon.state / "images" / "sub" / "b.qcow2"
    assert holds(copy, 7)
    assert copy.stat().st_blocks * 512 < 2 << 20


@pytest.mark.skipif(os.geteuid() != 0, reason="a daemon that is not root may do what its user may")
def test_a_copy_goes_nowhere_but_to_a_folder_for_images(daemon: Daemon) -> None:
    daemon.drop("web", DISK)
    daemon.wait_for("web", "running")
    (daemon.top / "elsewhere").mkdir()
    (daemon.state / "images" / "way").symlink_to(daemon.top / "elsewhere")

    for target in (str(daemon.top / "elsewhere" / "b.qcow2"), "way/b.qcow2"):
        refused = daemon.arcsup("image", "clone", "a.qcow2", target)
        assert (refused.returncode, "outside of the folders" in refused.stderr) == (6, True)
    taken = daemon.arcsup("image", "clone", "a.qcow2", "a.qcow2")
    nowhere = daemon.arcsup("image", "clone", "a.qcow2", "/nonexistent/b.qcow2")

    assert list((daemon.top / "elsewhere").iterdir()) == []
    assert (taken.returncode, "is there already" in taken.stderr) == (6, True)
    assert (nowhere.returncode, "No such file" in nowhere.stderr) == (1, True)


AGENT = r"""
port=/dev/$(grep -l guest_agent /sys/class/virtio-ports/*/name | cut -d/ -f5)
mark() { printf $1 | dd of=/dev/vda conv=fsync 2>/dev/null; }
(while true; do
    read -r line || sleep 0.02
    case $line in
    *guest-sync*) id=${line##*: }; echo "{\"return\": ${id%%\}*}}" ;;
    *guest-ping*) echo "{\"return\": {}}" ;;
    *fsfreeze-freeze*) mark '\1'; echo "{\"return\": 1}" ;;
    *fsfreeze-thaw*) mark '\2'; echo "{\"return\": 1}" ;;
    esac
done 0<>$port >&0) &
"""
"""An agent of a few lines, which reads nothing while nobody is connected.

Instead of file systems it has a disk that it marks.
"""


@pytest.mark.guest
async def test_an_agent_has_file_systems_written_out_for_it(daemon: Daemon) -> None:
    kernel, initrd = guest_files()
    daemon.drop(
        "web",
        "memory: 256\naccel: tcg\nnetworks: []\ndisks: [{path: a.qcow2, size: 8MiB}]\n"
        f"boot: {{kernel: {kernel}, initrd: {initrd}, cmdline: '{CMDLINE}'}}\n",
    )
    daemon.wait_for("web", "running")
    async with open_console(Path(daemon.status("web")["consoleSocket"])) as console:
        log = daemon.log / "web" / "console.log"
        daemon.until(lambda: "guest ready" in log.read_text(errors="replace"), "it has booted")
        for line in AGENT.strip().splitlines():
            await console.send(f"{line}\n")
        await console.run("true")
        cloned = await trio.to_thread.run_sync(
            daemon.arcsup, "image", "clone", "a.qcow2", "b.qcow2"
        )

    assert (cloned.returncode, cloned.stderr) == (0, "")
    assert daemon.wait_for_event("web", "cloned")["data"] == {"consistent": True}
    daemon.call("kill", "web", wait="30")
    assert first_byte(daemon.state / "images" / "b.qcow2") == 1
    assert first_byte(daemon.state / "images" / "a.qcow2") == 2


def first_byte(image: Path) -> int:
    raw = image.with_suffix(".raw")
    convert = ["qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(image), str(raw)]
    subprocess.run(convert, check=True)
    return raw.read_bytes()[0]
