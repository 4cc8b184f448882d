"""Control groups of a kernel that has them all, without systemd: a folder for each VM."""

from pathlib import Path

from tests.lab.vms import TINY
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
