"""The routes, over a real socket with hypercorn, by a client that is not ours."""

import errno
import http.client
import json
import logging
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import trio
from attrs import evolve
from starlette.routing import Route

from arcsup.control.app import make_app
from arcsup.control.gpus import view_card
from arcsup.control.requests import BODY_LIMIT
from arcsup.errors import Refused
from arcsup.model import State, Step
from tests.fake_supervisor import (
    PNG,
    FakeSupervisor,
    make_crashed,
    make_devices,
    make_event,
    make_status,
    serve_in_thread,
)


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=10)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(10)
        self.sock.connect(str(self.path))


class Asker:
    """Asks over one connection that is kept alive."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.connection = UnixConnection(path)

    def ask(
        self, method: str, target: str, body: bytes | None = None, last_id: str = ""
    ) -> tuple[int, Any]:
        headers = {"Last-Event-ID": last_id} if last_id else {}
        self.connection.request(method, target, body, headers)
        response = self.connection.getresponse()
        content = response.read()
        kind = response.headers.get("content-type", "")
        return response.status, json.loads(content) if kind == "application/json" else content

    def fail(self, method: str, target: str, body: bytes | None = None) -> tuple[int, str, str]:
        status, answer = self.ask(method, target, body)
        assert list(answer) == ["error"]
        assert list(answer["error"]) == ["code", "message", "hint"]
        return status, answer["error"]["code"], answer["error"]["message"]


@pytest.fixture
def supervisor() -> FakeSupervisor:
    fake = FakeSupervisor()
    fake.add(make_status("web"), make_crashed("db"), make_status("old", State.FAILED))
    fake.planned.append(Step("start", "db", "it crashed"))
    fake.devices = make_devices()
    return fake


@pytest.fixture
def asker(supervisor: FakeSupervisor, tmp_path: Path) -> Iterator[Asker]:
    with serve_in_thread(supervisor, tmp_path):
        asker = Asker(tmp_path / "arcsup.sock")
        yield asker
        asker.connection.close()


def test_vms_are_an_array(asker: Asker) -> None:
    status, vms = asker.ask("GET", "/v1/vms")

    assert status == 200
    assert [vm["name"] for vm in vms] == ["db", "old", "web"]


@pytest.mark.parametrize(
    ("verb", "state"),
    [
        ("start", "running"),
        ("stop", "stopped"),
        ("kill", "stopped"),
        ("restart", "running"),
        ("adopt", "running"),
        ("reset", "running"),
        ("pause", "paused"),
        ("resume", "running"),
    ],
)
def test_a_command_without_wait_is_accepted(
    verb: str, state: str, asker: Asker, supervisor: FakeSupervisor
) -> None:
    status, vm = asker.ask("POST", f"/v1/vms/web/{verb}")

    assert (status, vm["state"]) == (202, state)
    assert supervisor.calls == [(verb, "web")]


@pytest.mark.parametrize("verb", ["start", "stop", "kill", "adopt", "restart"])
def test_a_command_with_wait_answers_when_it_is_done(verb: str, asker: Asker) -> None:
    status, vm = asker.ask("POST", f"/v1/vms/web/{verb}?wait=5")

    assert (status, vm["name"]) == (200, "web")


def test_clear_leaves_failed(asker: Asker) -> None:
    assert asker.ask("POST", "/v1/vms/old/clear")[0] == 202
    assert asker.fail("POST", "/v1/vms/web/clear") == (409, "refused", "web has not failed")


def test_waiting_in_vain_times_out(asker: Asker) -> None:
    target = "/v1/vms/web/wait?for=stopped&timeout=0.05"

    assert asker.fail("GET", target)[:2] == (504, "timed-out")


def test_a_command_that_settles_badly_tells_why(asker: Asker, supervisor: FakeSupervisor) -> None:
    supervisor.failures["start"] = Refused("held by the operator", "arcsup clear old")

    status, answer = asker.ask("POST", "/v1/vms/old/start?wait=1")

    assert status == 409
    assert answer["error"] == {
        "code": "refused",
        "message": "held by the operator",
        "hint": "arcsup clear old",
    }


@pytest.mark.parametrize(
    ("method", "target", "body", "status", "code"),
    [
        ("GET", "/v1/vms/nope", None, 404, "not-found"),
        ("GET", "/v1/vms/%E9", None, 404, "not-found"),
        ("GET", "/v1/vms/%ED%A0%80", None, 404, "not-found"),
        ("GET", "/v1/vms/nope/why", None, 404, "not-found"),
        ("POST", "/v1/vms/nope/start", None, 404, "not-found"),
        ("GET", "/v1/events?vm=nope", None, 404, "not-found"),
        ("GET", "/nope", None, 404, "not-found"),
        ("GET", "/v1/vms/a/b/c/d", None, 404, "not-found"),
        ("DELETE", "/v1/vms/web", None, 405, "usage"),
        ("GET", "/v1/vms/web/start", None, 405, "usage"),
        ("GET", "/v1/vms/web/wait?for=happy", None, 400, "usage"),
        ("GET", "/v1/vms/web/wait?timeout=soon", None, 400, "usage"),
        ("GET", "/v1/vms/web/wait?timeout=nan", None, 400, "usage"),
        ("GET", "/v1/vms/web/wait?timeout=-1", None, 400, "usage"),
        ("GET", "/v1/vms/web/wait?timeout=1e9", None, 400, "usage"),
        ("POST", "/v1/vms/web/stop?wait=inf", None, 400, "usage"),
        ("GET", "/v1/events?since=yesterday", None, 400, "usage"),
        ("GET", "/v1/events?since=-1", None, 400, "usage"),
        ("GET", "/v1/events?follow=yes", None, 400, "usage"),
        ("POST", "/v1/vms/web/qmp", b"", 400, "usage"),
        ("POST", "/v1/vms/web/qmp", b"{", 400, "usage"),
        ("POST", "/v1/vms/web/qmp", b"[]", 400, "usage"),
        ("POST", "/v1/vms/web/qmp", b"\xff", 400, "usage"),
        ("POST", "/v1/vms/web/qmp", b"[" * 100_000, 400, "usage"),
        ("POST", "/v1/vms/web/qmp", b'{"execute": 7}', 400, "usage"),
        ("POST", "/v1/vms/web/qmp", b'{"execute": "x", "arguments": []}', 400, "usage"),
        ("POST", "/v1/vms", b'{"file": "x.yaml", "source": "a: 1"}', 400, "usage"),
        ("POST", "/v1/vms/web/qmp", rb'{"execute": "x", "arguments": {"\ud800": 1}}', 400, "usage"),
        ("POST", "/v1/vms", rb'{"file": "/w\udce9.yaml", "source": "a: 1"}', 400, "usage"),
        ("POST", "/v1/vms", b'{"file": "/w\xed\xb3\xa9.yaml", "source": "a: 1"}', 400, "usage"),
        ("POST", "/v1/vms", rb'{"file": "/w\u001b[2J.yaml", "source": "a: 1"}', 400, "usage"),
        ("POST", "/v1/vms", rb'{"file": "/w\u0000.yaml", "source": "a: 1"}', 400, "usage"),
        ("POST", "/v1/vms", b'{"file": "/x.yaml"}', 400, "usage"),
        ("POST", "/v1/vms", b'{"file": "/x.yaml", "source": "faulty: 1"}', 422, "invalid"),
    ],
)
def test_a_bad_request_is_answered_in_one_line(
    method: str, target: str, body: bytes | None, status: int, code: str, asker: Asker
) -> None:
    got_status, got_code, message = asker.fail(method, target, body)

    assert (got_status, got_code) == (status, code)
    assert message
    assert "\n" not in message


def test_what_is_no_text_is_named_in_a_line(asker: Asker, supervisor: FakeSupervisor) -> None:
    body = {"file": "/tmp/w\udce9n.yaml", "source": "memory: 1GiB"}

    message = asker.fail("POST", "/v1/vms", json.dumps(body).encode())[2]

    assert message == r"'/tmp/w\udce9n.yaml' is no Unicode text"
    assert supervisor.calls == []


def test_a_name_that_is_no_text_costs_no_answer_about_others(
    asker: Asker, supervisor: FakeSupervisor
) -> None:
    supervisor.add(evolve(make_status("odd"), file="/tmp/w\udce9n.yaml"))
    supervisor.failures["pause"] = Refused("/tmp/w\udce9n.yaml is in use")

    status, vms = asker.ask("GET", "/v1/vms")

    assert (status, [vm["name"] for vm in vms]) == (200, ["db", "odd", "old", "web"])
    assert vms[1]["file"] == "/tmp/w?n.yaml"
    assert asker.fail("POST", "/v1/vms/odd/pause")[2] == "/tmp/w?n.yaml is in use"


def test_a_body_without_an_end_is_refused(asker: Asker) -> None:
    status, code, message = asker.fail("POST", "/v1/vms/web/qmp", b"x" * (BODY_LIMIT + 1))

    assert (status, code) == (400, "usage")
    assert "longer than" in message


def test_a_fault_of_the_daemon_is_logged_and_answered_in_one_line(
    asker: Asker, supervisor: FakeSupervisor, caplog: pytest.LogCaptureFixture
) -> None:
    supervisor.failures["reset"] = ZeroDivisionError("inside")

    status, code, message = asker.fail("POST", "/v1/vms/web/reset")

    assert (status, code) == (500, "unexpected")
    assert "inside" not in message
    [record] = [r for r in caplog.records if r.levelno >= logging.ERROR]
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EMFILE, "Too many open files"),
        ExceptionGroup("of a nursery", [OSError(errno.ENOSPC, "No space left on device")]),
        RuntimeError("can't start new thread"),
    ],
)
def test_what_the_host_has_run_out_of_is_no_fault_of_the_daemon(
    asker: Asker, supervisor: FakeSupervisor, error: Exception
) -> None:
    supervisor.failures["reset"] = error

    status, code, message = asker.fail("POST", "/v1/vms/web/reset")

    assert (status, code) == (503, "transient")
    assert message.startswith("the host has run out of something: ")


def test_a_file_is_submitted(asker: Asker, supervisor: FakeSupervisor) -> None:
    body = json.dumps({"file": "/tmp/try.yaml", "source": "memory: 1GiB"}).encode()

    status, answer = asker.ask("POST", "/v1/vms", body)

    assert (status, answer["name"]) == (201, "try")
    assert supervisor.calls == [("submit", "/tmp/try.yaml", "memory: 1GiB")]


@pytest.mark.parametrize(
    ("body", "call"),
    [
        (b"", "start"),
        (b'{"disableGpu": true}', "start disable-gpu"),
        (b'{"safeMode": true, "disableGpu": false}', "start safe-mode"),
        (b'{"preinstall": true, "safeMode": true}', "start preinstall"),
    ],
)
def test_a_start_may_be_in_a_mode(
    body: bytes, call: str, asker: Asker, supervisor: FakeSupervisor
) -> None:
    assert asker.ask("POST", "/v1/vms/web/start", body)[0] == 202
    assert supervisor.calls == [(call, "web")]


@pytest.mark.parametrize(
    ("install", "said"),
    [
        ([], "'install' must be a JSON object"),
        ({}, "'install.media' must be a list"),
        ({"media": [], "sizeMiB": 1}, "'install.media' must be a list"),
        ({"media": ["x.iso"], "sizeMiB": 1}, "must be absolute paths, got 'x.iso'"),
        ({"media": [1], "sizeMiB": 1}, "must be absolute paths, got '1'"),
        ({"media": ["/x\0.iso"], "sizeMiB": 1}, r"must be absolute paths, got '/x\x00.iso'"),
        ({"media": ["/" + "x" * 4096], "sizeMiB": 1}, "must be absolute paths, got '/xxx"),
        ({"media": ["/x.iso"]}, "'install.sizeMiB' must be 1 to"),
        ({"media": ["/x.iso"], "sizeMiB": True}, "'install.sizeMiB' must be 1 to"),
        ({"media": ["/x.iso"], "sizeMiB": 0}, "'install.sizeMiB' must be 1 to"),
    ],
)
def test_an_installation_that_makes_no_sense_is_refused(
    install: object, said: str, asker: Asker, supervisor: FakeSupervisor
) -> None:
    body = {"file": "/tmp/try.yaml", "source": "memory: 1GiB", "install": install}

    status, code, message = asker.fail("POST", "/v1/vms", json.dumps(body).encode())

    assert (status, code) == (400, "usage")
    assert said in message
    assert supervisor.calls == []


@pytest.mark.parametrize(
    "answers",
    [
        {},
        {"label": "cidata", "files": {}},
        {"label": "cidata", "files": {"../x": "text"}},
        {"label": "cidata", "files": {"x": 1}},
        {"label": "", "files": {"x": "text"}},
        {"preseed": 1},
    ],
)
def test_answers_that_are_none_are_refused(
    answers: object, asker: Asker, supervisor: FakeSupervisor
) -> None:
    install = {"media": ["/x.iso"], "sizeMiB": 1, "answers": answers}
    body = {"file": "/tmp/try.yaml", "source": "memory: 1GiB", "install": install}

    status, code, message = asker.fail("POST", "/v1/vms", json.dumps(body).encode())

    assert (status, code) == (400, "usage")
    assert message.startswith("'install.answers")
    assert supervisor.calls == []


def test_a_mode_that_is_none_is_refused(asker: Asker, supervisor: FakeSupervisor) -> None:
    status, code, message = asker.fail("POST", "/v1/vms/web/start", b'{"safeMode": "yes"}')

    assert (status, code) == (400, "usage")
    assert message == "'safeMode' must be true or false, not str"
    assert supervisor.calls == []


def test_the_rest_answers_what_the_supervisor_says(asker: Asker) -> None:
    assert asker.ask("POST", "/v1/vms/web/screenshot") == (200, PNG)
    assert asker.ask("POST", "/v1/reload") == (200, {"done": True, "later": []})
    assert asker.ask("GET", "/v1/plan")[1] == [
        {"verb": "start", "object": "db", "because": "it crashed"}
    ]
    assert asker.ask("GET", "/v1/daemon")[1]["version"] == "0.1.0"
    assert asker.ask("GET", "/v1/vms/web/definition")[1]["memory"] == "2GiB"
    assert asker.ask("GET", "/v1/vms/web/why")[1]["asDesired"] is True
    assert b'arcsup_vms{state="failed"} 1.0' in asker.ask("GET", "/metrics")[1]


def test_gpus_and_the_inventory_are_the_supervisors(
    asker: Asker, supervisor: FakeSupervisor
) -> None:
    (card,) = supervisor.devices.cards

    assert asker.ask("GET", "/v1/gpus") == (200, [view_card(card)])
    status, inventory = asker.ask("GET", "/v1/inventory")

    assert status == 200
    assert (inventory["version"], inventory["host"], inventory["iommu"]) == (1, "far", True)
    assert inventory["gpus"] == [view_card(card)]


def test_single_slices_are_adopted_released_and_tried_again(
    asker: Asker, supervisor: FakeSupervisor
) -> None:
    assert asker.ask("POST", "/v1/gpus/adopt", b'{"id": "u", "vm": "web"}') == (200, {"done": True})
    assert asker.ask("POST", "/v1/gpus/adopt", b'{"id": "u", "vm": "nope"}')[0] == 404
    assert asker.ask("POST", "/v1/gpus/adopt", b'{"id": "u"}')[0] == 400
    assert asker.ask("POST", "/v1/gpus/unquarantine", b'{"id": "m"}')[1] == ["mbochs/mbochs-small"]
    supervisor.failures["release"] = Refused("u is in use: web is running", "arcsup stop web")
    status, answer = asker.ask("POST", "/v1/gpus/release", b'{"id": "u"}')
    assert (status, answer["error"]["code"]) == (409, "refused")

    assert supervisor.calls == [("adopt", "u", "web"), ("unquarantine", "m"), ("release", "u")]


def test_types_are_judged_for_a_file_that_is_nowhere_yet(
    asker: Asker, supervisor: FakeSupervisor
) -> None:
    body = b'{"file": "/tmp/try.yaml", "source": "gpus: []"}'

    status, verdicts = asker.ask("POST", "/v1/gpus/types", body)

    assert status == 200
    assert supervisor.calls == [("explain", "/tmp/try.yaml", "gpus: []")]
    assert [(v["slot"], v["type"], v["chosen"]) for v in verdicts] == [
        (0, "nvidia-64", True),
        (1, "", False),
    ]
    assert verdicts[1]["why"] == "the host has no GPU"


def test_kept_events_end_with_follow_0(asker: Asker, supervisor: FakeSupervisor) -> None:
    for n in range(3):
        supervisor.log.append(make_event(f"event {n}", "web" if n else "db"))

    status, content = asker.ask("GET", "/v1/events?follow=0&vm=web&since=2")

    assert status == 200
    assert content.startswith(b'id: 3\ndata: {"time": "2026-03-01T12:00:00.000Z", "vm": "web"')
    assert content.endswith(b"\n\n")
    assert content.count(b"data:") == 1


def test_events_of_a_vm_that_is_gone_can_be_asked_for(
    asker: Asker, supervisor: FakeSupervisor
) -> None:
    supervisor.log.append(make_event("removed", "gone"))

    assert b"removed" in asker.ask("GET", "/v1/events?follow=0&vm=gone")[1]


def test_a_browser_goes_on_after_the_last_event_that_it_saw(
    asker: Asker, supervisor: FakeSupervisor
) -> None:
    for n in range(3):
        supervisor.log.append(make_event(f"event {n}"))

    _, content = asker.ask("GET", "/v1/events?follow=0", last_id="2")

    assert re.findall(rb"id: (\d+)", content) == [b"3"]


def test_new_events_come_at_once(asker: Asker) -> None:
    asker.connection.request("GET", "/v1/events")
    stream = asker.connection.getresponse()
    assert stream.headers["content-type"].startswith("text/event-stream")
    assert stream.readline() == b": arcsup\n"

    other = Asker(asker.path)
    other.ask("POST", "/v1/vms/web/stop")
    other.connection.close()

    assert stream.readline() == b"\n"
    assert stream.readline() == b"id: 1\n"
    assert json.loads(stream.readline().removeprefix(b"data: "))["message"] == "stop web"
    stream.close()


def test_a_reader_that_does_not_read_holds_up_nobody(
    asker: Asker, supervisor: FakeSupervisor
) -> None:
    for _ in range(50):
        supervisor.log.append(make_event("x" * 100_000))
    with socket.socket(socket.AF_UNIX) as stalled:
        stalled.connect(str(asker.path))
        stalled.sendall(b"GET /v1/events HTTP/1.1\r\nHost: x\r\n\r\n")
        stalled.recv(1)

        for _ in range(20):
            assert asker.ask("POST", "/v1/vms/web/reset")[0] == 202


def test_openapi_describes_exactly_what_is_served(asker: Asker) -> None:
    served = {
        (route.path, method)
        for route in make_app(FakeSupervisor(), trio.Event()).routes
        if isinstance(route, Route)
        for method in (route.methods or set()) - {"HEAD"}
    }

    api = asker.ask("GET", "/v1/openapi.json")[1]

    described = {(path, m.upper()) for path, methods in api["paths"].items() for m in methods}
    assert described == served
    assert api["openapi"] == "3.1.0"
    # A start may go without a body, a file may not.
    bodies = {
        path: api["paths"][path]["post"]["requestBody"]["required"]
        for path in ("/v1/vms", "/v1/vms/{name}/start", "/v1/vms/{name}/qmp")
    }
    assert bodies == {"/v1/vms": True, "/v1/vms/{name}/start": False, "/v1/vms/{name}/qmp": True}
    identities = [m["operationId"] for methods in api["paths"].values() for m in methods.values()]
    assert len(set(identities)) == len(identities)


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("/v1/vms", "/v1/vms"),
        ("/v1/vms/{name}", "/v1/vms/db"),
        ("/v1/vms/{name}", "/v1/vms/web"),
        ("/v1/vms/{name}/why", "/v1/vms/db/why"),
        ("/v1/plan", "/v1/plan"),
        ("/v1/daemon", "/v1/daemon"),
        ("/v1/gpus", "/v1/gpus"),
        ("/v1/inventory", "/v1/inventory"),
        ("/v1/vms/{name}/types", "/v1/vms/web/types"),
        ("/v1/gpus/quarantine", "/v1/gpus/quarantine"),
    ],
)
def test_answers_are_as_openapi_describes_them(path: str, target: str, asker: Asker) -> None:
    api = asker.ask("GET", "/v1/openapi.json")[1]
    operation = api["paths"][path]["get"]
    schema = operation["responses"]["2XX"]["content"]["application/json"]["schema"]
    # Nothing but what is described: an undescribed key is a lie too.
    for described in api["components"]["schemas"].values():
        described["additionalProperties"] = False

    answer = asker.ask("GET", target)[1]

    jsonschema.validate(answer, schema | {"components": api["components"]})
    error = api["components"]["schemas"]["Error"] | {"components": api["components"]}
    jsonschema.validate(asker.ask("GET", "/v1/vms/nope")[1], error)
