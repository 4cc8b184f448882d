"""A program that broke out of its guest names another file in the header of its own disk."""

import json
import os
import re
import shutil
import stat
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.qemu.daemon import TINY, Daemon, running_daemon

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0, reason="only root can become QEMU's user, and needs protection from it"
)

OWN = TINY + "stop: {timeout: 100ms}\n"


@pytest.fixture
def daemon(short_dir: Path) -> Iterator[Daemon]:
    config = short_dir / "arcsup.yaml"
    config.write_text("isolation: per-vm\n")
    with running_daemon(short_dir, "--config", str(config)) as daemon:
        (daemon.state / "images").mkdir(mode=0o711, exist_ok=True)
        yield daemon


def begin_as(pid: int, act: Callable[[], None]) -> int:
    """Have a new process do something with exactly the rights of another one; return its pid."""
    status = Path(f"/proc/{pid}/status").read_text()

    def numbers(key: str) -> list[int]:
        found = re.search(rf"^{key}:(.*)$", status, re.MULTILINE)
        assert found
        return [int(number) for number in found[1].split()]

    uid, gid, groups = numbers("Uid")[0], numbers("Gid")[0], numbers("Groups")
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.setgroups(groups)
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        act()
        code = 0
    except PermissionError:
        code = 13
    finally:
        os._exit(code)


def do_as(pid: int, act: Callable[[], None]) -> int:
    """Do that to its end; return 0, or 13 where it was not permitted."""
    return os.waitstatus_to_exitcode(os.waitpid(begin_as(pid, act), 0)[1])


def name_base(descriptor: int, base: Path) -> None:
    """Write into the header of an open image that it builds upon a raw file."""
    at = 4096  # QEMU wants it in the first cluster.
    os.pwrite(descriptor, os.fsencode(base), at)
    os.pwrite(descriptor, struct.pack(">QI", at, len(os.fsencode(base))), 8)


def take_descriptor(pid: int, image: Path) -> int:
    """Return the descriptor that a QEMU has of its image: all that who broke out of it needs."""
    wanted = image.stat()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        if os.path.samestat(entry.stat(), wanted):
            return os.open(entry, os.O_RDWR)
    raise AssertionError(f"QEMU does not have {image}")


def forge(pid: int, image: Path, base: Path) -> int:
    """Write another base into the header of a disk, from within its QEMU."""
    descriptor = take_descriptor(pid, image)
    try:
        return do_as(pid, lambda: name_base(descriptor, base))
    finally:
        os.close(descriptor)


def read(path: Path) -> None:
    os.close(os.open(path, os.O_RDONLY))


def whose(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)


@pytest.mark.parametrize("victim", ["other.raw", "password"])
def test_a_qemu_that_crashes_is_not_lent_what_it_named_in_its_header(
    daemon: Daemon, victim: str
) -> None:
    images = daemon.state / "images"
    secret = images / victim
    secret.write_bytes(b"SECRET".ljust(512))
    secret.chmod(0o600)
    before = whose(secret)
    daemon.drop("one", OWN + "disks: [{path: one.qcow2, size: 1MiB}]\n")
    pid = daemon.wait_for("one", "running")["pid"]
    assert do_as(pid, lambda: read(secret)) == 13

    assert forge(pid, images / "one.qcow2", secret) == 0
    os.kill(pid, 9)

    reason = daemon.wait_for("one", "failed")["reason"]
    assert f"says that it builds upon {secret}, which built upon nothing" in reason
    assert "\n" not in reason
    assert whose(secret) == before


def test_a_header_is_not_believed_when_its_vm_was_forgotten(daemon: Daemon) -> None:
    images = daemon.state / "images"
    secret = images / "other.raw"
    secret.write_bytes(b"SECRET".ljust(512))
    secret.chmod(0o600)
    text = OWN + "disks: [{path: one.qcow2, size: 1MiB}]\n"
    file = daemon.drop("one", text)
    pid = daemon.wait_for("one", "running")["pid"]
    assert forge(pid, images / "one.qcow2", secret) == 0
    file.unlink()
    daemon.wait_for("one", "gone")

    # By another name, and after a restart of the daemon.
    daemon.kill()
    daemon.start()
    (images / "one.qcow2").rename(images / "two.qcow2")
    daemon.drop("two", text.replace("one", "two"))

    assert "says that it builds upon" in daemon.wait_for("two", "failed")["reason"]
    assert whose(secret) == (0, 0, 0o600)


EPHEMERAL = OWN + "disks: [{path: FILE, FORMAT, ephemeral: true}]\n"


TOOL = """#!/bin/sh
if [ -e {top}/armed ]; then echo asked > {top}/asked; read -r _ < {top}/answered; fi
exec {real} "$@"
"""


@pytest.fixture
def slow_tool(short_dir: Path) -> Path:
    """Return the folder of a qemu-img that, once armed, lets somebody act before each run of it."""
    folder = short_dir / "bin"
    folder.mkdir(mode=0o755)
    tool = folder / "qemu-img"
    tool.write_text(TOOL.format(top=short_dir, real=shutil.which("qemu-img")))
    tool.chmod(0o755)
    for name in ("asked", "answered"):
        os.mkfifo(short_dir / name)
        (short_dir / name).chmod(0o666)
    return folder


@pytest.mark.parametrize("run", [1, 2, 3])
def test_nothing_is_saved_over_a_file_that_the_overlay_names(
    short_dir: Path, slow_tool: Path, run: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever run of qemu-img a header is changed before: what was judged is what is used."""
    monkeypatch.setenv("PATH", f"{slow_tool}:{os.environ['PATH']}")
    with running_daemon(short_dir) as daemon:
        images = daemon.state / "images"
        images.mkdir(mode=0o711, exist_ok=True)
        folder = daemon.top / "of-the-host"
        folder.mkdir(mode=0o700)
        victim = folder / "shadow"
        victim.write_text("root:original\n")
        base = images / "base.raw"
        base.write_bytes(b"B" * 65536)
        daemon.drop("one", EPHEMERAL.replace("FILE", "base.raw").replace("FORMAT", "format: raw"))
        pid = daemon.wait_for("one", "running")["pid"]
        overlay = images / ".ephemeral" / "one" / "disk0.qcow2"
        descriptor = take_descriptor(pid, overlay)
        runs = 0

        def answer() -> None:
            nonlocal runs
            while (short_dir / "asked").read_text() == "asked\n":
                runs += 1
                if runs == run:
                    name_base(descriptor, victim)
                (short_dir / "answered").write_text("go\n")

        attacker = threading.Thread(target=answer)
        attacker.start()
        (short_dir / "armed").touch()
        daemon.arcsup("stop", "one", "--save")
        (short_dir / "armed").unlink()
        (short_dir / "asked").write_text("no more\n")
        attacker.join()
        os.close(descriptor)

        assert victim.read_text() == "root:original\n"
        assert base.read_bytes() == b"B" * 65536


def test_no_file_of_the_host_is_saved_into_an_image(daemon: Daemon) -> None:
    images = daemon.state / "images"
    folder = daemon.top / "of-the-host"
    folder.mkdir(mode=0o700)
    secret = folder / "shadow"
    secret.write_bytes(b"TOPSECRET" * 1000)
    base = images / "base.qcow2"
    file = daemon.drop("own", OWN + "disks: [{path: base.qcow2, size: 1MiB}]\n")
    pid = daemon.wait_for("own", "running")["pid"]
    reader, writer = os.pipe()

    descriptor = take_descriptor(pid, base)

    def keep_and_forge() -> None:
        os.read(reader, 1)
        name_base(descriptor, secret)

    child = begin_as(pid, keep_and_forge)
    file.unlink()
    daemon.wait_for("own", "gone")
    daemon.drop("two", EPHEMERAL.replace("FILE", "base.qcow2").replace("FORMAT", "format: qcow2"))
    daemon.wait_for("two", "running")

    os.write(writer, b"g")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    stopped = daemon.arcsup("stop", "two", "--save")

    assert "two is stopped, but not saved: base.qcow2, its base" in stopped.stderr
    for image in images.glob("*.qcow2"):
        assert b"TOPSECRET" not in image.read_bytes()
    for it in (reader, writer, descriptor):
        os.close(it)


def test_a_qemu_has_what_is_below_its_disk_for_reading_and_no_header_says_what(
    daemon: Daemon,
) -> None:
    images = daemon.state / "images"
    create = ["qemu-img", "create", "-q", "-f", "qcow2"]
    subprocess.run([*create, images / "low", "1M"], check=True)
    for name, below in (("middle", "low"), ("top", "middle")):
        subprocess.run([*create, "-F", "qcow2", "-b", images / below, images / name], check=True)
    for image in images.iterdir():
        image.chmod(0o600)
    daemon.drop("one", OWN + "disks: [{path: top, base: middle}]\n")

    status = daemon.wait_for("one", "running", "failed")

    assert status["state"] == "running", status["reason"]
    nodes = [json.loads(word) for word in status["argv"] if word.startswith('{"driver"')]
    assert [it["backing"] for it in nodes] == [None, "disk0-base2", "disk0-base1"]
    assert all(it["file"]["filename"].startswith("/dev/fdset/") for it in nodes)
    for name, flags in (("low", os.O_RDONLY), ("middle", os.O_RDONLY), ("top", os.O_RDWR)):
        assert whose(images / name) == (0, 0, 0o600)
        assert modes_of(status["pid"], images / name) == {flags}


def modes_of(pid: int, image: Path) -> set[int]:
    """Return how a process may use a file that it has open (proc_pid_fdinfo(5))."""
    found = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        if os.path.samestat(entry.stat(), image.stat()):
            told = Path(f"/proc/{pid}/fdinfo/{entry.name}").read_text()
            flags = re.search(r"^flags:\s*(\d+)$", told, re.MULTILINE)
            assert flags
            found.add(int(flags[1], 8) & os.O_ACCMODE)
    return found
