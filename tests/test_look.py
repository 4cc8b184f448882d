"""The daemon's look at the devices is a thread's, and a silent kernel does not hold anybody up."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from attrs import define, field
from trio.testing import wait_all_tasks_blocked

from arcsup.devices import Inventory
from arcsup.host.writer import comes_true
from arcsup.look import PATIENCE, DeviceLook
from arcsup.model import VmName
from tests.trees import MTTY, Tree

UUID = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001"


async def test_a_look_sees_what_is_there_and_whose_it_is(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    tree.populate_mdev(tree.populate_sample("mtty", MTTY), UUID, "mtty-1")
    look = DeviceLook(tmp_path, lambda: {UUID: VmName("web")})
    (card,) = (await look.observe()).cards
    assert [piece.vm for piece in card.slices] == ["web"]
    tree.populate_sample("mdpy", MTTY)
    assert len((await look.observe()).cards) == 2


async def test_a_kernel_that_does_not_answer_leaves_what_was_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("arcsup.look.PATIENCE", 0.05)
    Tree(tmp_path).populate_sample("mtty", MTTY)
    look = DeviceLook(tmp_path)
    before = await look.observe()
    release, looks = threading.Event(), []

    def hang(*_: object) -> None:
        looks.append(1)
        release.wait(PATIENCE)

    monkeypatch.setattr("arcsup.look.observe_inventory", hang)
    try:
        for _ in range(3):
            seen = await look.observe()
            assert seen.cards == before.cards
            assert "no answer" in seen.faults[0]
            assert seen.stale
        assert len(looks) == 1, "one thread waits, whoever asks"
    finally:
        release.set()


@define
class SlowKernel:
    """Tells in ``hostname`` how many looks have begun, and answers only when it is let."""

    begun: int = 0
    let: threading.Event = field(factory=threading.Event)

    def answer(self, *_: object) -> Inventory:
        self.begun += 1
        seen = Inventory(hostname=str(self.begun))
        self.let.wait()
        return seen


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowKernel]:
    kernel = SlowKernel()
    monkeypatch.setattr("arcsup.look.observe_inventory", kernel.answer)
    monkeypatch.setattr("arcsup.look.PATIENCE", 600)
    yield kernel
    kernel.let.set()


async def test_all_who_ask_while_one_looks_share_the_next_look(
    tmp_path: Path, kernel: SlowKernel
) -> None:
    look, seen = DeviceLook(tmp_path), []

    async def ask() -> None:
        seen.append((await look.observe()).hostname)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        assert await comes_true(lambda: kernel.begun == 1, seconds=60)
        for _ in range(100):
            nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        kernel.let.set()

    assert seen == ["1"] + ["2"] * 100, "what changed after a look had begun is in the next one"


async def test_who_goes_away_while_looking_leaves_the_look_to_the_others(
    tmp_path: Path, kernel: SlowKernel
) -> None:
    look = DeviceLook(tmp_path)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(look.observe)
        assert await comes_true(lambda: kernel.begun == 1, seconds=60)
        nursery.cancel_scope.cancel()
    kernel.let.set()

    assert (await look.observe()).hostname == "2"
