"""The guest agent: asked only after it has shown that it reads."""

import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trio

from arcsup.vm.agent import (
    LONGEST_ANSWER,
    ask_guest_to_power_down,
    find_agent,
    freeze_file_systems,
    thaw_file_systems,
)

OLDER = b'"}\n[1]\n{"return": 5}\n'

REFUSED = b'{"error": {"class": "CommandNotFound", "desc": "disabled"}}\n'

Answer = Callable[[dict[str, Any]], bytes]


async def ask(
    folder: Path,
    answer: Answer,
    question: Callable[[Path], Awaitable[bool]] = ask_guest_to_power_down,
) -> tuple[bool | None, list[str]]:
    """Ask an agent that answers so; return what came of it (None: no end) and what it heard."""
    heard: list[str] = []
    listener = trio.socket.socket(trio.socket.AF_UNIX)
    await listener.bind(str(folder / "agent.sock"))
    listener.listen(1)

    async def serve() -> None:
        connection, _ = await listener.accept()
        # Whoever has heard enough leaves without reading the rest.
        with suppress(trio.BrokenResourceError):
            async with trio.SocketStream(connection) as stream:
                buffer = b""
                while chunk := await stream.receive_some():
                    *lines, buffer = (buffer + chunk).split(b"\n")
                    for line in lines:
                        command = json.loads(line)
                        heard.append(command["execute"])
                        if said := answer(command):
                            await stream.send_all(said)

    result: bool | None = None
    with listener:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            with trio.move_on_after(0.5):
                result = await question(folder / "agent.sock")
    return result, heard


def sync(command: dict[str, Any]) -> bytes:
    if command["execute"] != "guest-sync":
        return b""
    return json.dumps({"return": command["arguments"]["id"]}).encode() + b"\n"


async def test_an_agent_that_reads_is_asked_to_shut_down(short_dir: Path) -> None:
    assert await ask(short_dir, sync) == (True, ["guest-sync", "guest-shutdown"])


async def test_the_rest_of_an_older_answer_is_passed_over(short_dir: Path) -> None:
    result, _ = await ask(short_dir, lambda it: sync(it) and OLDER + sync(it))

    assert result


async def test_an_agent_that_is_silent_is_not_asked(short_dir: Path) -> None:
    assert await ask(short_dir, lambda _: b"") == (None, ["guest-sync"])


async def test_without_an_agent_nothing_is_asked(short_dir: Path) -> None:
    assert await ask_guest_to_power_down(short_dir / "agent.sock") is False
    assert await find_agent(short_dir / "agent.sock") is False


@pytest.mark.parametrize(
    ("said", "halted"), [(b'{"return": 2}\n', True), (b'{"return": 0}\n', False), (REFUSED, False)]
)
async def test_file_systems_are_halted_when_the_agent_says_so(
    short_dir: Path, said: bytes, halted: bool
) -> None:
    heard = await ask(short_dir, lambda it: sync(it) or said, freeze_file_systems)

    assert heard == (halted, ["guest-sync", "guest-fsfreeze-freeze"])


async def test_file_systems_that_were_not_halted_go_on_too(short_dir: Path) -> None:
    result, _ = await ask(short_dir, lambda it: sync(it) or b'{"return": 0}\n', thaw_file_systems)

    assert result


async def test_an_agent_may_refuse_to_thaw(short_dir: Path) -> None:
    result, _ = await ask(short_dir, lambda it: sync(it) or REFUSED, thaw_file_systems)

    assert result is False


@pytest.mark.parametrize("piece", [b"[" * 4096 + b"\n", b"x" * 4096])
async def test_an_agent_that_never_ends_its_answer_is_given_up(
    short_dir: Path, piece: bytes
) -> None:
    result, _ = await ask(short_dir, lambda _: piece * (LONGEST_ANSWER // 4096 + 1))

    assert result is False
