"""The guest agent, where a guest has one. Source: QEMU's qga/qapi-schema.json.

JSON lines like QMP, without greeting or events, on a virtio-serial port that a guest may leave
unread for ever: every call needs a deadline of the caller's.
"""

import json
import random
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress
from pathlib import Path

import trio

LONGEST_ANSWER = 2**16
"""Bytes within which all answers of one conversation come; a guest may say what it likes."""


async def ask_guest_to_power_down(agent_socket: Path) -> bool:
    """Ask the agent to shut the guest down. False when no agent took the command."""
    # It has no answer when it works.
    mode: dict[str, object] = {"mode": "powerdown"}
    return await _ask(agent_socket, "guest-shutdown", mode, answers=False) is not None


async def find_agent(agent_socket: Path) -> bool:
    """Tell whether an agent answers."""
    return await _ask(agent_socket, "guest-ping") is not None


async def freeze_file_systems(agent_socket: Path) -> bool:
    """Have the guest write everything out and halt its file systems; tell whether it did.

    They stay so until ``thaw_file_systems``, whatever becomes of us; a Windows guest thaws them
    itself after 10 s.
    """
    frozen = (await _ask(agent_socket, "guest-fsfreeze-freeze") or {}).get("return")
    return isinstance(frozen, int) and frozen > 0


async def thaw_file_systems(agent_socket: Path) -> bool:
    """Let the guest's file systems go on; tell whether an agent says that they do."""
    return "return" in (await _ask(agent_socket, "guest-fsfreeze-thaw") or {})


async def _ask(
    agent_socket: Path,
    command: str,
    arguments: Mapping[str, object] | None = None,
    *,
    answers: bool = True,
) -> dict[str, object] | None:
    """Return the answer to a command ({} when it ``answers`` none), None where nobody took it.

    A sync is asked for first: it shows that somebody reads, and that what comes back is not the
    rest of an answer that an earlier client did not wait for.
    """
    number = random.getrandbits(32)
    with suppress(OSError, trio.BrokenResourceError):
        async with (
            await trio.open_unix_socket(agent_socket) as stream,
            aclosing(_read(stream)) as heard,
        ):
            await _send(stream, {"execute": "guest-sync", "arguments": {"id": number}})
            async for answer in heard:
                if answer.get("return") == number:
                    break
            else:
                return None
            await _send(stream, {"execute": command, "arguments": arguments or {}})
            if not answers:
                return {}
            async for answer in heard:
                if "return" in answer or "error" in answer:
                    return answer
    # Nobody listens, or QEMU ended while we asked.
    return None


async def _send(stream: trio.SocketStream, command: dict[str, object]) -> None:
    await stream.send_all(json.dumps(command).encode() + b"\n")


async def _read(stream: trio.SocketStream) -> AsyncGenerator[dict[str, object], None]:
    """Yield the answers that are JSON objects, as far as a guest may go on."""
    buffer, heard = b"", 0
    while heard < LONGEST_ANSWER and (chunk := await stream.receive_some(4096)):
        heard += len(chunk)
        *lines, buffer = (buffer + chunk).split(b"\n")
        for line in lines:
            try:
                answer = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(answer, dict):
                yield answer
