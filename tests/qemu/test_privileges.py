"""QEMU under a daemon that is root: never root itself, and with nothing but what is its own."""

import grp
import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from arcsup.host.accounts import UNCLAIMED
from tests.qemu.daemon import TINY, Daemon, running_daemon

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the daemon of the system is root's")

FULL = f"""{TINY}tpm: true
firmware: uefi
disks: [{{path: one.qcow2, size: 10MiB}}, {{path: read.raw, format: raw, readonly: true}}]
cdroms: [one.iso]
stop: {{timeout: 100ms}}
"""


@pytest.fixture
def daemon(short_dir: Path) -> Iterator[Daemon]:
    with running_daemon(short_dir) as daemon:
        yield daemon


@contextmanager
def interface(name: str, *kind: str) -> Iterator[str]:
    """Make a network interface of the host for the block."""
    made = subprocess.run(["ip", *kind[:1], "add", *kind[1:]], capture_output=True, check=False)
    if made.returncode != 0:
        pytest.skip("no interface can be made here")
    try:
        yield name
    finally:
        subprocess.run(["ip", "link", "del", name], check=True)


def test_a_tap_of_somebodys_is_opened_for_it(daemon: Daemon) -> None:
    name = f"arct{os.getpid()}"
    with interface(name, "tuntap", "dev", name, "mode", "tap", "user", "65534"):
        daemon.drop("one", TINY.replace("[]", f"[{{type: tap, tap: {name}}}]"))
        pid = daemon.wait_for("one", "running")["pid"]

        # Somebody has it up: the carrier says so.
        subprocess.run(["ip", "link", "set", name, "up"], check=True)
        daemon.until(
            lambda: Path(f"/sys/class/net/{name}/carrier").read_text() == "1\n", "it is in use"
        )
        assert b"spawn=deny" in Path(f"/proc/{pid}/cmdline").read_bytes()
        daemon.call("kill", "one", wait="60")


@pytest.mark.skipif(not Path("/etc/qemu/bridge.conf").exists(), reason="needs QEMU's bridge rules")
def test_a_bridge_is_joined_for_it(daemon: Daemon) -> None:
    name = f"arcb{os.getpid()}"
    with interface(name, "link", name, "type", "bridge"):
        daemon.drop("one", TINY.replace("[]", f"[{{type: bridge, bridge: {name}}}]"))
        daemon.wait_for("one", "running", "failed")

        members = Path(f"/sys/class/net/{name}/brif")
        assert len(list(members.iterdir())) == 1
        daemon.call("kill", "one", wait="60")
        assert list(members.iterdir()) == []


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def owners(daemon: Daemon) -> dict[str, tuple[int, int, int]]:
    """Return whose everything in the state and the log directory is."""
    found = {}
    for top in (daemon.state, daemon.log):
        for path in top.rglob("*"):
            status = path.lstat()
            mode = stat.S_IMODE(status.st_mode)
            found[str(path.relative_to(daemon.top))] = (status.st_uid, status.st_gid, mode)
    return found


def make_images(daemon: Daemon) -> None:
    images = daemon.state / "images"
    images.mkdir(exist_ok=True, mode=0o700)
    for name in ("read.raw", "one.iso", "two.iso"):
        (images / name).write_bytes(bytes(2048))
        (images / name).chmod(0o600)


def programs_of(daemon: Daemon, name: str) -> dict[str, int]:
    launch = daemon.records()[name]["launch"]
    return {it["role"]: it["identity"]["pid"] for it in launch["processes"]}


def test_no_program_of_a_vm_is_root_nor_can_become_it(daemon: Daemon) -> None:
    make_images(daemon)
    daemon.drop("one", FULL)
    daemon.wait_for("one", "running")

    programs = programs_of(daemon, "one")
    assert set(programs) == {"qemu", "tpm"}
    for pid in programs.values():
        status = status_of(pid)
        (uid,) = set(status["Uid"].split())
        assert int(uid) in UNCLAIMED
        assert set(status["Gid"].split()) == {uid}
        assert "0" not in status["Groups"].split()
        assert status["NoNewPrivs"] == "1"
        for capabilities in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert int(status[capabilities], 16) == 0
    # The sandbox too: a second filter beside none (2: SECCOMP_MODE_FILTER).
    assert status_of(programs["qemu"])["Seccomp"] == "2"


def test_its_files_stay_roots_while_it_runs_but_its_tpms_state(daemon: Daemon) -> None:
    make_images(daemon)
    daemon.drop("one", FULL)
    uid = int(status_of(daemon.wait_for("one", "running")["pid"])["Uid"].split()[0])
    running = owners(daemon)
    lent = {path for path, owner in running.items() if owner[:2] != (0, 0)}
    assert {path for path in lent if not path.startswith("state/tpm/one")} == set()
    assert running["state/tpm/one"][0] == uid
    for path in ("images/one.qcow2", "images/read.raw", "images/one.iso", "vars/one.fd"):
        assert running[f"state/{path}"] == (0, 0, 0o600), path
    for name in ("console.log", "tpm.log", "qemu.log"):
        assert running[f"log/one/{name}"] == (0, 0, 0o640), name

    daemon.call("stop", "one", wait="60")

    assert {path for path, owner in owners(daemon).items() if owner[:2] != (0, 0)} == set()
    assert daemon.records()["one"]["loans"] == []


def files_of(pid: int) -> set[Path]:
    return {entry.readlink() for entry in Path(f"/proc/{pid}/fd").iterdir()}


def test_after_a_crash_of_both_the_next_daemon_puts_everything_back(daemon: Daemon) -> None:
    make_images(daemon)
    daemon.drop("one", FULL)
    daemon.wait_for("one", "running")
    daemon.kill()
    for pid in programs_of(daemon, "one").values():
        os.kill(pid, 9)
    (daemon.vms / "one.yaml").unlink()

    daemon.start()
    daemon.wait_for("one", "gone")

    assert {path for path, owner in owners(daemon).items() if owner[:2] != (0, 0)} == set()


def test_another_medium_is_handed_over_when_it_goes_into_the_drive(daemon: Daemon) -> None:
    make_images(daemon)
    daemon.drop("one", FULL)
    pid = daemon.wait_for("one", "running")["pid"]
    images = daemon.state / "images"
    assert images / "one.iso" in files_of(pid)

    daemon.drop("one", FULL.replace("one.iso", "two.iso"))

    daemon.wait_for_event("one", "media-changed")
    assert images / "two.iso" in files_of(pid)
    assert owners(daemon)["state/images/two.iso"] == (0, 0, 0o600)
    assert daemon.records()["one"]["loans"] == [
        it for it in daemon.records()["one"]["loans"] if "images" not in it["path"]
    ]


def test_each_vm_has_a_user_of_its_own_if_told_so(short_dir: Path) -> None:
    config = short_dir / "arcsup.yaml"
    config.write_text("isolation: per-vm\n")
    with running_daemon(short_dir, "--config", str(config)) as daemon:
        make_images(daemon)
        for name in ("one", "two"):
            daemon.drop(name, TINY + "cdroms: [one.iso]\nstop: {timeout: 100ms}\n")
        users = {
            int(status_of(daemon.wait_for(name, "running")["pid"])["Uid"].split()[0])
            for name in ("one", "two")
        }
        assert len(users) == 2
        assert users <= set(UNCLAIMED)
        assert owners(daemon)["state/images/one.iso"] == (0, 0, 0o600)


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ("cdroms: [/etc/shadow]\n", "outside of the folders for images"),
        ("cdroms: [../vms/one.json]\n", "goes up"),
        ("disks: [{path: /dev/shm, format: raw}]\n", "outside of the folders for images"),
        ("shares: [{path: /etc, tag: etc}]\n", "outside of the folders for images"),
        ("shares: [{path: ../vms, tag: records}]\n", "goes up"),
        ("qemu: {binary: PROGRAM}\n", "refused"),
    ],
)
def test_what_a_vm_may_not_have_is_refused_with_one_line(
    daemon: Daemon, more: str, why: str
) -> None:
    (daemon.state / "images").mkdir(exist_ok=True)
    program = daemon.top / "program"
    program.write_text("#!/bin/sh\nid > /tmp/never\n")
    program.chmod(0o777)
    before = owners(daemon)

    daemon.drop("one", TINY + more.replace("PROGRAM", str(program)))

    reason = daemon.wait_for("one", "failed")["reason"]
    assert why in reason
    assert "\n" not in reason
    changed = {path for path, owner in owners(daemon).items() if before.get(path, owner) != owner}
    assert changed == set()
    assert Path("/etc/shadow").stat().st_uid == 0


def test_qemu_passes_the_folders_that_are_made_for_a_new_disk(daemon: Daemon) -> None:
    daemon.drop("one", f"{TINY}disks: [{{path: guests/one/disk.qcow2, size: 1MiB}}]\n")

    daemon.wait_for("one", "running")

    folder = daemon.state / "images/guests"
    assert folder.stat().st_mode & 0o777 == 0o711, "it may pass, and not look around"


NOBODY = 65534
AS_NOBODY = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--")


def try_as_qemu(daemon: Daemon, uid: int, command: str) -> subprocess.CompletedProcess[str]:
    """Do something as QEMU's own user: what a guest could that broke out of its QEMU."""
    return subprocess.run(
        [
            "setpriv",
            f"--reuid={uid}",
            f"--regid={uid}",
            "--clear-groups",
            "--",
            "sh",
            "-c",
            command,
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
    )


def test_a_guest_that_broke_out_finds_every_door_closed(daemon: Daemon) -> None:
    make_images(daemon)
    daemon.drop("one", FULL)
    uid = int(status_of(daemon.wait_for("one", "running")["pid"])["Uid"].split()[0])
    run, state = daemon.run, daemon.state
    for command in (
        f"ls {state}",
        f"ls {state}/images",
        f"cat {state}/images/two.iso",
        f"cat {state}/images/one.iso",
        f"cat {state}/images/one.qcow2",
        f"cat {state}/vars/one.fd",
        f"chmod 4755 {daemon.log}/one/console.log",
        f"cat {state}/vms/one.json",
        f"ls {run}/one",
        f"echo > {run}/one/lock",
        f"ln -s /etc/passwd {run}/one/screenshot-0.png",
        f"rm -rf {run}/.qemu/one.new && mkdir {run}/.qemu/two",
        f"mv {state}/images/one.qcow2 /tmp",
        f"cat {daemon.log}/one/qemu.log",
        f"echo > {daemon.log}/one/new",
    ):
        assert try_as_qemu(daemon, uid, command).returncode != 0, command


def talk(path: Path) -> Any:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(30)
        client.connect(str(path))
        return json.loads(client.makefile("rb").readline())


def test_another_local_user_reaches_no_socket_and_no_file(daemon: Daemon) -> None:
    make_images(daemon)
    daemon.drop("one", FULL + "display: vnc\n")
    daemon.wait_for("one", "running")
    sockets = [path for path in daemon.run.rglob("*.sock") if path.is_socket()]
    assert {path.name for path in sockets} >= {"qmp.sock", "monitor.sock", "display.sock"}
    assert "QMP" in talk(daemon.run / "one" / "monitor.sock")
    files = [path for top in (daemon.state, daemon.log) for path in top.rglob("*")]
    reading = "import pathlib,sys; pathlib.Path(sys.argv[1]).open('rb').close()"
    connecting = "import socket,sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"

    for script, path in [
        *((connecting, path) for path in sockets),
        *((reading, path) for path in files if path.is_file()),
    ]:
        tried = subprocess.run(
            [*AS_NOBODY, "/usr/bin/python3", "-c", script, str(path)],
            capture_output=True, text=True, check=False, cwd="/",
        )  # fmt: skip
        assert "PermissionError" in tried.stderr, path


@pytest.mark.parametrize("kind", ["vnc", "spice"])
def test_a_console_on_tcp_asks_for_its_password_and_nothing_shows_it(
    daemon: Daemon, free_port: Callable[[], int], kind: str
) -> None:
    make_images(daemon)
    secret = daemon.state / "images" / "password"
    secret.write_text("tell-me")
    secret.chmod(0o600)
    port = max(free_port(), 5900)
    display = f"{{type: {kind}, port: {port}, passwordFile: password}}"
    daemon.drop("one", TINY + f"display: {display}\n")
    status = daemon.wait_for("one", "running", "failed")
    if "no SPICE" in status["reason"]:
        pytest.skip("this QEMU has no SPICE")

    assert status["state"] == "running"
    if kind == "vnc":
        with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
            answer = client.makefile("rb")
            client.sendall(answer.read(12))
            # Security types (RFC 6143, section 7.1.2): one, VNC authentication, and not None.
            assert answer.read(2) == b"\x01\x02"
    shown = [
        Path(f"/proc/{status['pid']}/cmdline").read_bytes(),
        json.dumps(daemon.status("one")).encode(),
        *(log.read_bytes() for log in (daemon.log / "one").glob("*")),
        (daemon.state / "vms" / "one.json").read_bytes(),
    ]
    assert not [text for text in shown if b"tell-me" in text]
    daemon.call("kill", "one", wait="60")
    assert owners(daemon)["state/images/password"] == (0, 0, 0o600)


def test_folders_that_root_alone_may_pass_are_opened_for_it(short_dir: Path) -> None:
    for folder in ("run", "state", "log"):
        (short_dir / folder).mkdir(mode=0o700)
    with running_daemon(short_dir) as daemon:
        daemon.drop("one", TINY + "display: {type: vnc}\n")

        assert daemon.wait_for("one", "running", "failed")["state"] == "running"
        assert {stat.S_IMODE(path.stat().st_mode) for path in (daemon.run, daemon.state)} == {0o701}


def test_a_file_of_the_hosts_is_no_password(daemon: Daemon) -> None:
    daemon.drop("one", TINY + "display: {type: vnc, port: 5999, passwordFile: /etc/shadow}\n")

    reason = daemon.wait_for("one", "failed")["reason"]

    assert "passwordFile" in reason
    assert Path("/etc/shadow").stat().st_uid == 0


def test_who_may_only_look_sees_everything_and_changes_nothing(short_dir: Path) -> None:
    config = short_dir / "arcsup.yaml"
    group = grp.getgrgid(os.stat("/etc/shadow").st_gid or NOBODY).gr_name
    config.write_text(f"monitoringGroup: {group}\n")
    with running_daemon(short_dir, "--config", str(config)) as daemon:
        daemon.drop("one")
        daemon.wait_for("one", "running")
        program = (
            "import sys; from arcsup.control.client import Client; from pathlib import Path;"
            "client = Client(Path(sys.argv[1]));"
            "print(client.get('/v1/vms')[0]['name']); client.post('/v1/vms/one/stop')"
        )
        looked = subprocess.run(
            ["setpriv", f"--reuid={NOBODY}", f"--regid={group}", "--clear-groups", "--",
             "/usr/bin/python3", "-c", program, str(daemon.run / "arcsup.sock")],
            capture_output=True, text=True, check=False, cwd="/",
            env={"PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip
        if "ModuleNotFoundError" in looked.stderr:
            pytest.skip("that user may not read this Python")

        assert looked.stdout == "one\n"
        assert "NotPermitted" in looked.stderr
        assert daemon.state_of("one") == "running"


def test_a_reload_takes_users_and_folders_for_the_next_start_of_each_vm(short_dir: Path) -> None:
    config, more = short_dir / "arcsup.yaml", short_dir / "more"
    config.write_text("{}\n")
    more.mkdir(mode=0o711)
    (more / "one.iso").write_bytes(bytes(2048))
    (more / "one.iso").chmod(0o600)
    with running_daemon(short_dir, "--config", str(config)) as daemon:
        daemon.drop("one", TINY + "stop: {timeout: 100ms}\n")
        daemon.drop("two", TINY + f"cdroms: [{more}/one.iso]\nstop: {{timeout: 100ms}}\n")
        before = daemon.wait_for("one", "running")["pid"]
        shared = status_of(before)["Uid"]
        assert "outside of the folders" in daemon.wait_for("two", "failed")["reason"]

        config.write_text(f"isolation: per-vm\nimageDirs: [{more}]\nviewer: nobody\n")
        answer = daemon.arcsup("reload")
        assert answer.returncode == 0
        assert answer.stderr == "taken when the daemon is started again: viewer\n"

        daemon.arcsup("clear", "two")
        second = status_of(daemon.wait_for("two", "running")["pid"])["Uid"]
        assert daemon.status("one")["pid"] == before
        assert status_of(before)["Uid"] == shared
        daemon.call("restart", "one", wait="60")
        assert len({shared, second, status_of(daemon.pid_of("one"))["Uid"]}) == 3
        daemon.call("stop", "one", wait="60")
        daemon.call("stop", "two", wait="60")
        assert owners(daemon)["log/one/console.log"][:2] == (0, 0)


def test_a_reload_makes_and_takes_away_the_socket_for_reading(short_dir: Path) -> None:
    config = short_dir / "arcsup.yaml"
    config.write_text("{}\n")
    with running_daemon(short_dir, "--config", str(config)) as daemon:
        reading = daemon.run / "arcsup-ro.sock"
        assert not reading.exists()

        config.write_text(f"monitoringGroup: {grp.getgrgid(NOBODY).gr_name}\n")
        assert daemon.process is not None
        daemon.process.send_signal(signal.SIGHUP)
        daemon.until(reading.is_socket, "the socket is there")
        assert reading.stat().st_gid == NOBODY

        for wrong in ("monitoringGroup: nobody-has-this\n", "user: nobody-is-this\n"):
            config.write_text(wrong)
            answer = daemon.arcsup("reload")
            assert answer.returncode == 1
            assert "there is no" in answer.stderr
            assert reading.is_socket()

        config.write_text("{}\n")
        assert daemon.arcsup("reload").returncode == 0
        daemon.until(lambda: not reading.exists(), "the socket is gone")


def test_what_a_broken_out_guest_puts_into_its_runtime_folder_leads_nowhere(
    daemon: Daemon,
) -> None:
    make_images(daemon)
    secret = daemon.state / "images" / "two.iso"
    secret.write_text("of the host")
    daemon.drop("one", FULL + "display: vnc\n")
    uid = int(status_of(daemon.wait_for("one", "running")["pid"])["Uid"].split()[0])
    folder = daemon.run / ".qemu" / "one"
    before = whose(secret)
    for name in [f"screenshot-{number}.png" for number in range(3)]:
        assert try_as_qemu(daemon, uid, f"ln -s {secret} {folder}/{name}").returncode == 0
    command = f"rm {folder}/display.sock && ln -s {secret} {folder}/display.sock"
    assert try_as_qemu(daemon, uid, command).returncode == 0
    assert try_as_qemu(daemon, uid, f"ln {secret} {folder}/other").returncode != 0

    picture = daemon.top / "picture.png"
    shown = daemon.arcsup("screenshot", "one", str(picture))
    daemon.call("reset", "one")
    daemon.call("restart", "one", wait="60")

    assert shown.returncode == 0, "no name in that folder is used for it"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert whose(secret) == before
    assert secret.read_text() == "of the host"
    assert daemon.state_of("one") == "running"


def whose(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)
