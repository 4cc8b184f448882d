"""Paths to storage that does not answer are taken as they are written, and keep nobody waiting."""

import os
from collections.abc import Iterator
from pathlib import Path
from threading import Event

import pytest

from arcsup import real_paths
from arcsup.real_paths import RealPaths


@pytest.fixture
def come_back(monkeypatch: pytest.MonkeyPatch) -> Iterator[Event]:
    """Whoever looks at /dead waits for this event."""
    come_back, realpath = Event(), os.path.realpath

    def wait(path: str, *, strict: bool = False) -> str:
        if str(path).startswith("/dead"):
            come_back.wait()
            return "/alive"
        return realpath(path, strict=strict)

    monkeypatch.setattr(os.path, "realpath", wait)
    yield come_back
    come_back.set()


def test_a_path_without_an_answer_is_as_it_is_written_and_costs_the_wait_once(
    come_back: Event, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to("file")
    paths = RealPaths()
    monkeypatch.setattr(real_paths, "PATIENCE", 0.01)
    assert paths.resolve(Path("/dead/x/../disk")) == "/dead/disk"

    monkeypatch.setattr(real_paths, "PATIENCE", 600)
    for _ in range(100):
        assert paths.resolve(Path("/dead/disk")) == "/dead/disk"
    assert paths.resolve(tmp_path / "link") == str(tmp_path / "file")

    come_back.set()
    while paths.resolve(Path("/dead/disk")) == "/dead/disk":
        pass
    assert paths.resolve(Path("/dead/disk")) == "/alive"
