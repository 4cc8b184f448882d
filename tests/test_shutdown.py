"""Whether the host goes down, as service managers tell it."""

import itertools
from pathlib import Path

import pytest
import trio

from arcsup import shutdown
from arcsup.shutdown import ask_for_time, host_goes_down


def put_systemctl(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "systemctl").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "systemctl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("echo stopping; exit 1", True),
        ("echo degraded; exit 1", False),
        ("echo running", False),
        ("exit 1", False),
    ],
)
async def test_only_a_manager_that_stops_says_that_the_host_goes_down(
    script: str, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_systemctl(tmp_path, script, monkeypatch)

    assert await host_goes_down(system=True) is expected


async def test_a_users_own_manager_is_asked_about_the_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_systemctl(tmp_path, '[ "$1" = --user ] && echo stopping', monkeypatch)

    assert await host_goes_down(system=False)
    assert not await host_goes_down(system=True)


async def test_without_systemd_the_host_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    assert not await host_goes_down(system=True)


async def test_a_manager_that_does_not_answer_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_systemctl(tmp_path, "exec sleep 600", monkeypatch)
    monkeypatch.setattr(shutdown, "PATIENCE", 0.05)

    assert not await host_goes_down(system=True)


async def test_systemd_is_asked_again_before_its_patience_ends(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[float, int]] = []
    monkeypatch.setattr(
        shutdown, "notify", lambda **fields: asked.append((trio.current_time(), *fields.values()))
    )
    with trio.move_on_after(65):
        await ask_for_time()

    times = [time for time, _ in asked]
    assert len(times) > 5
    later = itertools.pairwise(times)
    assert all(1_000_000 * (after - before) < asked[0][1] for before, after in later)
