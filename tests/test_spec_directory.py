"""The VM directory on a real file system."""

import os
import shutil
import signal
import socket
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from attrs import evolve

from arcsup.model import MiB, VmName
from arcsup.spec import files
from arcsup.spec.directory import (
    REMOVAL_GRACE,
    Circumstances,
    DirectoryState,
    Snapshot,
    read_directory,
)
from arcsup.spec.native import load_vm

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to act for others")


class Folder:
    """A VM directory and the reader's memory of it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.given = Circumstances("0123456789abcdef", Path("/images"))
        self.snapshot: Snapshot | None = None
        # Far from the times of the files: what was written just now counts as settled.
        self.now = time.time() + 60

    def write(self, name: str, text: str = "memory: 1G\n") -> Path:
        """Write a file in place."""
        path = self.path / name
        path.write_text(text)
        return path

    def look(self, after: float = 0.0) -> Snapshot:
        """Read the directory ``after`` seconds later."""
        self.now += after
        self.snapshot = read_directory(self.path, self.snapshot, self.given, self.now)
        return self.snapshot

    def names(self) -> list[str]:
        """Look, and return the names of the entries."""
        return sorted(entry.name for entry in self.look().entries.values())

    def fault(self, name: str) -> str:
        """Look, and return the only fault of a file without its place."""
        entry = self.look().entries[self.path / name]
        (fault,) = entry.faults
        assert entry.vm is None
        return fault.message


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    path = tmp_path / "vms"
    path.mkdir()
    return Folder(path)


@pytest.fixture
def open_folder() -> Iterator[Folder]:
    """A directory that other users can reach, which pytest's own is not."""
    path = Path(tempfile.mkdtemp(prefix="arcsup-"))
    path.chmod(0o755)
    yield Folder(path)
    shutil.rmtree(path)


def test_a_file_becomes_an_entry(folder: Folder) -> None:
    file = folder.write("box.yaml", "memory: 1G\n")

    (entry,) = folder.look().entries.values()

    assert (entry.file, entry.name, entry.text, entry.faults) == (file, "box", "memory: 1G\n", ())
    assert entry.vm is not None
    assert entry.last_good == entry.vm
    assert entry.vm.memory_mib == MiB(1024)
    assert len(entry.digest) == 64


def test_nothing_changed_gives_the_same_snapshot(folder: Folder) -> None:
    folder.write("a.yaml")
    folder.write("b.yaml", "memory: lots\n")
    folder.write("c.yml")
    (folder.path / "d.yaml").symlink_to("nowhere")

    assert folder.look() is folder.look(1)


def test_a_hundred_unchanged_files_are_not_opened_again(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(100):
        folder.write(f"vm{number}.yaml", f"disks: [{{path: vm{number}.qcow2}}]\n")
    folder.look()
    opened: list[str] = []
    really_open = os.open

    def note_open(path: str, *arguments: int, dir_fd: int | None = None) -> int:
        opened.append(str(path))
        return really_open(path, *arguments, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", note_open)
    folder.look()
    assert opened == [str(folder.path)]

    folder.write("vm7.yaml", "memory: 1GiB\n")
    folder.look()
    assert opened[1:] == [str(folder.path), "vm7.yaml"]


@pytest.mark.parametrize(
    "name",
    [".box.yaml", ".box.yaml.swp", "box.yaml~", "#box.yaml#", ".#box.yaml", "box.yaml.tmp", "4913"],
)
def test_helper_files_of_editors_are_passed_over(folder: Folder, name: str) -> None:
    folder.write(name)

    assert folder.look().entries == {}
    assert folder.look().findings == ()


@pytest.mark.parametrize("name", ["box.yml", "box.YAML"])
def test_a_near_miss_of_a_name_is_told(folder: Folder, name: str) -> None:
    folder.write(name)

    (finding,) = folder.look().findings

    assert str(finding) == f"{folder.path / name}:1:1: is not read, rename it to box.yaml"


def test_a_name_that_cannot_be_shown_is_told(folder: Folder) -> None:
    Path(os.fsdecode(os.fsencode(folder.path) + b"/a\xff\nb.yaml")).write_text("memory: 1G")

    (finding,) = folder.look().findings

    str(finding).encode()
    assert "rename the file" in finding.message
    assert "\n" not in str(finding)


def test_an_edit_in_place_is_seen(folder: Folder) -> None:
    folder.write("box.yaml", "memory: 1G\n")
    folder.look()

    folder.write("box.yaml", "memory: 2G\n")

    (entry,) = folder.look().entries.values()
    assert entry.vm is not None
    assert entry.vm.memory_mib == MiB(2048)


def test_an_atomic_rename_is_seen(folder: Folder) -> None:
    folder.write("box.yaml", "memory: 1G\n")
    folder.look()

    folder.write(".box.yaml.new", "memory: 2G\n").rename(folder.path / "box.yaml")

    (entry,) = folder.look().entries.values()
    assert entry.text == "memory: 2G\n"


def test_a_second_write_within_a_tick_of_the_clock_is_seen(folder: Folder) -> None:
    file = folder.write("box.yaml", "memory: 1G\n")
    times = file.stat()
    folder.now = times.st_mtime + 0.001
    first = folder.look()
    assert first.look_again_at == folder.now + 0.05

    file.write_text("memory: 2G\n")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))

    assert [entry.text for entry in folder.look(0.05).entries.values()] == ["memory: 2G\n"]
    assert folder.look().look_again_at is None


def test_a_touched_file_keeps_its_entry(folder: Folder) -> None:
    file = folder.write("box.yaml")
    before = folder.look().entries[file]

    os.utime(file, (1, 1))

    assert folder.look().entries[file] is before


def test_a_faulty_edit_keeps_the_last_good_version(folder: Folder) -> None:
    file = folder.write("box.yaml", "name: web\nmemory: 1G\n")
    good = folder.look().entries[file].vm

    folder.write("box.yaml", "name: web\nmemory: lots\n")
    entry = folder.look().entries[file]
    folder.write("box.yaml", "name: [\n")
    worse = folder.look().entries[file]

    assert (entry.vm, entry.last_good, entry.name) == (None, good, "web")
    assert entry.faults[0].line == 2
    assert worse.last_good == good


def test_the_last_good_version_of_an_earlier_daemon_is_known(folder: Folder) -> None:
    file = folder.write("box.yaml", "memory: lots\n")
    good = load_vm("memory: 1G", file, "0")
    folder.given = evolve(folder.given, last_good={VmName("box"): good})

    assert folder.look().entries[file].last_good == good


# --- what is no plain file ----------------------------------------------------------------------


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Path.mkdir, "is a directory, expected a regular file"),
        (os.mkfifo, "is a FIFO, expected a regular file"),
        (make_socket, "is a socket, expected a regular file"),
        (lambda path: path.symlink_to("/dev/null"), "is a device, expected a regular file"),
        (
            lambda path: path.symlink_to("/nowhere/x"),
            "is a symlink to /nowhere/x, which is not there",
        ),
        (lambda path: path.symlink_to(path.name), "Too many levels of symbolic links"),
        (lambda path: path.write_bytes(b"#" * (1 << 20) + b"#"), "is longer than 1 MiB"),
    ],
)
def test_what_is_no_plain_file_is_told_and_never_waited_for(
    folder: Folder, make: Callable[[Path], object], message: str
) -> None:
    make(folder.path / "box.yaml")

    assert message in folder.fault("box.yaml")


@AS_ROOT
def test_a_file_that_may_not_be_read_is_told(open_folder: Folder) -> None:
    open_folder.write("box.yaml").chmod(0)
    os.seteuid(65534)
    try:
        message = open_folder.fault("box.yaml")
    finally:
        os.seteuid(0)

    assert message == "cannot be read by user 65534; run: chmod u+r, or chown it"


@AS_ROOT
def test_a_directory_that_may_not_be_read_keeps_its_vms(open_folder: Folder) -> None:
    open_folder.write("box.yaml")
    before = open_folder.look()
    for mode in (0o000, 0o644):
        open_folder.path.chmod(mode)
        os.seteuid(65534)
        try:
            snapshot = open_folder.look(10)
        finally:
            os.seteuid(0)
        kept = [entry.last_good for entry in snapshot.entries.values()]
        assert kept == [entry.vm for entry in before.entries.values()]


# --- symlinks -----------------------------------------------------------------------------------


def test_a_retargeted_symlink_and_an_edit_of_its_target_are_seen(
    folder: Folder, tmp_path: Path
) -> None:
    (tmp_path / "one").write_text("memory: 1G\n")
    (tmp_path / "two").write_text("memory: 2G\n")
    link = folder.path / "box.yaml"

    def text() -> str:
        return folder.look().entries[link].text

    link.symlink_to(tmp_path / "one")
    assert text() == "memory: 1G\n"
    (tmp_path / "next").symlink_to(tmp_path / "two")
    (tmp_path / "next").rename(link)
    assert text() == "memory: 2G\n"
    (tmp_path / "two").write_text("memory: 3G\n")
    assert text() == "memory: 3G\n"


def test_a_swapped_data_directory_as_kubernetes_does_it_is_seen(folder: Folder) -> None:
    for version in ("1", "2"):
        (folder.path / f"..v{version}").mkdir()
        (folder.path / f"..v{version}" / "box.yaml").write_text(f"memory: {version}G\n")
    (folder.path / "..data").symlink_to("..v1")
    link = folder.path / "box.yaml"
    link.symlink_to("..data/box.yaml")
    assert folder.look().entries[link].text == "memory: 1G\n"

    (folder.path / "..data_tmp").symlink_to("..v2")
    (folder.path / "..data_tmp").rename(folder.path / "..data")

    assert folder.look().entries[link].text == "memory: 2G\n"


# --- writers ------------------------------------------------------------------------------------


def test_a_file_that_is_open_for_writing_is_not_read_yet(folder: Folder) -> None:
    folder.now = time.time()
    with open(folder.path / "box.yaml", "w") as writer:
        writer.write("memory: ")
        writer.flush()
        snapshot = folder.look(0.2)
        assert snapshot.entries == {}
        assert snapshot.unsettled.keys() == {folder.path / "box.yaml"}
        assert snapshot.look_again_at == folder.now + 0.05
        writer.write("1G\n")

    snapshot = folder.look(0.05)

    assert not snapshot.unsettled
    assert [entry.faults for entry in snapshot.entries.values()] == [()]


def test_a_file_that_is_being_rewritten_keeps_its_version(folder: Folder) -> None:
    file = folder.write("box.yaml", "memory: 1G\n")
    before = folder.look().entries[file]
    folder.now = time.time()

    with open(file, "w"):
        snapshot = folder.look(0.2)

        assert snapshot.entries == {file: before}
        assert snapshot.unsettled.keys() == {file}
        assert folder.look(5).entries == {file: before}


def test_a_writer_that_never_closes_is_waited_for_only_so_long(folder: Folder) -> None:
    folder.now = time.time()
    with open(folder.path / "box.yaml", "w") as writer:
        writer.write("memory: 1G\n")
        writer.flush()

        assert folder.look().unsettled
        assert folder.look(files.WRITER_LIMIT + 1).entries


def write_for_ever(*_: object, **__: object) -> files.Unsettled:
    """Read a file to which somebody writes without a pause."""
    return files.Unsettled()


def test_a_file_that_is_written_to_for_ever_has_a_fault_and_keeps_its_last_good_version(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = folder.write("known.yaml")
    good = folder.look().entries[known].vm
    unknown = folder.write("new.yaml")
    known.touch()
    with monkeypatch.context() as patched:
        patched.setattr("arcsup.spec.directory.read_file", write_for_ever)
        assert folder.look().entries[known].faults == ()
        assert unknown not in folder.look(9).entries

        entries = folder.look(2).entries

        assert entries.keys() == {known, unknown}
        for entry in entries.values():
            assert "written to for more than 10 s without a pause" in entry.faults[0].message
        assert (entries[known].vm, entries[known].last_good) == (None, good)
        assert folder.look(60).entries == entries, "that is said once"

    assert all(entry.faults == () for entry in folder.look(1).entries.values())


def test_a_file_that_is_written_to_for_long_is_looked_at_seldom(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.write("box.yaml")
    monkeypatch.setattr("arcsup.spec.directory.read_file", write_for_ever)
    pauses = []
    for _ in range(60):
        again = folder.look().look_again_at
        assert again is not None
        pauses.append(again - folder.now)
        folder.now = again

    assert pauses[0] == pytest.approx(0.05)
    assert pauses[-1] == pytest.approx(2.0)
    assert sum(pauses[:12]) > 10


def test_a_file_that_is_dated_ahead_is_waited_for_no_longer_than_another(folder: Folder) -> None:
    folder.now = time.time()
    file = folder.path / "box.yaml"
    with open(file, "w") as writer:
        writer.write("memory: 1G\n")
        writer.flush()
        os.utime(file, (folder.now + 3600, folder.now + 3600))

        assert folder.look(0.2).unsettled
        snapshot = folder.look(files.WRITER_LIMIT + 1)
        assert snapshot.entries
        assert not snapshot.unsettled


def test_without_leases_a_young_file_is_not_read_yet(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr("fcntl.fcntl", refuse)
    file = folder.write("box.yaml")
    folder.now = file.stat().st_mtime

    assert folder.look(0.05).unsettled.keys() == {file}
    assert not folder.look(0.1).unsettled
    assert folder.look().entries.keys() == {file}


def test_a_writer_that_comes_while_we_read_does_not_end_us(folder: Folder) -> None:
    """The kernel tells a lease holder of a writer by a signal, SIGIO (deadly) unless chosen."""
    file = folder.write("box.yaml")
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            file.write_text("memory: 1G\n")

    assert signal.getsignal(signal.SIGIO) is signal.SIG_DFL
    folder.now = time.time()
    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(300):
            for entry in folder.look().entries.values():
                assert entry.text == "memory: 1G\n"
            folder.now = time.time()
    finally:
        stop.set()
        writer.join()


# --- removal ------------------------------------------------------------------------------------


def test_a_removed_file_is_gone_only_after_a_grace(folder: Folder) -> None:
    file = folder.write("box.yaml")
    folder.look()
    file.unlink()

    gone = folder.look()
    assert gone.entries[file].gone_at == folder.now
    assert gone.entries[file].vm is not None
    assert gone.look_again_at == folder.now + REMOVAL_GRACE
    assert file in folder.look(0.4).entries
    assert folder.look(0.1).entries == {}


def test_a_file_that_an_editor_made_again_was_never_gone(folder: Folder) -> None:
    file = folder.write("box.yaml")
    before = folder.look().entries[file]
    file.unlink()
    folder.look()

    folder.write("box.yaml")

    assert folder.look(0.2).entries[file] == before
    assert folder.look(1).entries[file].gone_at is None


def test_a_renamed_file_with_the_same_name_in_it_is_no_conflict(folder: Folder) -> None:
    file = folder.write("a.yaml", "name: web\ndisks: [{path: web.qcow2}]\n")
    folder.look()

    moved = file.rename(folder.path / "b.yaml")

    snapshot = folder.look()
    assert snapshot.entries.keys() == {moved}
    assert snapshot.entries[moved].faults == ()


def test_what_a_removed_vm_has_is_free_only_after_the_grace(folder: Folder) -> None:
    file = folder.write("a.yaml", "disks: [{path: x}]\n")
    folder.look()
    file.unlink()
    folder.write("b.yaml", "disks: [{path: x}]\n")

    assert f"image x is used by {file}" in folder.fault("b.yaml")
    assert [entry.faults for entry in folder.look(REMOVAL_GRACE).entries.values()] == [()]


def test_a_clock_that_is_set_back_does_not_keep_a_file_for_ever(folder: Folder) -> None:
    file = folder.write("box.yaml")
    folder.look()
    file.unlink()
    folder.look()

    folder.look(-3600)

    assert folder.look(REMOVAL_GRACE).entries == {}


# --- the directory itself -----------------------------------------------------------------------


def test_a_missing_directory_is_told(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "vms")

    assert folder.look().directory is DirectoryState.MISSING
    assert folder.look().reason.endswith(f"run: mkdir -p {folder.path}")


def test_a_file_in_place_of_the_directory_is_told(tmp_path: Path) -> None:
    (tmp_path / "vms").write_text("")

    assert Folder(tmp_path / "vms").look().directory is DirectoryState.UNREADABLE


def test_a_directory_that_goes_away_keeps_its_vms(folder: Folder, tmp_path: Path) -> None:
    folder.write("box.yaml")
    before = folder.look()
    folder.path.rename(tmp_path / "away")

    snapshot = folder.look(10)
    assert snapshot.directory is DirectoryState.MISSING
    assert snapshot.entries == before.entries
    assert folder.look(10) is snapshot

    (tmp_path / "away").rename(folder.path)
    assert folder.look().directory is DirectoryState.PRESENT
    assert folder.look().entries == before.entries


def test_an_empty_directory_in_its_place_keeps_the_vms_for_as_long_as_it_is_empty(
    folder: Folder, tmp_path: Path
) -> None:
    folder.write("box.yaml")
    before = folder.look()
    folder.path.rename(tmp_path / "away")
    folder.path.mkdir()

    assert folder.look(10).directory is DirectoryState.REPLACED_EMPTY
    assert folder.look(10).entries == before.entries

    folder.write("cat.yaml")
    assert folder.names() == ["box", "cat"]
    folder.look(REMOVAL_GRACE)
    assert folder.names() == ["cat"]
    assert folder.look().directory is DirectoryState.PRESENT


def test_the_same_directory_emptied_removes_its_vms(folder: Folder) -> None:
    folder.write("box.yaml").unlink()
    folder.write("cat.yaml")
    folder.look()
    (folder.path / "cat.yaml").unlink()
    folder.look()

    assert folder.look(REMOVAL_GRACE).entries == {}


# --- between files ------------------------------------------------------------------------------


def test_who_was_there_first_keeps_what_both_want_whatever_the_order_of_names(
    folder: Folder,
) -> None:
    second = folder.write("b.yaml", "disks: [{path: x}]\n")
    folder.look()
    folder.write("a.yaml", "disks: [{path: x}]\n")

    assert f"image x is used by {second}" in folder.fault("a.yaml")
    assert folder.look().entries[second].faults == ()


def test_an_edit_that_takes_what_another_has_is_the_one_at_fault(folder: Folder) -> None:
    first = folder.write("a.yaml", "disks: [{path: x}]\n")
    second = folder.write("b.yaml", "disks: [{path: y}]\n")
    good = folder.look().entries[first].vm

    folder.write("a.yaml", "disks: [{path: y}]\n")

    assert f"image y is used by {second}" in folder.fault("a.yaml")
    assert folder.look().entries[first].last_good == good
    folder.write("c.yaml", "disks: [{path: x}]\n")
    assert f"image x is used by {first}" in folder.fault("c.yaml")


def test_two_files_of_one_name_are_both_at_fault_and_the_running_version_stays(
    folder: Folder,
) -> None:
    first = folder.write("a.yaml", "name: web\n")
    good = folder.look().entries[first].vm
    second = folder.write("b.yaml", "name: web\nmemory: 1G\n")

    assert "web is the name of" in folder.fault("a.yaml")
    assert "web is the name of" in folder.fault("b.yaml")
    assert folder.look().entries[first].last_good == good
    second.unlink()
    assert folder.look().entries[first].vm == good


def test_one_image_by_two_paths_is_one_image(folder: Folder, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/images/x")
    folder.write("a.yaml", "disks: [{path: x}]\n")
    folder.look()
    folder.write("b.yaml", f"disks: [{{path: {tmp_path}/link}}]\n")

    assert "is used by" in folder.fault("b.yaml")


# --- system mode --------------------------------------------------------------------------------


@pytest.fixture
def system(folder: Folder) -> Folder:
    folder.given = evolve(folder.given, system=True)
    return folder


@AS_ROOT
def test_in_system_mode_files_of_root_are_read(system: Folder) -> None:
    system.write("box.yaml").chmod(0o664)  # the group is root's

    assert [entry.faults for entry in system.look().entries.values()] == [()]


def give_to_group(file: Path) -> None:
    os.chown(file, 0, 1000)
    file.chmod(0o664)


def give_to_user(file: Path) -> None:
    os.chown(file, 1000, 0)


@AS_ROOT
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda file: file.chmod(0o646), "can be written by everybody; run: chmod o-w"),
        (give_to_user, "belongs to user 1000, expected root"),
        (give_to_group, "can be written by group 1000; run: chmod g-w"),
    ],
)
def test_in_system_mode_a_file_that_others_can_change_is_refused(
    system: Folder, spoil: Callable[[Path], object], message: str
) -> None:
    file = system.write("box.yaml")
    good = system.look().entries[file].vm

    spoil(file)

    assert message in system.fault("box.yaml")
    assert system.look().entries[file].last_good == good


@AS_ROOT
def test_in_system_mode_a_directory_that_others_can_write_is_refused(system: Folder) -> None:
    system.write("box.yaml")
    system.path.chmod(0o777)
    assert system.fault("box.yaml") == f"{system.path} can be written by everybody; run: chmod o-w"

    system.path.chmod(0o755)
    assert [entry.faults for entry in system.look().entries.values()] == [()]


@AS_ROOT
def test_in_system_mode_a_symlink_into_a_directory_of_others_is_refused(
    system: Folder, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "box.yaml").write_text("memory: 1G\n")
    os.chown(home, 1000, 1000)
    (system.path / "box.yaml").symlink_to(home / "box.yaml")

    assert system.fault("box.yaml").startswith(f"points into {home}, which belongs to user 1000")


@AS_ROOT
def test_in_system_mode_a_symlink_of_somebody_else_is_refused(
    system: Folder, tmp_path: Path
) -> None:
    (tmp_path / "box").write_text("memory: 1G\n")
    link = system.path / "box.yaml"
    link.symlink_to(tmp_path / "box")
    os.chown(link, 1000, 1000, follow_symlinks=False)

    assert "is a symlink that does not belong to root" in system.fault("box.yaml")


def test_reading_changes_nothing(folder: Folder) -> None:
    file = folder.write("box.yaml")
    before = file.stat()
    folder.look()
    after = file.stat()

    assert stat.S_IMODE(before.st_mode) == stat.S_IMODE(after.st_mode)
    assert (before.st_mtime_ns, before.st_ctime_ns) == (after.st_mtime_ns, after.st_ctime_ns)
