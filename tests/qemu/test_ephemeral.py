"""Disks whose writes last one run, and the decision to keep them."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.open_images import open_for_reading
from tests.qemu.daemon import TINY, Daemon, running_daemon
from tests.qemu.guest_disks import holds, write_as_guest

VM = (
    TINY
    + """stop: {timeout: 100ms}
disks:
  - {path: system.qcow2, size: 8MiB, ephemeral: true}
  - {path: NAME-data.qcow2, size: 8MiB}
"""
)


@pytest.fixture
def daemon(short_dir: Path) -> Iterator[Daemon]:
    with running_daemon(short_dir) as daemon:
        yield daemon


def run(daemon: Daemon, name: str) -> None:
    daemon.drop(name, VM.replace("NAME", name))
    daemon.wait_for(name, "running")


def system(daemon: Daemon) -> Path:
    return daemon.state / "images" / "system.qcow2"


def overlays(daemon: Daemon) -> list[str]:
    folder = daemon.state / "images" / ".ephemeral"
    return sorted(str(path.relative_to(folder)) for path in folder.glob("*/*"))


@contextmanager
def suspended(pid: int) -> Iterator[None]:
    """Keep a process from running for the length of the block."""
    os.kill(pid, signal.SIGSTOP)
    yield
    os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("verb", ["stop", "kill"])
def test_what_is_written_is_gone_after_a_stop_and_data_disks_keep_theirs(
    daemon: Daemon, verb: str
) -> None:
    run(daemon, "web")
    assert overlays(daemon) == ["web/disk0.qcow2"]
    write_as_guest(daemon, "web", "disk0", 7)
    write_as_guest(daemon, "web", "disk1", 8)

    assert daemon.arcsup(verb, "web").returncode == 0

    assert overlays(daemon) == []
    assert holds(system(daemon), 0)
    assert holds(daemon.state / "images" / "web-data.qcow2", 8)


def test_every_start_begins_with_the_image_as_it_is(daemon: Daemon) -> None:
    run(daemon, "web")
    write_as_guest(daemon, "web", "disk0", 7)

    assert daemon.arcsup("restart", "web").returncode == 0
    assert daemon.arcsup("stop", "web", "--save").returncode == 0

    assert holds(system(daemon), 0)


def test_stop_save_keeps_what_was_written(daemon: Daemon) -> None:
    run(daemon, "web")
    write_as_guest(daemon, "web", "disk0", 7)

    stopped = daemon.arcsup("stop", "web", "--save")

    assert (stopped.returncode, stopped.stdout) == (0, "web: stopped\n")
    assert holds(system(daemon), 7)
    assert overlays(daemon) == []
    assert "system.qcow2 now" in daemon.wait_for_event("web", "saved")["message"]
    # It was for that stop alone.
    assert daemon.arcsup("start", "web").returncode == 0
    write_as_guest(daemon, "web", "disk0", 9)
    daemon.arcsup("stop", "web")
    assert holds(system(daemon), 7)


def test_two_vms_run_on_one_image_and_none_changes_it_under_the_other(daemon: Daemon) -> None:
    run(daemon, "one")
    run(daemon, "two")
    write_as_guest(daemon, "one", "disk0", 1)
    write_as_guest(daemon, "two", "disk0", 2)

    refused = daemon.arcsup("stop", "one", "--save")
    assert (refused.returncode, "VM two stands on" in refused.stderr) == (6, True)
    assert daemon.state_of("one") == "running"

    daemon.arcsup("stop", "two")
    assert daemon.arcsup("stop", "one", "--save").returncode == 0
    assert holds(system(daemon), 1)


def test_a_vm_adopted_by_the_next_daemon_can_still_be_saved(daemon: Daemon) -> None:
    run(daemon, "web")
    write_as_guest(daemon, "web", "disk0", 7)
    daemon.kill()
    daemon.start()
    daemon.wait_for("web", "running")

    assert daemon.arcsup("stop", "web", "--save").returncode == 0
    assert holds(system(daemon), 7)


def test_nothing_to_save_is_said(daemon: Daemon) -> None:
    daemon.drop("plain")
    daemon.wait_for("plain", "running")
    plain = daemon.arcsup("stop", "plain", "--save")
    assert (plain.returncode, "no ephemeral disk" in plain.stderr) == (6, True)

    run(daemon, "web")
    daemon.arcsup("stop", "web")
    down = daemon.arcsup("stop", "web", "--save")
    assert (down.returncode, "is not running" in down.stderr) == (6, True)

    assert daemon.arcsup("start", "web").returncode == 0
    daemon.arcsup("kill", "plain")
    with_snapshot = daemon.arcsup("image", "snapshot", "system.qcow2", "one")
    assert (with_snapshot.returncode, "in use by process" in with_snapshot.stderr) == (6, True)


def test_an_overlay_that_names_another_base_by_now_is_not_saved(daemon: Daemon) -> None:
    """Who broke out of a guest can write any name into the header, and the daemon may be root."""
    run(daemon, "web")
    secret = daemon.top / "secret"
    secret.write_bytes(b"secret" * 1000)
    overlay = daemon.state / "images" / ".ephemeral" / "web" / "disk0.qcow2"
    argv = ["qemu-img", "rebase", "-u", "-U", "-f", "qcow2", "-F", "raw", "-b", str(secret)]
    with suspended(daemon.pid_of("web")):
        forged = overlay.with_name("forged")
        forged.write_bytes(overlay.read_bytes())
        subprocess.run([*argv, str(forged)], check=True)
        overlay.write_bytes(forged.read_bytes())

    stopped = daemon.arcsup("stop", "web", "--save")

    assert (stopped.returncode, "builds upon" in stopped.stderr) == (1, True)
    assert secret.read_bytes() == b"secret" * 1000
    assert holds(system(daemon), 0)


def test_what_cannot_be_saved_is_put_beside(daemon: Daemon) -> None:
    run(daemon, "web")
    write_as_guest(daemon, "web", "disk0", 7)
    # Somebody reads the image when the time has come, and nobody knew before.
    with open_for_reading(system(daemon)):
        stopped = daemon.arcsup("stop", "web", "--save")

    assert (stopped.returncode, "but not saved" in stopped.stderr) == (1, True)
    status = daemon.status("web")
    assert "in use by process" in status["reason"]
    (aside,) = (daemon.state / "images").glob("web-disk0-unsaved-*.qcow2")
    assert str(aside) in status["reason"]
    assert holds(aside, 7)
    assert holds(system(daemon), 0)
    assert daemon.arcsup("image", "commit", aside.name).returncode == 0
    assert holds(system(daemon), 7)
