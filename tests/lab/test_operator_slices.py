"""Slices that an operator takes for a VM or lets go, and events that the kernel had to drop."""

import ctypes
import os
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.lab.kernel import PARENTS, PCI, create, mdevs, wait_until, write
from tests.lab.vms import TINY
from tests.qemu.daemon import Daemon

SMALL = f"{TINY}gpus: [{{mdevType: mbochs-small}}]\n"


def test_a_foreign_mdev_is_adopted_used_and_removed_with_its_vm(daemon: Daemon, uuid: str) -> None:
    create(PARENTS / "mbochs", "mbochs-small", uuid)
    daemon.drop("one", f"{SMALL}autostart: false\n")
    daemon.wait_for("one", "stopped")

    daemon.client.post("/v1/gpus/adopt", {"id": uuid, "vm": "one"})
    daemon.call("start", "one", wait="240")

    assert [gpu["id"] for gpu in daemon.status("one")["gpus"]] == [uuid]
    assert mdevs() == {uuid}
    assert daemon.arcsup("gpu", "release", uuid).returncode == 6
    daemon.call("kill", "one", wait="240")
    daemon.until(lambda: not mdevs(), "the adopted mdev is given back as one of ours")


def test_a_daemon_whose_events_were_dropped_looks_again(
    nvidia: Callable[..., Path], cards: list[Path], daemon: Daemon
) -> None:
    """Its socket overflows while it stands still; what came then is found all the same."""
    # No resync comes to help within the test's patience.
    (daemon.top / "config.yaml").write_text("resync: 1h\n")
    daemon.client.post("/v1/reload")
    daemon.drop("one", f"{TINY}gpus: [{{mdevType: GRID P4-2Q}}]\n")
    daemon.wait_for("one", "waiting")
    assert daemon.process is not None
    pid = daemon.process.pid
    daemon.process.send_signal(signal.SIGSTOP)
    try:
        # Its descriptors stay as they are only while it is stopped.
        wait_until(lambda: "T (stopped)" in Path(f"/proc/{pid}/status").read_text())
        shrink_event_sockets(pid)
        for _ in range(EVENTS):
            write(PCI / cards[1].name / "uevent", "change")
        settle()
        assert dropped_events(pid)
        nvidia(card="p4")
        settle()
    finally:
        daemon.process.send_signal(signal.SIGCONT)
    daemon.wait_for("one", "running")
    assert "event queue overflowed" in daemon.read_log()
    (daemon.vms / "one.yaml").unlink()
    daemon.wait_for("one", "gone")


EVENTS = 20
"""Events, of which the smallest receive buffer has room for one or two."""

PIDFD_GETFD = 438
"""The number of pidfd_getfd(2), which Python has no name for."""


def settle() -> None:
    """Wait until udevd has told of everything."""
    subprocess.run(["/usr/bin/udevadm", "settle", "--timeout=300"], check=True)


def find_netlink(pid: int) -> dict[int, int]:
    """Return the netlink sockets of a process, with how many messages each has lost.

    By descriptor; /proc/net/netlink has a line for each, its drops before its inode.
    """
    rows = [line.split() for line in Path("/proc/net/netlink").read_text().splitlines()[1:]]
    drops = {f"socket:[{row[9]}]": int(row[8]) for row in rows}
    links = {int(it.name): str(it.readlink()) for it in Path(f"/proc/{pid}/fd").iterdir()}
    return {number: drops[link] for number, link in links.items() if link in drops}


def dropped_events(pid: int) -> int:
    """Return how many messages the netlink sockets of a process have lost."""
    return sum(find_netlink(pid).values())


def shrink_event_sockets(pid: int) -> None:
    """Give the netlink sockets of a process the smallest buffer: libudev asks for 128 MiB."""
    libc, pidfd = ctypes.CDLL(None, use_errno=True), os.pidfd_open(pid)
    for number in find_netlink(pid):
        descriptor = libc.syscall(PIDFD_GETFD, pidfd, number, 0)
        assert descriptor >= 0, os.strerror(ctypes.get_errno())
        with socket.socket(fileno=descriptor) as duplicate:
            duplicate.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    os.close(pidfd)
