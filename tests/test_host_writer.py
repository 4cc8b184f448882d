import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE

import pytest
import trio

from arcsup.errors import Stuck, Terminal, Transient
from arcsup.host.writer import (
    Word,
    await_earlier_helpers,
    comes_true,
    explain,
    is_unanswered,
    read_sysfs,
    run_helper,
    write_sysfs,
)
from tests.leftovers import find_processes_naming


@pytest.fixture
def never(tmp_path: Path) -> Path:
    """Stand-in for an attribute that does not answer: a pipe that nobody reads."""
    path = tmp_path / "remove"
    os.mkfifo(path)
    return path


async def test_a_text_arrives_as_it_is(tmp_path: Path) -> None:
    attribute = tmp_path / "driver_override"
    attribute.write_text("longer than what comes")
    await write_sysfs(str(attribute), "$(id) 'x'\n", seconds=30)
    assert attribute.read_text() == "$(id) 'x'\n"


async def test_what_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        await write_sysfs(str(tmp_path / "create"), "1", seconds=30)
    assert caught.value.filename == str(tmp_path / "create")
    assert not (tmp_path / "create").exists()


async def test_the_kernels_answer_is_the_errno_of_the_write() -> None:
    with pytest.raises(OSError, match="No space") as caught:
        await write_sysfs("/dev/full", "1", seconds=30)
    assert caught.value.errno == errno.ENOSPC


async def test_an_attribute_is_read_without_its_newline(tmp_path: Path) -> None:
    (tmp_path / "driver_override").write_text("vfio-pci\n")
    assert await read_sysfs(str(tmp_path / "driver_override"), seconds=30) == "vfio-pci"
    with pytest.raises(FileNotFoundError):
        await read_sysfs(str(tmp_path / "gone"), seconds=30)


async def test_a_write_without_an_answer_is_stuck_and_holds_up_nothing(never: Path) -> None:
    with pytest.raises(Stuck) as caught:
        await write_sysfs(str(never), "1", seconds=0.3)
    assert caught.value.message == f"{never}: the kernel has not answered within 0.3 s"
    assert await comes_true(lambda: not find_processes_naming(never), seconds=30)


async def test_a_helper_that_was_left_alone_is_reaped_when_it_ends(never: Path) -> None:
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    before = children.read_text()
    with pytest.raises(Stuck):
        await write_sysfs(str(never), "1", seconds=0.3)
    assert await comes_true(lambda: children.read_text() == before, seconds=30)


async def test_what_is_stuck_is_not_tried_again_while_it_lasts(never: Path) -> None:
    path = str(never)
    with pytest.raises(Stuck, match="within"):
        await write_sysfs(path, "1", seconds=0.2)
    assert is_unanswered(path)
    with pytest.raises(Stuck, match="still not answered"):
        await write_sysfs(path, "1", seconds=60)
    assert await comes_true(lambda: not is_unanswered(path), seconds=30)
    with trio.move_on_after(0.2):
        await write_sysfs(path, "1", seconds=60)
    assert await comes_true(lambda: not is_unanswered(path), seconds=30)


async def test_a_cancelled_write_leaves_no_helper(never: Path) -> None:
    with trio.move_on_after(0.3) as scope:
        await write_sysfs(str(never), "1", seconds=60)
    assert scope.cancelled_caught
    assert await comes_true(lambda: not find_processes_naming(never), seconds=30)


async def test_a_helper_whose_daemon_has_died_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attribute = tmp_path / "remove"
    attribute.touch()
    monkeypatch.setattr(os, "getpid", lambda: 2**22)
    await write_sysfs(str(attribute), "1", seconds=30)
    assert attribute.read_text() == ""


WRITE = """
import sys, trio
from functools import partial
from arcsup.host.writer import write_sysfs
trio.run(partial(write_sysfs, sys.argv[1], "1", seconds=60))
"""


async def test_what_a_killed_daemon_has_begun_to_write_is_known_to_the_next(never: Path) -> None:
    path = str(never)
    with subprocess.Popen([sys.executable, "-c", WRITE, path]) as daemon:
        assert await comes_true(lambda: bool(find_processes_naming(f"of={path}")), seconds=30)
        daemon.kill()
    await await_earlier_helpers(seconds=0)
    assert is_unanswered(path)
    with pytest.raises(Stuck, match="still not answered"):
        await write_sysfs(path, "1", seconds=60)
    with never.open() as reader:
        assert reader.read() == "1", "the kernel has answered at last"
    assert await comes_true(lambda: not is_unanswered(path), seconds=30)
    await await_earlier_helpers(seconds=30)
    assert not is_unanswered(path)


@pytest.fixture
def marked(never: Path) -> Iterator[int]:
    """The pid of a program that says of itself that it works on ``never``."""
    environment = {**os.environ, "ARCSUP_WORKS_ON": str(never)}
    talk = [sys.executable, "-c", "print(flush=True); input()"]
    with subprocess.Popen(talk, env=environment, stdin=PIPE, stdout=PIPE) as program:
        assert program.stdout is not None
        # Between the two halves of its exec(2) a program has no environment.
        program.stdout.readline()
        yield program.pid
        program.kill()


@pytest.mark.parametrize(("real", "known"), [(0, True), (1, False)])
async def test_a_helper_is_only_what_the_daemons_own_user_started(
    real: int, known: bool, marked: int, never: Path, tmp_path: Path
) -> None:
    # A set-uid program runs as the daemon's user with the environment of who called it.
    own, caller = os.getuid(), os.getuid() + real
    (tmp_path / f"{marked}").mkdir()
    (tmp_path / f"{marked}/environ").symlink_to(f"/proc/{marked}/environ")
    (tmp_path / f"{marked}/status").write_text(
        f"Name:\tcat\nUid:\t{caller}\t{own}\t{own}\t{own}\nGid:\t0\t0\t0\t0\n"
    )
    await await_earlier_helpers(seconds=0, proc=tmp_path)
    assert is_unanswered(str(never)) is known


async def test_a_program_tells_its_end_and_what_it_said() -> None:
    end = await run_helper(
        ["sh", "-c", "echo out; echo err >&2; exit 3"], seconds=30, what="a tool"
    )
    assert (end.code, end.output) == (3, "out\nerr\n")
    end = await run_helper(["sh", "-c", "kill -TERM $$"], seconds=30, what="a tool")
    assert end.code == -signal.SIGTERM


async def test_what_a_program_has_started_ends_with_it(tmp_path: Path) -> None:
    name = str(tmp_path)
    with pytest.raises(Stuck, match="a tool"):
        await run_helper(
            ["sh", "-c", 'sh -c "sleep 60; :" "$0"; :', name], seconds=0.5, what="a tool"
        )
    assert await comes_true(lambda: not find_processes_naming(name), seconds=30)


async def test_a_program_that_is_not_there_is_said() -> None:
    with pytest.raises(Transient, match="no-such-tool could not be started"):
        await run_helper(["no-such-tool"], seconds=1, what="a tool")


def test_an_errno_is_said_in_words_with_what_to_do() -> None:
    words = {errno.EINVAL: Word(Terminal, "unknown type", "choose another")}
    error = explain("nvidia-9", OSError(errno.EINVAL, ""), words)
    assert isinstance(error, Terminal)
    assert error.message == "nvidia-9: unknown type (EINVAL: Invalid argument)"
    assert error.hint == "choose another"


def test_a_read_only_device_tree_is_said_with_its_usual_cause() -> None:
    error = explain("create", OSError(errno.EROFS, ""), {})
    assert isinstance(error, Terminal)
    assert "ProtectKernelTunables" in error.hint


def test_an_unknown_errno_may_pass() -> None:
    error = explain("create", OSError(errno.EPIPE, ""), {})
    assert type(error) is Transient
    assert "EPIPE" in error.message
