"""VM files of clients are read beside the daemon's own work."""

import threading
from pathlib import Path

import pytest
import trio
import trio.lowlevel
from trio.testing import MockClock

from arcsup import text_reader
from arcsup.errors import SpecError, Transient
from arcsup.model import Vm
from arcsup.spec.native import load_vm
from arcsup.text_reader import TextReader

FILE = Path("/vms/one.yaml")


async def test_the_daemon_goes_on_while_a_text_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    gone_on = threading.Event()

    def load(source: str, file: Path, machine_id: str) -> Vm:
        assert gone_on.wait(60), "the loop has stood still"
        return load_vm(source, file, machine_id)

    monkeypatch.setattr(text_reader, "load_vm", load)
    turns, names = 0, list[str]()

    async def read() -> None:
        names.append((await TextReader("machine").load("memory: 64", FILE)).name)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        while not names:
            await trio.lowlevel.checkpoint()
            turns += 1
            if turns == 100:
                gone_on.set()

    assert (names, turns >= 100) == (["one"], True)


async def test_a_faulty_text_is_refused_with_its_faults() -> None:
    with pytest.raises(SpecError, match="memroy: unknown key"):
        await TextReader("machine").load("memroy: 64", FILE)


async def test_who_comes_while_too_many_wait_is_told_to_come_again(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    over = threading.Event()
    monkeypatch.setattr(text_reader, "load_vm", lambda *_: over.wait(60))
    reader = TextReader("machine")

    async def release_later() -> None:
        await trio.sleep(text_reader.TURN + 1)
        over.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(release_later)
        nursery.start_soon(reader.load, "memory: 64", FILE)
        await trio.sleep(0.1)
        with pytest.raises(Transient, match="many other VM files"):
            await reader.load("memory: 64", FILE)
