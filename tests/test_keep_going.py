import errno
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from arcsup.control.metrics import Metrics
from arcsup.errors import is_shortage
from arcsup.events.dirty import Dirty
from arcsup.keep_going import keep_going
from arcsup.model import MiB
from arcsup.notify import notify
from arcsup.reconcile import Reconciler
from arcsup.vf_journal import VfJournal
from arcsup.virtual_functions import VfKeeper
from tests.small_host import BOOT, SmallHost

SHORTAGES = [
    OSError(errno.EMFILE, "Too many open files"),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    RuntimeError("can't start new thread"),
    ExceptionGroup("of a nursery", [OSError(errno.ENFILE, "Too many open files in system")]),
]


@pytest.mark.parametrize("error", SHORTAGES)
async def test_a_task_is_begun_again_when_the_host_had_nothing_left(
    error: Exception, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    begun = 0

    async def task() -> None:
        nonlocal begun
        begun += 1
        if begun < 10:
            raise error

    await keep_going("looking at logs", task)

    assert begun == 10
    assert caplog.text.count("looking at logs") == 1


async def test_a_defect_of_a_task_is_not_hidden() -> None:
    async def task() -> None:
        raise ValueError("a defect")

    with pytest.raises(ValueError, match="a defect"):
        await keep_going("looking at logs", task)


def test_what_is_no_shortage_is_not_taken_for_one() -> None:
    mixed = ExceptionGroup("", [OSError(errno.EMFILE, ""), ValueError()])
    assert not is_shortage(mixed)
    assert not is_shortage(OSError(errno.EACCES, "Permission denied"))
    assert not is_shortage(RuntimeError("something else"))


def test_without_a_descriptor_systemd_is_told_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setattr("socket.socket", fail)

    notify(WATCHDOG=1)


@pytest.mark.parametrize("error", SHORTAGES)
async def test_passes_go_on_when_the_host_had_nothing_left_for_a_look(
    error: Exception,
    tmp_path: Path,
    autojump_clock: MockClock,
) -> None:
    host = SmallHost(tmp_path)
    failures = [error] * 3

    def fail_at_first() -> MiB | None:
        if failures:
            raise failures.pop()
        return MiB(1024)

    host.fleet.memory = fail_at_first
    async with trio.open_nursery() as nursery:
        journal = VfJournal.load(host.places.state / "vfs.json", BOOT)
        keeper = VfKeeper(host.places.sysfs, journal, lambda *_: None, lambda: None, nursery)
        reconciler = Reconciler(host.fleet, Dirty(), Metrics("0"), nursery, 30.0, keeper)
        nursery.start_soon(reconciler.run)
        await reconciler.files_read.wait()
        nursery.cancel_scope.cancel()
