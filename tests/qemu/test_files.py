"""What people and their tools do to VM files, under a real daemon: it is seen, or it is told."""

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.qemu.daemon import TINY, Daemon, running_daemon

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def daemon(short_dir: Path) -> Iterator[Daemon]:
    with running_daemon(short_dir) as daemon:
        yield daemon


def description_of(daemon: Daemon, name: str) -> str:
    return str(daemon.client.get(f"/v1/vms/{name}/definition").get("description", ""))


def findings_of(daemon: Daemon) -> str:
    return "\n".join(daemon.client.get("/v1/daemon")["findings"])


def names_of(daemon: Daemon) -> list[str]:
    return [vm["name"] for vm in daemon.client.get("/v1/vms")]


def kinds_of(daemon: Daemon, name: str) -> list[str]:
    return [event["kind"] for event in daemon.status(name)["events"]]


def test_a_file_that_is_being_written_is_read_when_it_is_whole(daemon: Daemon) -> None:
    with open(daemon.vms / "half.yaml", "w") as stream:
        stream.write("memory: 64\nacc")
        stream.flush()
        daemon.drop("other")
        daemon.wait_for("other", "running")
        assert names_of(daemon) == ["other"]
        stream.write("el: tcg\nnetworks: []\n")

    daemon.wait_for("half", "running")
    assert "file-invalid" not in kinds_of(daemon, "half")


def test_temporary_files_of_editors_are_no_vms(daemon: Daemon) -> None:
    for name in (".one.yaml.swp", "one.yaml~", "#one.yaml#", ".#one.yaml", "4913", "one.yaml.bak"):
        (daemon.vms / name).write_text(TINY)

    daemon.drop("real")

    daemon.wait_for("real", "running")
    assert names_of(daemon) == ["real"]
    assert findings_of(daemon) == ""


def test_an_editor_that_moves_the_old_file_away_ends_no_vm(daemon: Daemon) -> None:
    file = daemon.drop("one")
    pid = daemon.wait_for("one", "running")["pid"]

    backup = file.rename(f"{file}~")
    file.write_text(TINY + "description: saved by vim\n")
    backup.unlink()

    daemon.until(lambda: description_of(daemon, "one") == "saved by vim", "the new text is read")
    assert (daemon.state_of("one"), daemon.pid_of("one")) == ("running", pid)
    assert daemon.qemus() == [pid]


def test_an_atomic_rename_is_an_edit(daemon: Daemon) -> None:
    daemon.drop("one")
    pid = daemon.wait_for("one", "running")["pid"]

    daemon.drop("one", TINY + "description: second\n")

    daemon.until(lambda: description_of(daemon, "one") == "second", "the new text is read")
    assert daemon.pid_of("one") == pid


def test_a_renamed_file_that_names_its_vm_keeps_it_running(daemon: Daemon) -> None:
    file = daemon.drop("one", TINY + "name: web\n")
    pid = daemon.wait_for("web", "running")["pid"]

    other = file.rename(daemon.vms / "other.yaml")

    daemon.until(lambda: daemon.status("web")["file"] == str(other), "the new name is seen")
    assert daemon.qemus() == [pid]


def test_a_swapped_data_directory_is_an_edit(daemon: Daemon) -> None:
    for version, text in (("..1", TINY), ("..2", TINY + "description: swapped\n")):
        (daemon.vms / version).mkdir()
        (daemon.vms / version / "one.yaml").write_text(text)
    (daemon.vms / "..data").symlink_to("..1")
    (daemon.vms / "one.yaml").symlink_to("..data/one.yaml")
    pid = daemon.wait_for("one", "running")["pid"]

    (daemon.vms / "..data_tmp").symlink_to("..2")
    (daemon.vms / "..data_tmp").rename(daemon.vms / "..data")

    daemon.until(lambda: description_of(daemon, "one") == "swapped", "the swap is seen")
    assert daemon.pid_of("one") == pid


def test_what_no_event_tells_is_found_by_the_resync(short_dir: Path) -> None:
    config = short_dir / "arcsup.yaml"
    config.write_text("resync: 1s\n")
    elsewhere = short_dir / "elsewhere.yaml"
    elsewhere.write_text(TINY)
    with running_daemon(short_dir, "--config", str(config)) as daemon:
        (daemon.vms / "one.yaml").symlink_to(elsewhere)
        daemon.wait_for("one", "running")

        elsewhere.write_text(TINY + "description: edited behind the link\n")

        daemon.until(lambda: description_of(daemon, "one"), "the link's target is read again")


def test_a_replaced_directory_is_watched_like_the_first(daemon: Daemon) -> None:
    daemon.drop("one")
    pid = daemon.wait_for("one", "running")["pid"]

    replacement = daemon.top / "vms.new"
    replacement.mkdir()
    (replacement / "one.yaml").write_text(TINY + "description: of the new directory\n")
    daemon.vms.rename(daemon.top / "vms.old")
    replacement.rename(daemon.vms)

    daemon.until(lambda: description_of(daemon, "one"), "the new directory is read")
    daemon.drop("two")
    daemon.wait_for("two", "running")
    assert daemon.pid_of("one") == pid


def test_a_removed_directory_is_told_and_its_vms_run_on(daemon: Daemon) -> None:
    file = daemon.drop("one")
    pid = daemon.wait_for("one", "running")["pid"]

    file.unlink()
    daemon.vms.rmdir()

    daemon.until(lambda: "is not there" in findings_of(daemon), "the loss is told")
    assert f"mkdir -p {daemon.vms}" in daemon.arcsup("status").stdout
    assert (daemon.state_of("one"), daemon.qemus()) == ("running", [pid])
    daemon.vms.mkdir()
    daemon.drop("one", TINY + "description: is back\n")
    daemon.until(lambda: description_of(daemon, "one") == "is back", "the directory is back")
    assert daemon.qemus() == [pid]


@contextmanager
def mounted(directory: Path) -> Iterator[None]:
    """Yield with a file system of its own on ``directory``, which may be gone in the end."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "arcsup", directory], check=True)
    try:
        yield
    finally:
        if os.path.ismount(directory):
            subprocess.run(["umount", "--lazy", directory], check=True)


@as_root
def test_an_unmounted_directory_ends_no_vm_not_even_across_a_new_daemon(short_dir: Path) -> None:
    (short_dir / "vms").mkdir(mode=0o755)
    with mounted(short_dir / "vms"), running_daemon(short_dir) as daemon:
        daemon.drop("one", TINY + "stop: {timeout: 1s}\n")
        pid = daemon.wait_for("one", "running")["pid"]

        subprocess.run(["umount", "--lazy", daemon.vms], check=True)
        daemon.client.post("/v1/vms/one/qmp", {"execute": "query-status"})
        daemon.until(lambda: "unmounted?" in daemon.arcsup("status").stdout, "the loss is told")
        assert daemon.qemus() == [pid]

        daemon.terminate()
        daemon.start()
        daemon.until(lambda: "unmounted?" in daemon.arcsup("status").stdout, "it is told again")
        assert (daemon.state_of("one"), daemon.qemus()) == ("running", [pid])

        assert daemon.arcsup("reload").returncode == 0
        daemon.wait_for("one", "gone")
        assert daemon.qemus() == []


def test_what_cannot_be_read_is_told_where_it_stands(daemon: Daemon) -> None:
    (daemon.vms / "folder.yaml").mkdir()
    (daemon.vms / "dangling.yaml").symlink_to("nowhere.yaml")
    (daemon.vms / "wrong.yml").write_text(TINY)
    os.mkfifo(daemon.vms / "pipe.yaml")

    reasons = {name: daemon.wait_for(name, "invalid") for name in ("folder", "dangling", "pipe")}

    assert "is a directory, expected a regular file" in reasons["folder"]["reason"]
    assert "nowhere.yaml, which is not there" in reasons["dangling"]["reason"]
    assert "is a FIFO" in reasons["pipe"]["reason"]
    assert "rename it to wrong.yaml" in findings_of(daemon)


def test_a_name_that_is_not_text_is_told_and_harms_nothing(daemon: Daemon) -> None:
    with open(os.fsencode(daemon.vms) + b"/odd-\xff.yaml", "w") as stream:
        stream.write(TINY)

    daemon.until(lambda: "cannot be shown" in findings_of(daemon), "the odd name is told")
    daemon.drop("one")
    daemon.wait_for("one", "running")
    listed = daemon.arcsup("status")
    assert (listed.returncode, listed.stderr) == (0, "")
    assert "rename the file" in listed.stdout


def test_a_faulty_edit_is_invalid_and_the_last_good_version_runs_on(daemon: Daemon) -> None:
    daemon.drop("one")
    pid = daemon.wait_for("one", "running")["pid"]

    daemon.drop("one", TINY + "memorie: 1GiB\n")

    reason = daemon.wait_for("one", "invalid")["reason"]
    assert reason.startswith(f"{daemon.vms}/one.yaml:4:1: memorie: unknown key")
    assert "its last good version runs on" in reason
    assert daemon.qemus() == [pid]

    daemon.kill()
    daemon.start()

    assert daemon.wait_for("one", "invalid")["reason"] == reason
    assert daemon.qemus() == [pid]
    daemon.drop("one", TINY)
    daemon.wait_for("one", "running")
    assert daemon.qemus() == [pid]


def test_a_faulty_edits_last_good_version_is_restarted_after_a_crash(daemon: Daemon) -> None:
    daemon.drop("one")
    pid = daemon.wait_for("one", "running")["pid"]
    daemon.drop("one", "memory: lots\n")
    daemon.wait_for("one", "invalid")

    os.kill(pid, 9)

    daemon.until(lambda: daemon.status("one")["pid"] not in (None, pid), "it was started again")
    assert daemon.state_of("one") == "invalid"


def test_an_unknown_key_is_told_with_what_may_be_meant(daemon: Daemon) -> None:
    daemon.drop("one", TINY + "mashine: q35\n")

    reason = daemon.wait_for("one", "invalid")["reason"]
    listed = daemon.arcsup("list").stdout
    checked = daemon.arcsup("check", str(daemon.vms))

    expected = f"{daemon.vms}/one.yaml:4:1: mashine: unknown key, did you mean machine?"
    assert reason == expected
    assert "did you mean machine?" in listed
    assert (checked.returncode, checked.stdout.strip()) == (1, expected)


def test_of_two_files_with_one_name_both_are_invalid_and_what_runs_runs_on(
    daemon: Daemon,
) -> None:
    daemon.drop("one")
    pid = daemon.wait_for("one", "running")["pid"]

    second = daemon.drop("second", TINY + "name: one\n")

    daemon.until(lambda: set(states_of(daemon)) == {("one", "invalid")}, "both are invalid")
    assert "second.yaml" in daemon.status("one")["reason"]
    assert daemon.qemus() == [pid]
    second.unlink()
    daemon.until(lambda: states_of(daemon) == [("one", "running")], "the first is valid again")
    assert daemon.qemus() == [pid]


def states_of(daemon: Daemon) -> list[tuple[str, str]]:
    return [(vm["name"], vm["state"]) for vm in daemon.client.get("/v1/vms")]


@pytest.mark.parametrize(
    ("kind", "shared"),
    [
        ("disk", "disks: [{path: shared.qcow2, size: 1MiB}]\n"),
        ("mac", "networks: [{type: user, mac: '52:54:00:00:00:01'}]\n"),
        ("port", "networks: [{type: user, forwards: ['tcp:127.0.0.1:PORT:22']}]\n"),
        ("uuid", "uuid: 0f3a2c58-3a7e-4a55-9d2c-0c3d5a1b7e42\n"),
    ],
)
def test_who_was_there_first_keeps_what_two_cannot_share(
    daemon: Daemon, kind: str, shared: str, free_port: Callable[[], int]
) -> None:
    base = TINY if "networks" not in shared else TINY.replace("networks: []\n", "")
    text = base + shared.replace("PORT", str(free_port()))
    daemon.drop("zebra", text)
    pid = daemon.wait_for("zebra", "running")["pid"]

    daemon.drop("ant", text)

    reason = daemon.wait_for("ant", "invalid")["reason"]
    assert "zebra" in reason
    assert (daemon.state_of("zebra"), daemon.qemus()) == ("running", [pid])
    # Its BIOS does not hear the power button, so it still holds what the other may have now.
    (daemon.vms / "zebra.yaml").unlink()
    assert "VM zebra to end, which still has" in daemon.wait_for("ant", "waiting")["reason"]
    daemon.call("kill", "zebra")
    assert daemon.wait_for("ant", "running")["restarts"] == 0


@as_root
def test_a_file_that_others_can_write_is_refused_for_that_reason(daemon: Daemon) -> None:
    writable = daemon.vms / "writable.yaml"
    writable.touch()
    writable.chmod(0o666)
    writable.write_text(TINY)
    owned = daemon.drop("owned")
    os.chown(owned, 65534, 65534)

    reason = daemon.wait_for("writable", "invalid")["reason"]
    assert "can be written by everybody; run: chmod o-w" in reason
    daemon.until(lambda: "belongs to user" in daemon.status("owned")["reason"], "it is refused")
    writable.chmod(0o644)
    daemon.wait_for("writable", "running")
