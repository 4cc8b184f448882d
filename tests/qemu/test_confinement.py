"""What a VM of a daemon that is root sees of the host, and where its programs are."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.qemu.daemon import TINY, Daemon, running_daemon
from tests.test_vm_private_tmp import can_mount

pytestmark = pytest.mark.skipif(not can_mount(), reason="mounts nothing here")


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    """Yield a daemon whose folders are where a system's are: not in /tmp."""
    top = Path(tempfile.mkdtemp(prefix="arc", dir="/run"))
    try:
        with running_daemon(top) as daemon:
            yield daemon
    finally:
        shutil.rmtree(top)


def tmp_of(pid: int) -> list[set[str]]:
    """Return what a process finds in /tmp and /var/tmp."""
    return [set(os.listdir(f"/proc/{pid}/root{folder}")) for folder in ("/tmp", "/var/tmp")]


def test_its_tmp_is_its_own_and_what_comes_later_is_there(daemon: Daemon, short_dir: Path) -> None:
    daemon.drop("one", f"{TINY}tpm: true\ndisks: [{{path: one.qcow2, size: 10MiB}}]\n")
    pid = daemon.wait_for("one", "running")["pid"]

    launch = daemon.records()["one"]["launch"]
    assert len(launch["processes"]) == 2
    for program in launch["processes"]:
        assert tmp_of(program["identity"]["pid"]) == [set(), set()]
    assert short_dir.name in os.listdir("/tmp")
    # A device node that appears on the host is a node for QEMU too.
    (daemon.top / "later").touch()
    assert Path(f"/proc/{pid}/root{daemon.top}/later").exists()
    assert os.stat(f"/proc/{pid}/root/dev/null").st_dev == os.stat("/dev/null").st_dev
    daemon.call("kill", "one", wait="60")


def test_an_image_in_tmp_is_found_there(daemon: Daemon, short_dir: Path) -> None:
    image = short_dir / "disc.iso"
    image.write_bytes(bytes(2048))
    image.chmod(0o644)
    daemon.drop("one", f"{TINY}cdroms: [{image}]\n")
    pid = daemon.wait_for("one", "running")["pid"]
    assert short_dir.name in tmp_of(pid)[0]
    daemon.call("kill", "one", wait="60")


def test_an_image_in_tmp_can_be_inserted_though_its_tmp_is_its_own(
    daemon: Daemon, short_dir: Path
) -> None:
    images = daemon.state / "images"
    for image in (images / "one.iso", short_dir / "two.iso"):
        image.parent.mkdir(exist_ok=True)
        image.write_bytes(bytes(2048))
        image.chmod(0o644)
    daemon.drop("one", f"{TINY}cdroms: [one.iso]\n")
    pid = daemon.wait_for("one", "running")["pid"]

    daemon.drop("one", f"{TINY}cdroms: [{short_dir}/two.iso]\n")

    daemon.wait_for_event("one", "media-changed")
    opened = [os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()]
    assert any(name.endswith("/two.iso") for name in opened)
    daemon.call("kill", "one", wait="60")
