"""Images of VMs that run: what is asked of their QEMU, and what is refused."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.qemu.daemon import TINY, Daemon, running_daemon

DISK = TINY + "disks: [{path: a.qcow2, size: 8MiB}]\n"


@pytest.fixture
def daemon(short_dir: Path) -> Iterator[Daemon]:
    with running_daemon(short_dir) as daemon:
        yield daemon


def test_a_snapshot_of_a_running_vm_is_its_qemus_work(daemon: Daemon) -> None:
    daemon.drop("web", DISK)
    daemon.wait_for("web", "running")

    assert daemon.arcsup("image", "snapshot", "a.qcow2", "one").returncode == 0
    assert daemon.arcsup("image", "snapshot", "a.qcow2", "two").returncode == 0
    assert daemon.arcsup("image", "snapshot", "a.qcow2", "one", "--delete").returncode == 0
    again = daemon.arcsup("image", "snapshot", "a.qcow2", "two")

    (shown,) = json.loads(daemon.arcsup("image", "list", "-o", "json").stdout)
    assert [it["name"] for it in shown["snapshots"]] == ["two"]
    assert shown["users"] == [{"vm": "web", "state": "running", "use": "disk"}]
    assert (again.returncode, "two" in again.stderr) == (6, True)

    daemon.call("kill", "web", wait="30")
    assert daemon.arcsup("image", "revert", "a.qcow2", "two").returncode == 0


@pytest.mark.parametrize(
    "verb",
    [
        ("revert", "a.qcow2", "one"),
        ("commit", "a.qcow2"),
        ("clone", "--linked", "a.qcow2", "b.qcow2"),
    ],
)
def test_an_image_is_not_changed_or_built_upon_under_a_running_vm(
    daemon: Daemon, verb: tuple[str, ...]
) -> None:
    daemon.drop("web", DISK)
    daemon.wait_for("web", "running")

    refused = daemon.arcsup("image", *verb)

    assert refused.returncode == 6
    assert "in use by VM web, which is running" in refused.stderr
    assert "hint: arcsup stop web" in refused.stderr


def test_qemus_own_lock_holds_where_no_daemon_is(daemon: Daemon) -> None:
    daemon.drop("web", DISK)
    pid = daemon.wait_for("web", "running")["pid"]
    top = daemon.state / "images" / "a.qcow2"
    nobody = ("--state", str(daemon.state), "--vms", str(daemon.top))

    for verb in ("snapshot", "clone"):
        arguments = (str(top), "b.qcow2") if verb == "clone" else (str(top),)
        refused = daemon.arcsup("image", verb, *nobody, *arguments)
        assert refused.returncode == 6
        assert f"a.qcow2 is in use by process {pid}" in refused.stderr
