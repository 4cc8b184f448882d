"""The QEMU Machine Protocol over a trio stream.

Grammar, models and the exception tree come from the ``qemu.qmp`` package; its client is asyncio
only, so the bytes are moved here. Source: QEMU's docs/interop/qmp-spec.rst.

QEMU serves one client of a monitor at a time, answers in order, and interleaves events. Nothing
here has a deadline of its own: callers put ``trio.fail_after`` around what may never answer.

A guest may have broken out of its QEMU, so what is said here is believed no further than it has to
be: what is kept of it is bounded, and reading it takes a share of a CPU and not all of it.
"""

import errno
import json
import os
import struct
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from socket import SCM_RIGHTS, SO_PEERCRED, SOL_SOCKET
from typing import Any
from uuid import UUID

import trio
from attrs import frozen
from qemu.qmp import ConnectError, ExecInterruptedError, QMPError
from qemu.qmp.message import DeserializationError, Message, UnexpectedTypeError
from qemu.qmp.models import ErrorResponse, Greeting
from qemu.qmp.qmp_client import ExecuteError

from arcsup.alongside import alongside
from arcsup.pace import Pace

MAX_LINE = 4 * 2**20
"""Longest message accepted, in bytes; the longest real one (query-qmp-schema) has about 300 kB. As
Python's values it takes up to twenty times as much for a moment."""

EVENT_BUFFER = 1000
EVENT_BYTES = 2**18
"""Events, and bytes of them, kept for a slow reader. Past either they are dropped, and past the
bytes a single one comes without its data; ``Qmp.lost_events`` is set then, and the reader asks for
the state instead, as it does after any gap."""

LONGEST_WORD = 64
"""Characters of an event's name."""

LONGEST_SENTENCE = 500
"""Characters that are kept of why QEMU refuses a command: it goes into events and logs."""

LARGEST_NUMBER = 2**64
"""One past what QAPI's integers hold; ours have no end, and no float has room for those."""

CHUNK = 2**14
"""Bytes that are read at a time: what other tasks wait for while they are taken apart."""

SHARE = 0.2
"""Part of a CPU that reading one monitor may take on average. A healthy QEMU's takes none to speak
of, and at this share some ten thousand events a second still go through (measured)."""


@frozen
class QmpEvent:
    """An event as QEMU sent it; ``data`` is empty where the event has none."""

    name: str
    data: Mapping[str, Any]


class NonsenseError(QMPError):
    """An answer that no QEMU gives to the command."""


class Qmp:
    """One negotiated QMP session. Made by ``open_qmp``, which also ends it."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._lock = trio.Lock()
        self._replies: dict[int, trio.MemorySendChannel[Message]] = {}
        self._last_id = 0
        self._ended = False
        self._event_sender, self.events = trio.open_memory_channel[QmpEvent](EVENT_BUFFER)
        self._event_bytes = 0
        self.lost_events = False
        self.broken = ""
        """Why what QEMU said ended the session; "" while it goes on, and after an ordinary end."""

    async def execute(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        """Run ``command`` and return its ``return`` value.

        Raises ExecuteError when QEMU refuses, ExecInterruptedError when the session ends first.
        """
        return await self._execute(command, arguments)

    async def add_descriptor(self, descriptor: int, opaque: str) -> str:
        """Give QEMU a descriptor; return the file name that it knows it by. Errors as above."""
        added = await self._execute("add-fd", {"opaque": opaque}, descriptor)
        return f"/dev/fdset/{take_number(added, 'fdset-id')}"

    async def _execute(
        self, command: str, arguments: Mapping[str, Any] | None, descriptor: int | None = None
    ) -> Any:
        if self._ended:
            raise ExecInterruptedError(f"{command}: the QMP session has ended")
        self._last_id += 1
        number = self._last_id
        message = Message({"execute": command, "id": number})
        if arguments:
            message["arguments"] = dict(arguments)
        sender, receiver = trio.open_memory_channel[Message](1)
        self._replies[number] = sender
        try:
            await self._send(bytes(message) + b"\n", descriptor)
            reply = await receiver.receive()
        except (trio.EndOfChannel, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise ExecInterruptedError(f"{command}: QEMU ended the session") from error
        finally:
            self._replies.pop(number, None)
        if "error" in reply:
            raise _as_error(message, reply)
        return reply.get("return")

    async def _send(self, line: bytes, descriptor: int | None) -> None:
        async with self._lock:
            try:
                if descriptor is not None and isinstance(self._stream, trio.SocketStream):
                    line = line[await _send_along(self._stream, line, descriptor) :]
                await self._stream.send_all(line)
            except trio.Cancelled:
                # Nobody knows how much of the line is out: what came after it would be garbage.
                await trio.aclose_forcefully(self._stream)
                raise

    async def _read(self, lines: AsyncIterator[bytes]) -> None:
        """Hand out replies and events until the stream ends, however it ends."""
        try:
            async for line in lines:
                self._dispatch(_parse(line), len(line))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # A reset connection ends the session as EOF does.
        except QMPError as error:
            self.broken = str(error).partition("\n")[0]
        finally:
            self._ended = True
            self._event_sender.close()
            for reply in self._replies.values():
                reply.close()

    def _dispatch(self, message: Message, size: int) -> None:
        if "event" in message:
            self._keep_event(str(message["event"])[:LONGEST_WORD], message.get("data"), size)
            return
        number = message.get("id")
        waiting = self._replies.get(number) if isinstance(number, int) else None
        if waiting is not None:
            with suppress(trio.WouldBlock):  # It has its answer; this is one too many.
                waiting.send_nowait(message)

    def _keep_event(self, name: str, data: object, size: int) -> None:
        if not self.events.statistics().current_buffer_used:
            self._event_bytes = 0
        if size > EVENT_BYTES:
            data, size, self.lost_events = {}, 0, True
        if self._event_bytes + size > EVENT_BYTES:
            self.lost_events = True
            return
        try:
            self._event_sender.send_nowait(QmpEvent(name, data if isinstance(data, dict) else {}))
            self._event_bytes += size
        except trio.WouldBlock:
            self.lost_events = True


async def _send_along(stream: trio.SocketStream, line: bytes, descriptor: int) -> int:
    """Send (the beginning of) a line with a descriptor; return how many bytes of it went out."""
    rights = (SOL_SOCKET, SCM_RIGHTS, struct.pack("i", descriptor))
    return await stream.socket.sendmsg([line], [rights])


def _parse(line: bytes) -> Message:
    """Return a message. Raises DeserializationError, or UnexpectedTypeError for no object."""
    try:
        return Message(line)
    except (ValueError, RecursionError) as error:
        # No text, a number of thousands of digits, or nested deeper than anybody means it.
        raise DeserializationError(f"it makes no sense: {error}", line[:80]) from error
    # These show all of what they are about: megabytes, in a log.
    except DeserializationError as error:
        raise DeserializationError("it is no JSON", line[:80]) from error
    except UnexpectedTypeError as error:
        raise UnexpectedTypeError("it is no object", type(error.value).__name__) from error


def _as_error(command: Message, reply: Message) -> QMPError:
    try:
        refusal = ErrorResponse(reply)
    except (KeyError, TypeError):
        return ExecInterruptedError(f"{command['execute']}: the refusal makes no sense")
    refusal.error.desc = refusal.error.desc[:LONGEST_SENTENCE]
    return ExecuteError(refusal, command, reply)


async def query_status(qmp: Qmp) -> str:
    """Return QEMU's run state (QAPI type RunState). Raises QMPError."""
    return take_word(await qmp.execute("query-status"), "status")


async def query_uuid(qmp: Qmp) -> UUID:
    """Return the VM's uuid (QAPI command query-uuid). Raises QMPError."""
    word = take_word(await qmp.execute("query-uuid"), "UUID")
    try:
        return UUID(word)
    except ValueError:
        raise NonsenseError("a uuid is none") from None


async def list_devices(qmp: Qmp) -> frozenset[str]:
    """Return the ids of the devices that were given one. Raises QMPError."""
    children = await qmp.execute("qom-list", {"path": "/machine/peripheral"})
    return frozenset(take_word(child, "name") for child in take_list(children))


def take_list(answer: object) -> list[object]:
    """Return an answer that is a list. Raises NonsenseError."""
    if not isinstance(answer, list):
        raise NonsenseError("an answer is no list")
    return answer


def take_word(answer: object, key: str) -> str:
    """Return one text of an answer. Raises NonsenseError."""
    if not isinstance(answer, dict) or not isinstance(answer.get(key), str):
        raise NonsenseError(f"an answer has no {key!r}")
    return str(answer[key])


def take_number(answer: object, key: str) -> int:
    """Return one number of an answer, none below 0. Raises NonsenseError."""
    number = answer.get(key) if isinstance(answer, dict) else None
    if not isinstance(number, int) or not 0 <= number < LARGEST_NUMBER:
        raise NonsenseError(f"an answer has no {key!r}")
    return number


@asynccontextmanager
async def open_qmp(stream: trio.abc.Stream) -> AsyncIterator[Qmp]:
    """Greet, negotiate, and yield a session that ends with the block.

    Raises ConnectError when the other side closes first or does not speak QMP.
    """
    qmp = Qmp(stream)
    async with stream, aclosing(_lines(stream)) as lines:
        try:
            Greeting(_parse(await anext(lines)))
        except (StopAsyncIteration, trio.BrokenResourceError, OSError) as error:
            raise ConnectError("QEMU closed the monitor before its greeting", error) from error
        except (KeyError, TypeError, DeserializationError, UnexpectedTypeError) as error:
            raise ConnectError("the other side of the socket does not speak QMP", error) from error
        async with alongside(qmp._read, lines):
            try:
                await qmp.execute("qmp_capabilities")
            except QMPError as error:
                raise ConnectError("QMP was not negotiated", error) from error
            yield qmp


async def connect_qmp_socket(path: Path) -> tuple[trio.SocketStream, int]:
    """Connect to a monitor; return the stream and the pid of the process that listens.

    QEMU listens anew on a descriptor it was given, so the pid is QEMU's even when the daemon
    made the socket (measured on 7.2; unix(7) SO_PEERCRED: the pid of the last listen()).
    Raises OSError when nobody listens, or as many already wait to be heard as the listener lets.
    """
    stream = await trio.open_unix_socket(path)
    try:
        # Where the queue is full, connect(2) answers EAGAIN, which trio takes for "under way" and
        # the socket's being writable for its end: such a socket is connected to nobody.
        stream.socket.getpeername()
    except OSError as error:
        await trio.aclose_forcefully(stream)
        words = "others already wait for this monitor"
        raise BlockingIOError(errno.EAGAIN, words, str(path)) from error
    credentials = stream.socket.getsockopt(SOL_SOCKET, SO_PEERCRED, struct.calcsize("3i"))
    pid, _uid, _gid = struct.unpack("3i", credentials)
    return stream, pid


def check_peer(peer: int, pid: int) -> None:
    """A monitor must be served by the very QEMU that is watched. Raises ConnectError.

    Until QEMU has taken over the socket that the daemon made, the daemon is its own peer.
    """
    if peer in (pid, os.getpid()):
        return
    # The kernel says 0 of a process that has no number in our PID namespace (pid_namespaces(7)).
    server = f"process {peer}" if peer else "a process of another PID namespace"
    raise ConnectError("the wrong server", PermissionError(f"{server} serves it, not QEMU {pid}"))


async def _lines(stream: trio.abc.Stream) -> AsyncGenerator[bytes, None]:
    buffer = bytearray()
    searched = 0
    pace = Pace(SHARE)
    while True:
        end = buffer.find(b"\n", searched)
        while end >= 0:
            line = bytes(buffer[: end + 1])
            del buffer[: end + 1]
            searched = 0
            if line.strip():
                yield line
            end = buffer.find(b"\n")
        searched = len(buffer)
        if searched > MAX_LINE:
            raise ConnectError("a QMP message is too long", ValueError(f"over {MAX_LINE} bytes"))
        await pace.rest()
        chunk = await stream.receive_some(CHUNK)
        pace.begin()
        if not chunk:
            return
        buffer += chunk


def parse_arguments(text: str) -> dict[str, Any]:
    """Parse the JSON object that a person gave as arguments. Raises ValueError."""
    value = json.loads(text)
    if not isinstance(value, dict):
        raise TypeError(f"expected a JSON object, got {type(value).__name__}")
    return value
