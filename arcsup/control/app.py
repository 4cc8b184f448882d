"""The routes of the control socket: each asks the supervisor and shows its answer as JSON."""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import trio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from arcsup import __version__
from arcsup.control.clone_route import make_clone_handler
from arcsup.control.gpu_routes import GpuControl
from arcsup.control.metrics import CONTENT_TYPE
from arcsup.control.modes import take_answers, take_mode
from arcsup.control.openapi import Operation, describe_api
from arcsup.control.requests import (
    BodyRoom,
    JsonAnswer,
    answer_errors,
    let_go_of_body,
    make_error,
    read_body,
    take_flag,
    take_number,
    take_object,
    take_seconds,
    take_text,
    while_wanted,
)
from arcsup.control.shapes import (
    CloneJson,
    QmpJson,
    QmpReturnJson,
    ReloadedJson,
    ReportJson,
    StartJson,
    StatusJson,
    StepJson,
    SubmitJson,
    VmJson,
    WhyJson,
)
from arcsup.control.stream import EventStream
from arcsup.control.supervisor import Supervisor
from arcsup.control.views import view_status, view_step, view_vm, view_why
from arcsup.errors import NotPermitted, UsageError
from arcsup.model import State

WAIT_DEFAULT = 60.0
"""Seconds that ``wait`` waits when the request does not say."""

_WAIT_QUERY = {"wait": "seconds to wait until it is done; without it the answer comes at once"}
_EVENTS_QUERY = {
    "since": "only events after this number (the id of an event); 0, the default, is all",
    "vm": "only events of this VM",
    "follow": "1, the default, goes on with new events; 0 ends after those kept",
}


class Control:
    """The handlers. ``closing`` is set when the daemon ends: whoever waits is told then."""

    def __init__(self, supervisor: Supervisor, closing: trio.Event) -> None:
        self._supervisor = supervisor
        self._closing = closing

    async def list_vms(self, _request: Request) -> Response:
        """Answer all VMs."""
        return JsonAnswer([view_vm(status) for status in self._supervisor.statuses()])

    async def submit(self, request: Request) -> Response:
        """Run the VM of a file; ``?wait=`` waits until it does."""
        seconds = take_seconds(request, "wait")
        name = await self._take_in(request)
        return await self._answer_command(request, name, "start", seconds, created=True)

    async def _take_in(self, request: Request) -> str:
        """Have the VM of the request's file run; nothing of its text is kept here after that."""
        body = await read_body(request)
        file = Path(take_text(body, "file"))
        if not file.is_absolute():
            raise UsageError(f"'file' must be an absolute path, got {str(file)!r}")
        if not str(file).isprintable():
            raise UsageError(f"{str(file)!r} holds what cannot be shown", "rename the file")
        source, mode, answers = take_text(body, "source"), take_mode(body), take_answers(body)
        try:
            return await self._supervisor.submit(file, source, mode, answers)
        finally:
            let_go_of_body(request)

    async def start(self, request: Request) -> Response:
        """Want a VM to run; ``?wait=`` waits until it does."""
        name, seconds = _name(request), take_seconds(request, "wait")
        await self._supervisor.start(name, take_mode(await read_body(request)))
        return await self._answer_command(request, name, "start", seconds)

    async def show_status(self, request: Request) -> Response:
        """Answer one VM."""
        return JsonAnswer(view_status(self._supervisor.status(_name(request))))

    async def show_why(self, request: Request) -> Response:
        """Answer the chain to the cause."""
        return JsonAnswer(view_why(self._supervisor.why(_name(request))))

    async def show_definition(self, request: Request) -> Response:
        """Answer the VM as its file asks for it."""
        return JsonAnswer(self._supervisor.definition(_name(request)))

    async def wait(self, request: Request) -> Response:
        """Answer once the VM is in the state that ``for`` names."""
        name, state = _name(request), _take_state(request)
        seconds = take_seconds(request, "timeout")
        timeout = WAIT_DEFAULT if seconds is None else seconds
        status = await while_wanted(
            request, self._closing, lambda: self._supervisor.wait_for(name, state, timeout)
        )
        return JsonAnswer(view_status(status))

    def command(
        self, verb: str, act: Callable[[str], Awaitable[None]], *, settles: bool
    ) -> Callable[[Request], Awaitable[Response]]:
        """Return the handler of one verb; ``settles`` lets ``?wait=`` wait for its effect."""

        async def handle(request: Request) -> Response:
            name = _name(request)
            seconds = take_seconds(request, "wait") if settles else None
            await act(name)
            return await self._answer_command(request, name, verb, seconds)

        return handle

    async def _answer_command(
        self,
        request: Request,
        name: str,
        verb: str,
        seconds: float | None,
        *,
        created: bool = False,
    ) -> Response:
        """Answer a VM after ``verb``: at once, or when it has had its effect."""
        if seconds is None:
            status = self._supervisor.status(name)
            return JsonAnswer(view_status(status), status_code=201 if created else 202)
        status = await while_wanted(
            request, self._closing, lambda: self._supervisor.settle(name, verb, seconds)
        )
        return JsonAnswer(view_status(status), status_code=201 if created else 200)

    async def stop(self, request: Request) -> Response:
        """Stop a VM; ``save`` keeps what it wrote to its ephemeral disks."""
        stop = partial(self._supervisor.stop, save=take_flag(request, "save"))
        return await self.command("stop", stop, settles=True)(request)

    async def run_qmp(self, request: Request) -> Response:
        """Run one QMP command on the daemon's monitor."""
        body = await read_body(request)
        command, arguments = take_text(body, "execute"), take_object(body, "arguments")
        value = await self._supervisor.qmp(_name(request), command, arguments)
        return JsonAnswer({"return": value})

    async def take_screenshot(self, request: Request) -> Response:
        """Answer the guest's first display."""
        png = await self._supervisor.screenshot(_name(request))
        return Response(png, media_type="image/png")

    async def list_steps(self, _request: Request) -> Response:
        """Answer what the next pass would do."""
        return JsonAnswer([view_step(step) for step in self._supervisor.steps()])

    async def stream_events(self, request: Request) -> Response:
        """Answer events, as they happen."""
        since = take_number(request, "since")
        if request.query_params.get("since") is None:
            # A browser's EventSource asks so for what it missed.
            last_id = request.headers.get("last-event-id", "")
            since = int(last_id) if last_id.isascii() and last_id.isdigit() else 0
        vm = request.query_params.get("vm")
        if vm is not None and not self._supervisor.events(0, vm):
            # What is kept of a VM that is gone can still be asked for.
            self._supervisor.status(vm)
        follow = request.query_params.get("follow", "1")
        if follow not in {"0", "1"}:
            raise UsageError(f"follow must be 0 or 1, got {follow[:40]!r}")
        return EventStream(
            self._supervisor, self._closing, since=since, vm=vm, follow=follow == "1"
        )

    async def reload(self, _request: Request) -> Response:
        """Read the configuration and every VM file again."""
        later = await self._supervisor.reload()
        return JsonAnswer(ReloadedJson(done=True, later=list(later)))

    async def show_report(self, _request: Request) -> Response:
        """Answer the daemon's own state."""
        return JsonAnswer(self._supervisor.report())

    async def show_metrics(self, _request: Request) -> Response:
        """Answer the metrics."""
        return Response(self._supervisor.metrics(), headers={"content-type": CONTENT_TYPE})

    async def show_openapi(self, _request: Request) -> Response:
        """Answer the description of this API."""
        return JsonAnswer(describe_api(self.operations(), __version__))

    def operations(self) -> Sequence[Operation]:
        """Return every route: the one list that is both served and described."""
        vm = "/v1/vms/{name}"
        return [
            Operation("GET", "/v1/vms", "All VMs", self.list_vms, list[VmJson]),
            Operation(
                "POST",
                "/v1/vms",
                "Run the VM of a file",
                self.submit,
                StatusJson,
                SubmitJson,
                query=_WAIT_QUERY,
            ),
            Operation("GET", vm, "One VM", self.show_status, StatusJson),
            Operation("GET", f"{vm}/why", "Why it is not as desired", self.show_why, WhyJson),
            Operation(
                "GET",
                f"{vm}/definition",
                "Its file",
                self.show_definition,
                dict[str, Any],
            ),
            Operation(
                "GET",
                f"{vm}/wait",
                "Wait for a state",
                self.wait,
                StatusJson,
                query={"for": "a state, or gone", "timeout": "seconds; 60 without it"},
            ),
            Operation(
                "POST",
                f"{vm}/start",
                "Want it to run",
                self.start,
                StatusJson,
                StartJson,
                query=_WAIT_QUERY,
            ),
            *self._command_operations(),
            Operation("POST", f"{vm}/qmp", "QMP command", self.run_qmp, QmpReturnJson, QmpJson),
            Operation(
                "POST", f"{vm}/screenshot", "The first display", self.take_screenshot, "image/png"
            ),
            Operation(
                "POST",
                f"{vm}/clone",
                "Copy a disk of it while it runs; server-sent events tell how far it is",
                make_clone_handler(self._supervisor, self._closing),
                "text/event-stream",
                CloneJson,
            ),
            *GpuControl(self._supervisor.gpus).operations(),
            Operation("GET", "/v1/plan", "What is to be done", self.list_steps, list[StepJson]),
            Operation(
                "GET",
                "/v1/events",
                "Server-sent events",
                self.stream_events,
                "text/event-stream",
                query=_EVENTS_QUERY,
            ),
            Operation("POST", "/v1/reload", "Read all files again", self.reload, ReloadedJson),
            Operation("GET", "/v1/daemon", "The daemon", self.show_report, ReportJson),
            Operation("GET", "/metrics", "Prometheus metrics", self.show_metrics, "text/plain"),
            Operation("GET", "/v1/openapi.json", "This", self.show_openapi, dict[str, Any]),
        ]

    def _command_operations(self) -> list[Operation]:
        supervisor = self._supervisor
        settling = {
            "kill": (supervisor.kill, "Pull the plug; stays stopped"),
            "adopt": (supervisor.adopt, "Go on with a QEMU of it that no record tells of"),
            "restart": (supervisor.restart, "Stop, then start with the file as it is now"),
        }
        immediate = {
            "reset": (supervisor.reset, "Press the reset button"),
            "pause": (supervisor.pause, "Halt the virtual CPUs"),
            "resume": (supervisor.resume, "Let paused virtual CPUs go on"),
            "clear": (supervisor.clear, "Leave failed with a fresh restart budget"),
        }
        return [
            Operation(
                "POST",
                "/v1/vms/{name}/stop",
                "Ask the guest to power down, then insist; stays stopped",
                self.stop,
                StatusJson,
                query=_WAIT_QUERY | {"save": "1: keep what was written to ephemeral disks"},
            ),
        ] + [
            Operation(
                "POST",
                f"/v1/vms/{{name}}/{verb}",
                summary,
                self.command(verb, act, settles=verb in settling),
                StatusJson,
                query=_WAIT_QUERY if verb in settling else {},
            )
            for verb, (act, summary) in (settling | immediate).items()
        ]


def make_app(supervisor: Supervisor, closing: trio.Event, *, read_only: bool = False) -> Starlette:
    """Return the ASGI application. ``closing`` set ends streams and waits.

    ``read_only`` refuses everything but GET, which changes nothing.
    """
    operations = Control(supervisor, closing).operations()
    routes = [
        Route(
            operation.path,
            answer_errors(
                _refuse if read_only and operation.method != "GET" else operation.handler
            ),
            methods=[operation.method],
        )
        for operation in operations
    ]
    app = Starlette(routes=routes, exception_handlers={HTTPException: _answer_http_exception})
    app.state.body_room = BodyRoom()
    return app


async def _refuse(_request: Request) -> Response:
    raise NotPermitted(
        "this socket is for reading only", "run as root, or join the control socket's group"
    )


async def _answer_http_exception(request: Request, error: Exception) -> Response:
    """Word what Starlette itself refuses: an unknown path, or a method that a path has not."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    what = f"{request.method} {request.url.path}"
    if status == 405:
        return make_error("usage", f"{what}: not with this method", status=405)
    return make_error(
        "not-found", f"{what}: there is no such path", "GET /v1/openapi.json lists them", status
    )


def _name(request: Request) -> str:
    return str(request.path_params["name"])


def _take_state(request: Request) -> State | None:
    """Return the state in ``for``, None for ``gone``. Raises UsageError."""
    word = request.query_params.get("for", State.RUNNING.value)
    if word == "gone":
        return None
    if word not in set(State):
        known = ", ".join(State)
        raise UsageError(f"no such state: {word[:40]!r}", f"one of {known}, gone")
    return State(word)
