"""Reading requests and wording errors: the edge between HTTP and the supervisor."""

import json
import logging
import math
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeVar

import trio
from attrs import define, field
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from arcsup.control.shapes import ErrorJson
from arcsup.errors import (
    ArcsupError,
    DaemonUnreachable,
    Transient,
    UsageError,
    describe_os_error,
    is_shortage,
)

logger = logging.getLogger(__name__)

BODY_LIMIT = 1 << 20
"""Bytes of a request's body. A VM file is bounded tighter than that."""

BODY_DEADLINE = 10.0
"""Seconds that a client may take to send its body."""

SMALL_BODY = 1 << 14
"""Bytes of a body for which there is always room. Longer ones are read a few at a time: so clients
by the hundred cannot have the daemon hold hundreds of them."""

LARGE_BODIES = 16
"""Longer bodies that a socket's clients may have the daemon hold at once."""

WAIT_LIMIT = 86400.0
"""Seconds that a request may wait for a VM."""

STATUS_OF_CODE = {
    "usage": 400,
    "forbidden": 403,
    "not-found": 404,
    "refused": 409,
    "failed": 409,
    "transient": 409,
    "terminal": 409,
    "invalid": 422,
    "unexpected": 500,
    "no-daemon": 503,
    "stuck": 504,
    "timed-out": 504,
}
"""HTTP status of each ArcsupError.code; ``unexpected`` is a fault of the daemon itself."""

T = TypeVar("T")
Handler = Callable[[Request], Awaitable[Response]]


class JsonAnswer(JSONResponse):
    """JSON in UTF-8, with ``?`` for what is no character.

    A file's name may be any bytes, and one such name must not cost the answer about all others.
    """

    def render(self, content: Any) -> bytes:
        """Return the body."""
        text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return text.encode(errors="replace")


def make_error(code: str, message: str, hint: str = "", status: int | None = None) -> Response:
    """Return the error body of the contract with the fitting status."""
    body: ErrorJson = {"error": {"code": code, "message": message, "hint": hint}}
    return JsonAnswer(body, status_code=status or STATUS_OF_CODE[code])


def answer_errors(handler: Handler) -> Handler:
    """Return ``handler`` with errors turned into answers; unexpected ones are logged."""

    async def answered(request: Request) -> Response:
        try:
            return await handler(request)
        except ArcsupError as error:
            return make_error(error.code, error.message, error.hint)
        except ClientDisconnect:
            logger.debug("client left before its request was complete")
            return Response(status_code=400)
        except Exception as error:
            if is_shortage(error):
                return _answer_shortage(request, error)
            logger.exception("request failed: %s %s", request.method, request.url.path)
            return make_error(
                "unexpected",
                f"the daemon failed on {request.method} {request.url.path}",
                "this is a fault in arcsup; the daemon's log has the details",
            )
        finally:
            let_go_of_body(request)

    return answered


def _answer_shortage(request: Request, error: Exception) -> Response:
    """Say what the host has run out of: that is nobody's fault here, and passes."""
    first: BaseException = error
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    why = describe_os_error(first) if isinstance(first, OSError) else str(first) or "no memory left"
    logger.warning("%s %s could not be answered: %s", request.method, request.url.path, why)
    return make_error(
        Transient.code,
        f"the host has run out of something: {why}",
        "ask again in a moment; `arcsup doctor` may tell what is short",
        status=503,
    )


@define(eq=False)
class BodyRoom:
    """How many large bodies are held, by which requests."""

    _turns: trio.CapacityLimiter = field(factory=lambda: trio.CapacityLimiter(LARGE_BODIES))

    async def enter(self, request: Request) -> None:
        """Wait for room for the request's body, which it may have already."""
        if not hasattr(request.state, "body_room"):
            await self._turns.acquire_on_behalf_of(request)
            request.state.body_room = self

    def leave(self, request: Request) -> None:
        """Give its room to others."""
        self._turns.release_on_behalf_of(request)


def let_go_of_body(request: Request) -> None:
    """Say that nothing of the request's body is needed any more; may be said twice."""
    room: BodyRoom | None = getattr(request.state, "body_room", None)
    if room is not None:
        room.leave(request)
        request.state.body_room = None


async def read_body(request: Request) -> dict[str, Any]:
    """Return the request's JSON object; an empty body is {}. Raises UsageError, Transient.

    A large one counts among those that are held until ``let_go_of_body``.
    """
    body = bytearray()
    room: BodyRoom = request.app.state.body_room
    waits = False
    with trio.move_on_after(BODY_DEADLINE) as deadline:
        async with aclosing(request.stream()) as chunks:
            async for chunk in chunks:
                body += chunk
                if len(body) > BODY_LIMIT:
                    raise UsageError(f"the body is longer than {BODY_LIMIT} bytes")
                if len(body) > SMALL_BODY:
                    waits = True
                    await room.enter(request)
                    waits = False
    if deadline.cancelled_caught and waits:
        raise Transient("too many large requests are being read", "ask again in a moment")
    if deadline.cancelled_caught:
        raise UsageError(f"the body did not arrive within {BODY_DEADLINE:.0f} s")
    if not body:
        return {}
    try:
        value = json.loads(body)
        # JSON can escape half a character (a lone surrogate), and no text can hold it.
        json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise UsageError("the body is nested too deeply") from None
    except UnicodeEncodeError as error:
        hint = "a file whose name is not UTF-8 must be renamed"
        raise UsageError(f"{_find_string(error)!r} is no Unicode text", hint) from None
    except ValueError as error:
        raise UsageError(f"the body is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise UsageError(f"the body must be a JSON object, not {type(value).__name__}")
    return value


def _find_string(error: UnicodeEncodeError) -> str:
    """Return the JSON string, or a piece of it, that could not be encoded."""
    text = error.object
    begin = max(text.rfind('"', 0, error.start) + 1, error.start - 100)
    return text[begin : min(text.find('"', error.end), error.end + 100)]


def take_text(body: dict[str, Any], key: str) -> str:
    """Return the string at ``key``. Raises UsageError."""
    value = body.get(key)
    if not isinstance(value, str) or not value:
        raise UsageError(f"the body needs {key!r}, a string")
    return value


def take_object(body: dict[str, Any], key: str) -> dict[str, Any]:
    """Return the JSON object at ``key``, {} when there is none. Raises UsageError."""
    value = body.get(key, {})
    if not isinstance(value, dict):
        raise UsageError(f"{key!r} must be a JSON object, not {type(value).__name__}")
    return value


def take_seconds(request: Request, parameter: str) -> float | None:
    """Return a query parameter in seconds (0 to a day), None when absent. Raises UsageError."""
    text = request.query_params.get(parameter)
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds <= WAIT_LIMIT:
        raise UsageError(f"{parameter} must be 0 to {WAIT_LIMIT:.0f} seconds, got {text[:40]!r}")
    return seconds


def take_number(request: Request, parameter: str) -> int:
    """Return a query parameter that counts from 0, 0 when absent. Raises UsageError."""
    text = request.query_params.get(parameter, "0")
    if not (text.isascii() and text.isdigit()) or len(text) > 18:
        raise UsageError(f"{parameter} must be a number from 0, got {text[:40]!r}")
    return int(text)


def take_flag(request: Request, parameter: str) -> bool:
    """Return a query parameter that is 0 or 1, False when absent. Raises UsageError."""
    text = request.query_params.get(parameter, "0")
    if text not in {"0", "1"}:
        raise UsageError(f"{parameter} must be 0 or 1, got {text[:40]!r}")
    return text == "1"


async def while_wanted(
    request: Request, closing: trio.Event, work: Callable[[], Awaitable[T]]
) -> T:
    """Return what ``work`` returns; give up when the client leaves or the daemon ends.

    A waiting request must hold up neither the daemon's end nor a VM that nobody asks for any more.
    """
    results: list[T] = []
    refusals: list[ArcsupError] = []
    left = False

    async def watch_client(scope: trio.CancelScope) -> None:
        nonlocal left
        while (await request.receive())["type"] != "http.disconnect":
            pass
        left = True
        scope.cancel()

    async def watch_closing(scope: trio.CancelScope) -> None:
        await closing.wait()
        scope.cancel()

    async def run(scope: trio.CancelScope) -> None:
        try:
            results.append(await work())
        except ArcsupError as error:
            # Raised out here, it would reach the caller in an ExceptionGroup.
            refusals.append(error)
        scope.cancel()

    async with trio.open_nursery() as nursery:
        for task in (watch_client, watch_closing, run):
            nursery.start_soon(task, nursery.cancel_scope)
    if results:
        return results[0]
    if refusals:
        raise refusals[0]
    if left:
        raise ClientDisconnect
    raise DaemonUnreachable(
        "the daemon is ending; the VM stays as it is", "ask again when the daemon is back"
    )
