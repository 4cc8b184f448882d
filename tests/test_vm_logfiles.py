"""Logs that are too long are begun anew under whoever writes them."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from arcsup.vm.logfiles import FLOOD, LogKeeper


def rotate_logs(folders: list[Path], largest: int) -> None:
    LogKeeper(largest).look(folders)


def test_a_log_that_is_too_long_is_kept_once_and_emptied(tmp_path: Path) -> None:
    log, old = tmp_path / "console.log", tmp_path / "console.log.1"
    for text in ("first " * 10, "second " * 10):
        with open(log, "a") as stream:
            stream.write(text)
        log.chmod(0o640)
        rotate_logs([tmp_path], largest=20)
        assert (log.read_text(), old.read_text()) == ("", text[-20:])
        assert old.stat().st_mode & 0o777 == 0o640
    assert sorted(path.name for path in tmp_path.iterdir()) == ["console.log", "console.log.1"]


def test_a_short_log_and_other_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "qemu.log").write_text("short")
    (tmp_path / "notes.txt").write_text("long " * 100)
    (tmp_path / "link.log").symlink_to("notes.txt")
    (tmp_path / "folder.log").mkdir()

    rotate_logs([tmp_path, tmp_path / "not-there"], largest=20)

    assert (tmp_path / "qemu.log").read_text() == "short"
    assert len((tmp_path / "notes.txt").read_text()) == 500
    assert len(list(tmp_path.iterdir())) == 4


def test_who_appends_goes_on_at_the_new_end(tmp_path: Path) -> None:
    log = tmp_path / "qemu.log"
    writer = (
        "import sys\n"
        "for line in sys.stdin:\n"
        "    print(line, end='', flush=True)\n"
        "    print('written', file=sys.stderr, flush=True)\n"
    )
    with open(log, "ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", writer],
            stdin=subprocess.PIPE, stdout=output, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
    with process:
        assert process.stdin is not None
        assert process.stderr is not None

        def write(line: str) -> None:
            assert process.stdin is not None
            assert process.stderr is not None
            process.stdin.write(line)
            process.stdin.flush()
            process.stderr.readline()

        write("before " * 10 + "\n")
        rotate_logs([tmp_path], largest=20)
        write("after\n")

        assert log.read_bytes() == b"after\n"


def test_a_log_that_cannot_be_copied_is_told_and_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "console.log"
    log.write_text("x" * 100)

    def refuse(descriptor: int, mode: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fchmod", refuse)
    rotate_logs([tmp_path], largest=20)

    assert log.read_text() == "x" * 100
    assert "cannot be rotated: No space left on device" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["console.log"]


def test_what_is_kept_of_a_log_has_no_mode_of_its_writers(tmp_path: Path) -> None:
    log = tmp_path / "console.log"
    log.write_text("x" * 100)
    log.chmod(0o6777)

    rotate_logs([tmp_path], largest=20)

    assert (tmp_path / "console.log.1").stat().st_mode & 0o7777 == 0o640


def test_a_link_where_a_log_is_kept_leads_nowhere(tmp_path: Path) -> None:
    folder, victim = tmp_path / "logs", tmp_path / "victim"
    folder.mkdir()
    victim.write_text("precious")
    (folder / "console.log").write_text("x" * 100)
    for name in (".console.log.tmp", "console.log.1"):
        (folder / name).symlink_to(victim)

    rotate_logs([folder], largest=20)

    assert victim.read_text() == "precious"
    assert not (folder / "console.log.1").is_symlink()
    assert (folder / "console.log.1").read_text() == "x" * 20


def test_a_log_with_a_second_name_and_one_behind_a_link_are_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, victim = tmp_path / "logs", tmp_path / "victim.log"
    folder.mkdir()
    victim.write_text("x" * 100)
    (folder / "console.log").hardlink_to(victim)
    (tmp_path / "link").symlink_to(folder)

    rotate_logs([folder, tmp_path / "link"], largest=20)

    assert victim.read_text() == "x" * 100
    assert caplog.text.count("cannot be rotated: it is no file of its own alone") == 1


def test_a_log_that_fills_up_again_at_once_is_emptied_and_told_once(tmp_path: Path) -> None:
    now = 0.0
    keeper, log = LogKeeper(20, clock=lambda: now), tmp_path / "qemu.log"
    told: list[Path] = []
    for letter in "abcd":
        log.write_text(letter * 100)
        grown, floods = keeper.look([tmp_path])
        told += floods
        assert (grown, log.read_text()) == (100, "")
    assert told == [log]
    assert (tmp_path / "qemu.log.1").read_text() == "a" * 20

    now += FLOOD
    log.write_text("e" * 100)
    assert keeper.look([tmp_path]) == (100, ())
    assert (tmp_path / "qemu.log.1").read_text() == "e" * 20


def test_a_log_that_cannot_be_kept_gives_its_room_back_the_next_time(tmp_path: Path) -> None:
    keeper, log = LogKeeper(20), tmp_path / "qemu.log"
    log.write_text("x" * 100)
    (tmp_path / ".qemu.log.tmp").mkdir()

    assert keeper.look([tmp_path]) == (100, ())
    assert log.stat().st_size == 100
    assert keeper.look([tmp_path]) == (0, (log,))
    assert log.stat().st_size == 0
