"""Logs that are too long are begun anew under whoever writes them."""

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


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_log_that_cannot_be_copied_is_told_and_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = tmp_path / "console.log"
    log.write_text("x" * 100)
    (tmp_path / ".console.log.tmp").symlink_to("/dev/full")

    rotate_logs([tmp_path], largest=20)

    assert log.read_text() == "x" * 100
    assert "cannot be rotated: No space left on device" in caplog.text


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
