"""The guest agent: asked only after it has shown that it reads."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio

from arcsup.vm.agent import ask_guest_to_power_down

OLDER = b'"}\n[1]\n{"return": 5}\n'

Answer = Callable[[dict[str, Any]], bytes]


async def ask(folder: Path, answer: Answer) -> tuple[bool | None, list[str]]:
    """Ask an agent that answers so; return what came of it (None: no end) and what it heard."""
    heard: list[str] = []
    listener = trio.socket.socket(trio.socket.AF_UNIX)
    await listener.bind(str(folder / "agent.sock"))
    listener.listen(1)

    async def serve() -> None:
        connection, _ = await listener.accept()
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
                result = await ask_guest_to_power_down(folder / "agent.sock")
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
