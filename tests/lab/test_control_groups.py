"""Control groups of a kernel that has them all, without systemd: a folder for each VM."""

import errno
import socket
from pathlib import Path

from tests.lab.vms import TINY
from tests.own_group import errno_in
from tests.qemu.daemon import Daemon

TREE = Path("/sys/fs/cgroup")


def group_of(daemon: Daemon, name: str) -> Path:
    return TREE / str(daemon.status(name)["cgroup"]["path"]).lstrip("/")


def test_programs_of_a_vm_are_limited_together_and_leave_nothing(daemon: Daemon) -> None:
    daemon.drop("one", f"{TINY}tpm: true\n")
    status = daemon.wait_for("one", "running")
    group = group_of(daemon, "one")
    programs = {it["identity"]["pid"] for it in daemon.records()["one"]["launch"]["processes"]}

    assert len(programs) == 2
    assert set(map(int, (group / "cgroup.procs").read_text().split())) == programs
    assert int((group / "memory.max").read_text()) == status["cgroup"]["memoryMax"]
    assert int((group / "pids.max").read_text()) == status["cgroup"]["tasksMax"]

    daemon.kill()
    daemon.start()
    daemon.wait_for("one", "running")
    assert group_of(daemon, "one") == group
    assert set(map(int, (group / "cgroup.procs").read_text().split())) == programs

    daemon.call("kill", "one", wait="60")
    assert daemon.status("one")["cgroup"] is None
    assert not group.exists()


def test_a_qemu_that_alone_is_too_much_is_killed_alone_and_that_is_said(daemon: Daemon) -> None:
    for name in ("one", "two"):
        daemon.drop(name, f"{TINY}restart: {{policy: never}}\n")
    for name in ("one", "two"):
        daemon.wait_for(name, "running")
    group, other = group_of(daemon, "one"), daemon.status("two")["pid"]

    (group / "memory.max").write_text("1M\n")

    daemon.wait_for("one", "failed")
    last_exit = daemon.status("one")["lastExit"]
    assert last_exit["class"] == "crash"
    assert last_exit["signal"] == 9
    said = (
        f"the kernel killed it at the memory limit of its control group /{group.relative_to(TREE)}"
    )
    assert said in " ".join(event["message"] for event in daemon.status("one")["events"])
    assert not group.exists()
    assert daemon.status("two")["pid"] == other


def test_a_vm_with_qemus_own_network_is_kept_from_the_loopback_unless_it_asks(
    daemon: Daemon,
) -> None:
    files = {"kept": "[{}]", "forwards": "[{forwards: ['udp:127.0.0.1:5000:50']}]"}
    files |= {"asks": "[{hostLoopback: true}]", "other": "[]"}
    for name, networks in files.items():
        daemon.drop(name, TINY.replace("networks: []", f"networks: {networks}"))
    with socket.create_server(("127.0.0.1", 0)) as server:

        def connect() -> None:
            socket.create_connection(server.getsockname(), 10).close()

        for _ in range(2):
            for name in files:
                daemon.wait_for(name, "running")
            found = {name: errno_in(group_of(daemon, name), connect) for name in files}
            assert found == {"kept": errno.EPERM, "forwards": errno.EPERM, "asks": 0, "other": 0}
            told = {name: reasons_of(daemon, name) for name in files}
            assert told == {"kept": [], "forwards": [], "asks": ["AskedFor"], "other": []}
            daemon.kill()
            daemon.start()


def reasons_of(daemon: Daemon, name: str) -> list[str]:
    """Return why a guest reaches the host's loopback."""
    conditions = daemon.status(name)["conditions"]
    return [it["reason"] for it in conditions if it["type"] == "HostLoopback"]


def test_a_qemu_that_is_told_to_connect_to_the_loopback_says_what_that_takes(
    daemon: Daemon,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        args = f"qemu: {{args: [-chardev, 'socket,id=x,host=127.0.0.1,port={port}']}}\n"
        text = TINY.replace("networks: []", "networks: [{}]") + args
        daemon.drop("one", text)

        daemon.wait_for("one", "failed")
        assert "hostLoopback: true" in daemon.status("one")["reason"]

        daemon.drop("one", text.replace("[{}]", "[{hostLoopback: true}]"))
        daemon.wait_for("one", "running")
