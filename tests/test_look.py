"""The daemon's look at the devices is a thread's, and a silent kernel does not hold anybody up."""

import threading
from pathlib import Path

import pytest

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
