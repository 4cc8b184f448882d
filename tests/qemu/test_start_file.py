"""VMs from files that are not in the VM directory, and runs in a mode of their own."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from arcsup.errors import Refused
from tests.qemu.daemon import TINY, Daemon, running_daemon

NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

LIBVFIO = """\
%YAML 1.2
%TAG !n! tag:nimyaml.org,2016:
--- !n!custom:Config
name: a guest
introspect: none
nographics: true
container: {kernel: one.arc, state: [], initialSize: 1, iso: !!null ~}
cpus: {cores: 1, sockets: 1, threads: 1, ramAlloc: 64}
root: /nowhere
"""

QUICK = TINY + "stop: {timeout: 100ms}\n"
PATIENT = TINY + "stop: {timeout: 30s}\n"
NEEDS_GPU = QUICK + "gpus: [{kind: passthrough, address: 'ff:1f.7'}]\n"
"""Asks for a card that no host has."""


@pytest.fixture
def daemon(short_dir: Path) -> Iterator[Daemon]:
    with running_daemon(short_dir) as daemon:
        yield daemon


def write(daemon: Daemon, name: str, text: str) -> Path:
    file = daemon.top / name
    file.write_text(text)
    return file


# --- files ---------------------------------------------------------------------------------------


def test_a_file_runs_until_it_is_stopped_and_is_forgotten_then(daemon: Daemon) -> None:
    file = write(daemon, "try.yaml", QUICK)

    started = daemon.arcsup("start", str(file))

    assert (started.returncode, started.stdout) == (0, "try: running\n")
    [listed] = daemon.client.get("/v1/vms")
    assert (listed["name"], listed["file"], listed["mode"]) == ("try", str(file), [])
    assert daemon.arcsup("stop", "try").stdout == "try: stopped\n"
    daemon.wait_for("try", "gone")
    assert daemon.records() == {}
    assert daemon.qemus() == []


def test_it_survives_daemons_killed_and_crashes_of_its_own(daemon: Daemon) -> None:
    daemon.arcsup("start", str(write(daemon, "try.yaml", QUICK)))
    first = daemon.pid_of("try")

    daemon.kill()
    daemon.start()

    assert daemon.wait_for("try", "running")["pid"] == first
    os.kill(first, signal.SIGKILL)
    daemon.until(lambda: daemon.qemus("try") not in ([], [first]), "there is another QEMU")
    daemon.wait_for("try", "running")


def test_it_does_not_survive_the_host(daemon: Daemon) -> None:
    daemon.arcsup("start", str(write(daemon, "try.yaml", QUICK)))
    pid = daemon.pid_of("try")
    daemon.kill()
    os.kill(pid, signal.SIGKILL)
    daemon.until(lambda: not daemon.qemus(), "its QEMU is gone")
    # As after a reboot: the record is another boot's.
    record = daemon.state / "vms/try.json"
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    record.write_text(record.read_text().replace(boot, "00000000-0000-0000-0000-000000000000"))

    daemon.start()

    daemon.wait_for("try", "gone")
    daemon.until(lambda: daemon.records() == {}, "its record is gone")


def test_asked_for_again_it_goes_on_and_another_version_is_refused(daemon: Daemon) -> None:
    file = write(daemon, "try.yaml", QUICK)
    daemon.arcsup("start", str(file))
    pid = daemon.pid_of("try")

    assert daemon.arcsup("start", str(file)).returncode == 0

    file.write_text(QUICK + "description: another\n")
    refused = daemon.arcsup("start", str(file))
    assert refused.returncode == 6
    assert refused.stderr.startswith("arcsup: try is up already, with another version")
    assert daemon.pid_of("try") == pid


def test_names_and_disks_of_others_are_refused_in_a_line(daemon: Daemon) -> None:
    daemon.drop("web", QUICK + "disks: [{path: web.qcow2, size: 1MiB}]\n")
    daemon.wait_for("web", "running")
    same_name = write(daemon, "web.yaml", QUICK)
    same_disk = write(daemon, "other.yaml", QUICK + "disks: [{path: ./web.qcow2}]\n")

    by_name = daemon.arcsup("start", str(same_name))
    by_disk = daemon.arcsup("start", str(same_disk))

    assert (by_name.returncode, by_disk.returncode) == (6, 6)
    assert by_name.stderr.startswith("arcsup: there is a VM web already")
    assert "web.qcow2" in by_disk.stderr
    assert "which VM web has" in by_disk.stderr
    assert len(by_disk.stderr.splitlines()) == 2
    assert [vm["name"] for vm in daemon.client.get("/v1/vms")] == ["web"]


def test_a_vm_of_the_directory_waits_for_what_a_file_has(daemon: Daemon) -> None:
    disks = "disks: [{path: one.qcow2, size: 1MiB}]\n"
    daemon.arcsup("start", str(write(daemon, "try.yaml", QUICK + disks)))

    daemon.drop("web", QUICK + disks)

    assert "VM try to end, which still has" in daemon.wait_for("web", "waiting")["reason"]
    daemon.arcsup("stop", "try")
    daemon.wait_for("web", "running")


def test_a_failed_one_stays_with_its_reason_until_it_is_stopped(daemon: Daemon) -> None:
    file = write(daemon, "bad.yaml", QUICK + "machine: pc-q35-0.1\n")

    failed = daemon.arcsup("start", str(file))

    assert failed.returncode == 1
    assert failed.stderr.startswith("arcsup: bad failed: ")
    assert daemon.state_of("bad") == "failed"
    # The corrected file takes its place.
    file.write_text(QUICK)
    assert daemon.arcsup("start", str(file)).stdout == "bad: running\n"
    daemon.arcsup("stop", "bad")
    daemon.wait_for("bad", "gone")


def test_a_file_of_the_directory_is_its_vm(daemon: Daemon) -> None:
    file = daemon.drop("one", QUICK + "autostart: false\n")
    way_round = daemon.vms / ".." / "vms" / file.name

    assert daemon.arcsup("start", str(way_round)).stdout == "one: running\n"

    daemon.arcsup("stop", "one")
    assert daemon.state_of("one") == "stopped"


def test_a_file_just_put_into_the_directory_is_waited_for(daemon: Daemon) -> None:
    text = QUICK + "autostart: false\n"
    file = daemon.drop("one", text)

    assert daemon.arcsup("start", str(file)).returncode == 0

    bad = daemon.drop("two", "memory: lots\n")
    refused = daemon.arcsup("start", str(bad))
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"{bad}:1:9: memory: ")


def test_keep_copies_it_into_the_directory(daemon: Daemon) -> None:
    file = write(daemon, "try.yaml", QUICK + "autostart: false\nname: kept\n")

    started = daemon.arcsup("start", str(file), "--keep")

    place = daemon.vms / "kept.yaml"
    assert (started.returncode, started.stdout) == (0, "kept: running\n")
    assert place.read_text() == file.read_text()
    daemon.until(lambda: daemon.status("kept")["file"] == str(place), "it is the directory's")
    daemon.arcsup("stop", "kept")
    assert daemon.state_of("kept") == "stopped"
    assert len(daemon.qemus()) == 0
    again = daemon.arcsup("start", str(file), "--keep")
    assert again.returncode == 6
    assert again.stderr.startswith(f"arcsup: {place} is there already")


def test_keep_gives_a_libvfio_file_a_name_that_can_be_one(daemon: Daemon) -> None:
    file = write(daemon, "My Windows.yaml", LIBVFIO)

    kept = daemon.arcsup("start", str(file), "--keep", "--no-wait")

    place = daemon.vms / "my-windows.yaml"
    assert kept.stderr == f"{file}: kept as {place}\n"
    assert place.read_text() == LIBVFIO
    failed = daemon.wait_for("my-windows", "failed")
    assert failed["reason"].startswith("disks[0]: /nowhere/kernel")


@as_root
def test_the_systems_daemon_runs_hooks_of_roots_own_files_only(daemon: Daemon) -> None:
    mark = daemon.top / "mark"
    text = QUICK + f"hooks: {{preStart: [[/bin/touch, {mark}]]}}\n"
    file = write(daemon, "try.yaml", text)
    os.chown(file, NOBODY, -1)

    refused = daemon.arcsup("start", str(file))

    assert refused.returncode == 6
    assert "has hooks, which root runs only for root's own files" in refused.stderr
    os.chown(file, 0, -1)
    with pytest.raises(Refused, match="something else than was sent"):
        daemon.client.post("/v1/vms", {"file": str(file), "source": text + "# more\n"})
    assert not mark.exists()
    assert daemon.arcsup("start", str(file)).returncode == 0
    assert mark.exists()


# --- modes ---------------------------------------------------------------------------------------


def test_disable_gpu_starts_what_waits_for_one_and_holds_for_that_run(daemon: Daemon) -> None:
    daemon.drop("one", NEEDS_GPU)
    daemon.wait_for("one", "waiting")

    started = daemon.arcsup("start", "one", "--disable-gpu")

    assert (started.returncode, started.stdout) == (0, "one: running\n")
    first = daemon.status("one")
    assert (first["mode"], first["pending"], first["gpus"]) == (["disable-gpu"], False, [])
    assert "mode: disable-gpu" in daemon.arcsup("list").stdout
    assert "disable-gpu" in daemon.arcsup("status", "one").stdout
    assert "in mode disable-gpu" in daemon.arcsup("why", "one").stdout

    # Over a crash of the daemon, and one of its own.
    daemon.kill()
    daemon.start()
    daemon.wait_for("one", "running")
    os.kill(first["pid"], signal.SIGKILL)
    daemon.until(lambda: daemon.qemus("one") not in ([], [first["pid"]]), "there is another QEMU")
    assert daemon.wait_for("one", "running")["mode"] == ["disable-gpu"]

    daemon.arcsup("stop", "one")
    assert daemon.status("one")["mode"] == []
    daemon.arcsup("start", "one", "--no-wait")
    assert daemon.wait_for("one", "waiting")["mode"] == []


def test_a_file_whose_vm_is_still_stopping_is_not_taken_for_running(daemon: Daemon) -> None:
    file = write(daemon, "try.yaml", PATIENT)
    daemon.arcsup("start", str(file))
    daemon.arcsup("stop", "try", "--no-wait")

    refused = daemon.arcsup("start", str(file))
    assert (refused.returncode, refused.stderr.splitlines()) == (
        6,
        [
            "arcsup: try is still stopping",
            "  hint: arcsup wait try --for gone, then start it; `arcsup kill try` ends it at once",
        ],
    )
    daemon.arcsup("kill", "try")
    daemon.wait_for("try", "gone")
    assert daemon.arcsup("start", str(file)).returncode == 0


def test_a_restart_is_a_run_of_its_own(daemon: Daemon) -> None:
    daemon.drop("one", QUICK)
    daemon.wait_for("one", "running")
    daemon.arcsup("stop", "one")
    daemon.arcsup("start", "one", "--safe-mode")
    assert daemon.status("one")["mode"] == ["safe-mode"]
    assert any("display.sock" in word for word in daemon.status("one")["argv"])
    assert (daemon.run / "one/display.sock").is_socket()

    assert daemon.arcsup("restart", "one").returncode == 0

    assert daemon.status("one")["mode"] == []
    assert not any("display.sock" in word for word in daemon.status("one")["argv"])


def test_another_mode_than_that_of_the_run_is_refused(daemon: Daemon) -> None:
    daemon.drop("one", QUICK)
    daemon.wait_for("one", "running")

    refused = daemon.arcsup("start", "one", "--safe-mode", "--disable-gpu")

    assert refused.returncode == 6
    assert refused.stderr.splitlines() == [
        "arcsup: one is up already, without --safe-mode --disable-gpu",
        "  hint: arcsup stop one first",
    ]
    assert daemon.arcsup("start", "one").returncode == 0


def test_preinstall_has_the_guest_tools_in_a_drive_or_says_how_to_make_them(
    daemon: Daemon,
) -> None:
    file = write(daemon, "try.yaml", QUICK + "lookingGlass: {width: 640, height: 480}\n")
    tools = daemon.state / "images/guest-tools.iso"

    refused = daemon.arcsup("start", str(file), "--preinstall")
    assert refused.returncode == 6
    assert refused.stderr.splitlines() == [
        f"arcsup: there is no guest-tools ISO {tools}",
        "  hint: arcsup guest-tools build",
    ]
    assert daemon.client.get("/v1/vms") == []

    tools.parent.mkdir(exist_ok=True)
    tools.write_bytes(bytes(65536))
    assert daemon.arcsup("start", str(file), "--preinstall").returncode == 0
    argv = daemon.status("try")["argv"]
    assert any(str(tools) in word for word in argv)
    assert any(word.startswith("ivshmem-plain") for word in argv)
    assert any(word.startswith("VGA") for word in argv)
