"""Names that mean something to QEMU, and a disk that takes nothing: neither does harm."""

import os
import subprocess
from pathlib import Path

import pytest

from arcsup.control.client import vm_path
from tests.qemu.daemon import TINY, running_daemon


def test_names_that_look_like_options_are_names(short_dir: Path) -> None:
    names = ["a,readonly=on,file.filename=x", "b c=d;$(id)", "-e,,", "json:{f}", "nbd:g"]
    with running_daemon(short_dir) as daemon:
        images = daemon.state / "images"
        images.mkdir(mode=0o711, exist_ok=True)
        for name in names:
            (images / name).write_bytes(bytes(2**20))
        disks = ", ".join(f"{{path: '{name}', format: raw}}" for name in names)
        daemon.drop("one", TINY + f"disks: [{disks}]\nshares: []\n")
        daemon.wait_for("one", "running")

        answer = daemon.client.post(
            vm_path("one", "qmp"), {"execute": "query-named-block-nodes", "arguments": {}}
        )
        blocks = answer["return"]
        opened = {Path(block["file"]).name for block in blocks if block["drv"] == "file"}

        assert opened == set(names)
        assert not any(block["ro"] for block in blocks)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")
def test_a_state_directory_that_takes_nothing_is_told_and_ends_nothing(short_dir: Path) -> None:
    state = short_dir / "state"
    state.mkdir(mode=0o711)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m,mode=711", "arcsup", state], check=True)
    try:
        with running_daemon(short_dir) as daemon:
            daemon.drop("one")
            pid = daemon.wait_for("one", "running")["pid"]
            # As a mount of its own: the file system itself has files open for writing.
            subprocess.run(["mount", "-o", "bind", state, state], check=True)
            subprocess.run(["mount", "-o", "remount,ro,bind", state], check=True)

            daemon.drop("two")
            daemon.until(lambda: "Read-only file system" in daemon.read_log(), "it is told")
            assert daemon.qemus() == [pid]
            daemon.drop("one", TINY + "description: edited\n")
            os.kill(pid, 9)
            daemon.until(lambda: daemon.qemus() == [], "it has ended")

            subprocess.run(["umount", state], check=True)
            for name in ("one", "two"):
                daemon.wait_for(name, "running")
            assert "Traceback" not in daemon.read_log()
    finally:
        subprocess.run(["umount", "--lazy", state], check=True)
