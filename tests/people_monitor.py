"""The people's monitor of a QEMU that is well, though the daemon's own monitor is silent."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import trio
from attrs import define, field

GREETING = {"QMP": {"version": {"qemu": {"major": 8, "minor": 2, "micro": 0}}, "capabilities": []}}


@define
class PeoplesMonitor:
    """Serves one client after the other; ``asked`` has every command but the negotiation's."""

    socket: Path
    status: str = "running"
    on: Callable[[str], object] = lambda _command: None
    """Called with each command before it is answered."""
    asked: list[str] = field(factory=list)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Serve for the length of the block; this process is the peer."""
        with trio.socket.socket(trio.socket.AF_UNIX) as listener:
            await listener.bind(str(self.socket))
            listener.listen()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(
                    trio.serve_listeners, self._serve, [trio.SocketListener(listener)]
                )
                yield
                nursery.cancel_scope.cancel()

    async def _serve(self, stream: trio.SocketStream) -> None:
        await self._say(stream, GREETING)
        unread = b""
        while chunk := await stream.receive_some():
            *lines, unread = (unread + chunk).split(b"\n")
            for line in lines:
                await self._answer(stream, json.loads(line))

    async def _answer(self, stream: trio.SocketStream, command: dict[str, object]) -> None:
        name = str(command["execute"])
        if name != "qmp_capabilities":
            self.asked.append(name)
            self.on(name)
        answer = {"status": self.status} if name == "query-status" else {}
        await self._say(stream, {"return": answer, "id": command["id"]})

    async def _say(self, stream: trio.SocketStream, message: object) -> None:
        await stream.send_all(json.dumps(message).encode() + b"\n")
