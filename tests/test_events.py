"""What makes the daemon look: marks, bells, files and the kernel, on the real things."""

import errno
import os
import subprocess
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import pyudev
import trio
from trio.testing import MockClock, wait_all_tasks_blocked
from watchfiles import awatch

from arcsup.errors import is_shortage
from arcsup.events.dirty import Bell, Dirty
from arcsup.events.kernel_log import watch_kernel_log
from arcsup.events.uevents import watch_uevents
from arcsup.events.watch import REOPEN_SECONDS, watch_files
from arcsup.host.kmsg import LogRecord
from tests.shortages import without_descriptors

PATIENCE = 30.0


async def test_marks_made_before_the_reader_comes_are_merged() -> None:
    dirty = Dirty()
    for reason in ("files", "qemu", "files"):
        dirty.mark(reason)

    assert await dirty.wait(at_most=60) == {"files", "qemu"}


async def test_a_mark_wakes_the_reader_and_is_told_once(autojump_clock: MockClock) -> None:
    dirty = Dirty()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_and_mark, dirty, "kernel")
        assert await dirty.wait(at_most=60) == {"kernel"}

    assert await dirty.wait(at_most=5) == frozenset()
    assert trio.current_time() == pytest.approx(5, abs=1e-6)


async def wait_and_mark(dirty: Dirty, reason: str) -> None:
    await wait_all_tasks_blocked()
    dirty.mark(reason)


async def test_a_bell_wakes_all_who_wait_and_nobody_who_comes_later(
    autojump_clock: MockClock,
) -> None:
    bell, woken = Bell(), []

    async def listen() -> None:
        await bell.wait()
        woken.append(1)

    bell.ring()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(listen)
        nursery.start_soon(listen)
        await wait_all_tasks_blocked()
        assert woken == []
        bell.ring()
    assert woken == [1, 1]
    with trio.move_on_after(1) as limit:
        await bell.wait()
    assert limit.cancelled_caught


class Looks:
    """Counts how often somebody was told to look."""

    def __init__(self) -> None:
        self.bell = Bell()
        self.count = 0

    def __call__(self) -> None:
        self.count += 1
        self.bell.ring()

    async def after(self, deed: Callable[[], object]) -> None:
        """Do something and wait until that was seen."""
        before = self.count
        deed()
        with trio.fail_after(PATIENCE):
            while self.count == before:
                await self.bell.wait()


@asynccontextmanager
async def watching(directory: Path) -> AsyncIterator[Looks]:
    """Watch a directory; the watch is known to be open when the block begins, if it can be."""
    looks = Looks()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch_files, directory, looks)
        yield looks
        nursery.cancel_scope.cancel()


async def settle(looks: Looks, directory: Path) -> None:
    """Return once what happens in ``directory`` is seen, with nothing on the way any more."""
    probe = directory / ".probe"
    seen = looks.count
    while True:
        probe.touch()
        probe.unlink()
        with trio.move_on_after(1):
            while looks.count == seen:
                await looks.bell.wait()
        if looks.count > seen:
            break
    while True:  # until it has been quiet for longer than a batch takes
        seen = looks.count
        with trio.move_on_after(0.2):
            await looks.bell.wait()
        if looks.count == seen:
            return


def replace(directory: Path) -> None:
    directory.rename(directory.with_name("old"))
    directory.mkdir()


async def test_every_way_to_change_a_file_makes_the_daemon_look(tmp_path: Path) -> None:
    vms = tmp_path / "vms"
    vms.mkdir()
    file, other = vms / "a.yaml", vms / ".a.tmp"
    async with watching(vms) as looks:
        await settle(looks, vms)
        await looks.after(lambda: file.write_text("memory: 1\n"))
        await settle(looks, vms)
        await looks.after(lambda: file.write_text("memory: 2\n"))
        await settle(looks, vms)
        other.write_text("memory: 3\n")
        await settle(looks, vms)
        await looks.after(lambda: other.rename(file))
        await settle(looks, vms)
        await looks.after(lambda: file.chmod(0o600))
        await settle(looks, vms)
        await looks.after(file.unlink)


async def test_a_replaced_directory_is_watched_like_the_first(tmp_path: Path) -> None:
    vms = tmp_path / "vms"
    vms.mkdir()
    async with watching(vms) as looks:
        await settle(looks, vms)
        await looks.after(lambda: replace(vms))
        await settle(looks, vms)
        await looks.after(lambda: (vms / "a.yaml").write_text("memory: 1\n"))


async def test_a_directory_that_is_made_later_is_seen(tmp_path: Path) -> None:
    async with watching(tmp_path / "vms") as looks:
        await looks.after((tmp_path / "vms").mkdir)
        await settle(looks, tmp_path / "vms")


async def test_a_directory_whose_parent_is_made_later_is_seen(tmp_path: Path) -> None:
    vms = tmp_path / "not" / "yet" / "vms"
    async with watching(vms) as looks:
        await looks.after(lambda: vms.mkdir(parents=True))
        await settle(looks, vms)
    assert REOPEN_SECONDS < PATIENCE


async def test_a_neighbour_of_the_directory_makes_nobody_look(tmp_path: Path) -> None:
    vms = tmp_path / "vms"
    vms.mkdir()
    async with watching(vms) as looks:
        await settle(looks, vms)
        before = looks.count
        (tmp_path / "neighbour").write_text("x")
        (tmp_path / "vms.bak").mkdir()
        # What comes later is told later: when this is seen, the neighbours were passed over.
        await looks.after(lambda: (vms / "a.yaml").write_text("memory: 1\n"))
        assert looks.count == before + 1


async def test_a_name_that_is_not_utf8_does_not_end_the_watch(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    vms = tmp_path / "vms"
    vms.mkdir()
    async with watching(vms) as looks:
        await settle(looks, vms)
        await looks.after(lambda: open(os.fsencode(vms) + b"/\xff.yaml", "w").close())
        await settle(looks, vms)
    assert "looking again" in caplog.text


async def test_a_cancelled_watch_does_not_wait_for_its_threads_time_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = partial(awatch, rust_timeout=round(2 * PATIENCE * 1000))
    monkeypatch.setattr("arcsup.events.watch.awatch", long)
    vms = tmp_path / "vms"
    vms.mkdir()
    looks = Looks()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch_files, vms, looks)
        await settle(looks, vms)
        began = trio.current_time()
        nursery.cancel_scope.cancel()
    assert trio.current_time() - began < PATIENCE


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make the kernel tell again")
async def test_the_kernels_own_words_make_the_daemon_look() -> None:
    uevent = next(Path("/sys/bus/pci/devices").glob("*/uevent"), None)
    if uevent is None:
        pytest.skip("this machine has no PCI device")
    looks, heard = Looks(), list[Mapping[str, str]]()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch_uevents, looks, heard.append)
        await wait_all_tasks_blocked()
        before = looks.count
        assert before == 1, "everything is looked at once the monitor is open"
        # Source: Documentation/ABI/testing/sysfs-uevent.
        subprocess.run(["sh", "-c", f"echo change > {uevent}"], check=True)
        with trio.fail_after(PATIENCE):
            while looks.count == before:
                await looks.bell.wait()
        nursery.cancel_scope.cancel()
    assert ("change", "pci") in [(it["ACTION"], it["SUBSYSTEM"]) for it in heard]


async def test_a_kernel_log_that_is_none_is_not_followed(tmp_path: Path) -> None:
    heard: list[LogRecord] = []
    (tmp_path / "kmsg").write_text("4,1,1000000,-;one\n")
    with trio.fail_after(PATIENCE):
        await watch_kernel_log(heard.append, tmp_path / "kmsg")
        await watch_kernel_log(heard.append, tmp_path / "none")
    assert [record.text for record in heard] == ["one"]


async def test_what_a_program_has_written_to_the_kernel_log_is_not_taken_for_the_kernels(
    tmp_path: Path,
) -> None:
    heard: list[LogRecord] = []
    (tmp_path / "kmsg").write_text("12,1,1000000,-;NVRM: Xid (PCI:0000:2b:00): 79\n")
    with trio.fail_after(PATIENCE):
        await watch_kernel_log(heard.append, tmp_path / "kmsg")
    assert heard == []


async def test_a_line_of_the_kernel_log_that_could_not_be_looked_into_is_heard_later_and_once(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    heard, failures = list[str](), [OSError(errno.EMFILE, "Too many open files")] * 3

    def hear(record: LogRecord) -> None:
        if failures:
            raise failures.pop()
        heard.append(record.text)

    (tmp_path / "kmsg").write_text("4,1,1000000,-;one\n")
    await watch_kernel_log(hear, tmp_path / "kmsg")

    assert heard == ["one"]


async def test_a_kernel_log_for_which_there_is_no_descriptor_is_asked_for_again(
    tmp_path: Path,
) -> None:
    (tmp_path / "kmsg").write_text("4,1,1000000,-;one\n")
    with without_descriptors(), pytest.raises(OSError, match="Too many open files") as refused:
        await watch_kernel_log(lambda _: None, tmp_path / "kmsg")
    assert is_shortage(refused.value)


async def test_device_events_are_listened_to_as_soon_as_that_is_possible(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    # pyudev knows no number where libudev has set none.
    failures = [OSError("Could not create udev monitor"), OSError(errno.EMFILE, "Too many")]
    open_really = pyudev.Monitor.from_netlink

    def open_at_last(context: pyudev.Context, source: str) -> pyudev.Monitor:
        if failures:
            raise failures.pop()
        return open_really(context, source)

    monkeypatch.setattr(pyudev.Monitor, "from_netlink", open_at_last)
    looks = Looks()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch_uevents, looks, lambda _: None)
        with trio.fail_after(PATIENCE):
            await looks.bell.wait()
        nursery.cancel_scope.cancel()
    assert not failures
