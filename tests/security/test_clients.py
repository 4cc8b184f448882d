"""Members of the sockets' groups against the daemon that serves them: with what they may open."""

import grp
import os
import re
import resource
import signal
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.qemu.daemon import TINY, Daemon, running_daemon
from tests.security.other_user import LOCAL_USER, needs_root

pytestmark = needs_root

GROUP = grp.getgrgid(max(it.gr_gid for it in grp.getgrall() if it.gr_gid < 1000))
"""A group that every host has, of which nobody here is a member."""

ROOM = 150
"""MiB by which clients of one user may make the daemon grow."""

PLENTY = 600
"""More connections than any user may have."""

OWN = 30
"""Descriptors that the daemon may open for itself meanwhile."""

HEAD = b"Host: a\r\nContent-Length: 1000000\r\n\r\n"

ATTACKS = {
    "idle": b"",
    "half a request": b"GET /v1/vms HTTP/1.1\r\nHost: a\r\nX: ",
    "streams that are not read": b"GET /v1/events HTTP/1.1\r\nHost: a\r\n\r\n",
    "answers that are not read": b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n" * 5,
    "half a body": b"POST /v1/vms HTTP/1.1\r\n" + HEAD + b" " * 900_000,
    "bodies that nobody reads": b"POST /v1/vms/one/clear HTTP/1.1\r\n" + HEAD + b" " * 900_000,
}


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    # Others must be able to pass, and the paths of sockets are short.
    with tempfile.TemporaryDirectory(prefix="arc", dir="/tmp") as folder:
        config = Path(folder, "arcsup.yaml")
        config.write_text(f"group: {GROUP.gr_name}\nmonitoringGroup: {GROUP.gr_name}\n")
        with running_daemon(Path(folder), "--config", str(config)) as daemon:
            daemon.drop("one", TINY + "restart: {burst: 1000, period: 1s, delay: 50ms}\n")
            daemon.wait_for("one", "running")
            yield daemon


@contextmanager
def attacking(place: Path, words: bytes) -> Iterator[None]:
    """Have a member of the group open connections until he gets no more, and hold them."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        with suppress(Exception):
            _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            os.setgroups([GROUP.gr_gid])
            os.setresgid(LOCAL_USER, LOCAL_USER, LOCAL_USER)
            os.setresuid(LOCAL_USER, LOCAL_USER, LOCAL_USER)
            held = open_all(place, words)
            os.write(writer, str(len(held)).encode())
            signal.pause()
        os._exit(1)
    os.close(writer)
    try:
        with open(reader) as stream:
            assert int(os.read(stream.fileno(), 10) or 0) > 0
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def open_all(place: Path, words: bytes) -> list[socket.socket]:
    """Return connections, each with as much of ``words`` as it takes; some may be refused."""
    held = []
    for _ in range(PLENTY):
        client = socket.socket(socket.AF_UNIX)
        with suppress(OSError):
            client.connect(str(place))  # It waits while the backlog is full.
            held.append(client)
            client.setblocking(False)
            client.send(words)
    return held


def resident_mib(daemon: Daemon) -> int:
    status = (proc(daemon) / "status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) // 1024


def proc(daemon: Daemon) -> Path:
    assert daemon.process is not None
    return Path(f"/proc/{daemon.process.pid}")


def count_connections(place: Path) -> int:
    """Return how many connections of a socket are accepted (proc(5), /proc/net/unix: St 03)."""
    lines = Path("/proc/net/unix").read_text().splitlines()
    return sum(line.split()[5] == "03" for line in lines if line.endswith(f" {place}"))


def count_descriptors(daemon: Daemon) -> int:
    return len(os.listdir(proc(daemon) / "fd"))


@pytest.mark.parametrize("words", ATTACKS.values(), ids=ATTACKS.keys())
@pytest.mark.parametrize(("place", "most"), [("arcsup.sock", 512), ("arcsup-ro.sock", 64)])
def test_a_user_with_all_the_connections_that_he_gets_harms_nobody(
    daemon: Daemon, place: str, most: int, words: bytes
) -> None:
    pid, memory, descriptors = daemon.pid_of("one"), resident_mib(daemon), count_descriptors(daemon)

    with attacking(daemon.run / place, words):
        daemon.until(lambda: count_connections(daemon.run / place) >= most, "he has them")
        assert count_descriptors(daemon) - descriptors <= most + OWN
        # Others are served, and VMs are looked after.
        os.kill(pid, signal.SIGKILL)
        daemon.wait_for_another_qemu("one", pid)
        assert daemon.arcsup("list").returncode == 0
        assert resident_mib(daemon) - memory < ROOM

    assert daemon.process is not None
    assert daemon.process.poll() is None
    assert daemon.read_log().count("Traceback") < 5


def test_who_leaves_makes_room(daemon: Daemon) -> None:
    before = count_descriptors(daemon)
    with attacking(daemon.run / "arcsup-ro.sock", ATTACKS["half a request"]):
        assert count_descriptors(daemon) > before + OWN
    daemon.until(lambda: count_descriptors(daemon) <= before + OWN, "they are closed")
