"""The guest agent, where a guest has one. Source: QEMU's qga/qapi-schema.json.

JSON lines like QMP, without greeting or events, on a virtio-serial port that a guest may leave
unread for ever: every call needs a deadline of the caller's.
"""

import json
import random
from pathlib import Path

import trio


async def ask_guest_to_power_down(agent_socket: Path) -> bool:
    """Ask the agent to shut the guest down. False when no agent took the command.

    ``guest-shutdown`` has no answer when it works, so a sync is asked for first: it shows that
    somebody reads, and that what comes back is not an older answer.
    """
    try:
        async with await trio.open_unix_socket(agent_socket) as stream:
            number = random.getrandbits(32)
            await _send(stream, {"execute": "guest-sync", "arguments": {"id": number}})
            if not await _answered(stream, number):
                return False
            await _send(stream, {"execute": "guest-shutdown", "arguments": {"mode": "powerdown"}})
    except (OSError, trio.BrokenResourceError):
        # Nobody listens, or QEMU ended while we asked: the button was enough.
        return False
    return True


async def _send(stream: trio.SocketStream, command: dict[str, object]) -> None:
    await stream.send_all(json.dumps(command).encode() + b"\n")


async def _answered(stream: trio.SocketStream, number: int) -> bool:
    buffer = b""
    while chunk := await stream.receive_some(4096):
        *lines, buffer = (buffer + chunk).split(b"\n")
        for line in lines:
            try:
                if json.loads(line).get("return") == number:
                    return True
            except (ValueError, AttributeError):
                continue  # The rest of an answer that an earlier client did not wait for.
    return False
