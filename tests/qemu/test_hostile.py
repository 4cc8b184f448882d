"""Names that mean something to QEMU, and a disk that takes nothing: neither does harm."""

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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

        def ask(command: str) -> list[dict[str, Any]]:
            asked = {"execute": command, "arguments": {}}
            answer: list[dict[str, Any]] = daemon.client.post(vm_path("one", "qmp"), asked)[
                "return"
            ]
            return answer

        # Where QEMU is not root it has descriptors, each with the name of its file beside it.
        sets = {f"/dev/fdset/{it['fdset-id']}": it["fds"] for it in ask("query-fdsets")}
        files = {name: str(descriptor["opaque"]) for name, [descriptor] in sets.items()}
        blocks = ask("query-named-block-nodes")
        named = {block["file"] for block in blocks if block["drv"] == "file"}
        opened = {Path(files.get(file, file)).name for file in named}

        assert opened == set(names)
        assert not any(block["ro"] for block in blocks)


@contextmanager
def dead_file_system(place: Path) -> Iterator[None]:
    """Mount a file system whose server never answers; who waits for it gets an error afterwards."""
    libc = ctypes.CDLL(None, use_errno=True)
    server = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    try:
        options = f"fd={server},rootmode=40000,user_id=0,group_id=0".encode()
        if libc.mount(b"dead", bytes(place), b"fuse", 0, options):
            pytest.skip(f"no FUSE here: {os.strerror(ctypes.get_errno())}")
        yield
    finally:
        os.close(server)
        subprocess.run(["umount", "--lazy", place], check=False)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")
def test_a_start_that_waits_for_a_dead_file_system_can_be_ended_and_keeps_nobody_waiting(
    short_dir: Path,
) -> None:
    with running_daemon(short_dir) as daemon:
        place = daemon.state / "images" / "far"
        place.mkdir(parents=True, mode=0o711)
        daemon.drop("one", TINY + "autostart: false\ndisks: [{path: far/a.qcow2}]\n")
        daemon.drop("two", TINY + "autostart: false\nstop: {timeout: 100ms}\n")
        daemon.wait_for("one", "stopped")
        daemon.wait_for("two", "stopped")
        with dead_file_system(place):
            daemon.drop("three", TINY + "stop: {timeout: 100ms}\n")
            daemon.wait_for("three", "running")
            for verb in ("stop", "kill"):
                daemon.call("start", "one")
                daemon.until(lambda: "images" in daemon.status("one")["reason"], "it hangs")
                daemon.call("restart", "two", wait="30")
                assert daemon.state_of("two") == "running"
                daemon.call(verb, "one", wait="30")
                assert daemon.state_of("one") == "stopped"
        assert daemon.status("one")["lastExit"]["class"] == "killed"
        assert "Traceback" not in daemon.read_log()


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
