import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest

from arcsup.control.client import Client, find_socket, vm_path
from arcsup.errors import (
    ArcsupError,
    DaemonUnreachable,
    NoSuchObject,
    NotPermitted,
)
from arcsup.places import Places
from tests.fake_supervisor import (
    PNG,
    FakeSupervisor,
    make_crashed,
    make_event,
    make_status,
    serve_in_thread,
)


@pytest.fixture
def supervisor() -> FakeSupervisor:
    fake = FakeSupervisor()
    fake.add(make_status("web"), make_crashed("db"))
    return fake


@pytest.fixture
def client(supervisor: FakeSupervisor, tmp_path: Path) -> Iterator[Client]:
    with serve_in_thread(supervisor, tmp_path):
        yield Client(tmp_path / "arcsup.sock")


def test_json_is_fetched(client: Client) -> None:
    assert [vm["name"] for vm in client.get("/v1/vms")] == ["db", "web"]


def test_a_body_is_posted(client: Client) -> None:
    body = {"execute": "device_add", "arguments": {"driver": "x"}}

    answer = client.post(vm_path("web", "qmp"), body)

    assert answer == {"return": {"command": "device_add", "arguments": {"driver": "x"}}}


def test_bytes_are_fetched_as_they_are(client: Client) -> None:
    assert client.post_for_bytes(vm_path("web", "screenshot")) == PNG


def find_error_classes() -> list[type[ArcsupError]]:
    import_module("arcsup.daemon")  # It brings every module that has errors of its own.
    found = [ArcsupError]
    for error in found:
        found += error.__subclasses__()
    return found


@pytest.mark.parametrize("error_class", find_error_classes(), ids=lambda error: error.__name__)
def test_an_error_of_the_daemon_comes_out_of_the_client_as_what_its_code_says(
    error_class: type[ArcsupError], client: Client, supervisor: FakeSupervisor
) -> None:
    supervisor.failures["pause"] = error_class("what", "what to do")

    with pytest.raises(ArcsupError) as caught:
        client.post(vm_path("web", "pause"))

    coded = next(base for base in error_class.__mro__ if "code" in vars(base))
    assert type(caught.value) is coded
    assert (caught.value.message, caught.value.hint) == ("what", "what to do")


@pytest.mark.parametrize("name", ["../etc", "a b", "a?b=c", "ü", "a%2Fb", "a\r\nX: y", "w\udce9n"])
def test_a_strange_name_is_just_not_there(name: str, client: Client) -> None:
    with pytest.raises(NoSuchObject):
        client.get(vm_path(name))
    with pytest.raises(NoSuchObject):
        client.get("/v1/events", {"vm": name})


def test_without_a_daemon_it_says_how_to_start_one(tmp_path: Path) -> None:
    with pytest.raises(DaemonUnreachable, match="no daemon at") as caught:
        Client(tmp_path / "arcsup.sock").get("/v1/vms")

    assert "arcsup daemon" in caught.value.hint


def test_a_dead_socket_is_no_daemon(tmp_path: Path) -> None:
    path = tmp_path / "arcsup.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))

    with pytest.raises(DaemonUnreachable, match="refused"):
        Client(path).get("/v1/vms")


def test_a_path_too_long_for_a_socket_is_told(tmp_path: Path) -> None:
    with pytest.raises(DaemonUnreachable, match="longer than"):
        Client(tmp_path / ("x" * 120) / "arcsup.sock").get("/v1/vms")


def answer_with(path: Path, answer: bytes) -> threading.Thread:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        with listener, listener.accept()[0] as connection:
            connection.recv(65536)
            connection.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 2",
        b"HTTP/1.1 200 OK\r\nA: b\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n[1",
    ],
)
def test_a_daemon_that_dies_in_the_middle_is_unreachable(answer: bytes, tmp_path: Path) -> None:
    thread = answer_with(tmp_path / "s", answer)

    with pytest.raises(DaemonUnreachable, match="ended before"):
        Client(tmp_path / "s").get("/v1/vms")
    thread.join()


def test_something_else_at_the_socket_is_told(tmp_path: Path) -> None:
    thread = answer_with(tmp_path / "s", b"SSH-2.0-OpenSSH\r\n")

    with pytest.raises(DaemonUnreachable, match="no arcsup daemon"):
        Client(tmp_path / "s").get("/v1/vms")
    thread.join()


def test_an_error_that_is_none_of_ours_is_shown(tmp_path: Path) -> None:
    thread = answer_with(tmp_path / "s", b"HTTP/1.1 502 Bad\r\n\r\nproxy")

    with pytest.raises(ArcsupError, match="answered 502: proxy"):
        Client(tmp_path / "s").get("/v1/vms")
    thread.join()


def test_events_are_streamed_with_their_numbers(client: Client, supervisor: FakeSupervisor) -> None:
    supervisor.log.append(make_event("one", "web"))
    supervisor.log.append(make_event("zwei\nü", "web"))

    events = list(client.stream("/v1/events", {"follow": "0"}))

    assert [(number, event["message"]) for number, event in events] == [(1, "one"), (2, "zwei\nü")]


def test_the_socket_is_found_by_option_then_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCSUP_RUN", "/from/env")

    assert find_socket("/from/option") == Path("/from/option/arcsup.sock")
    assert find_socket(None) == Path("/from/env/arcsup.sock")


@pytest.mark.parametrize("there", ["own", "system", "both", "hidden", "neither"])
def test_a_user_finds_their_own_daemon_before_the_systems(
    there: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = {False: tmp_path / "own", True: tmp_path / "system"}
    default = Places.default()
    monkeypatch.delenv("ARCSUP_RUN", raising=False)
    monkeypatch.setattr(
        Places, "default", lambda *, system=False: replace(default, run=run[system])
    )
    for is_system, directory in run.items():
        directory.mkdir()
        if there in {"both", "system" if is_system else "own"}:
            (directory / "arcsup.sock").touch()
    stat = Path.stat

    def hide(path: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        if there == "hidden" and path.parent == run[True]:
            raise PermissionError
        return stat(path, follow_symlinks=follow_symlinks)

    monkeypatch.setattr(Path, "stat", hide)

    assert find_socket(None).parent.name == ("system" if there in {"system", "hidden"} else "own")


@pytest.mark.skipif(os.geteuid() != 0, reason="a user's default is not the system's")
def test_root_finds_the_system_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ARCSUP_RUN", raising=False)

    assert find_socket(None) == Path("/run/arcsup/arcsup.sock")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_whoever_may_not_use_the_socket_is_told(client: Client) -> None:
    os.seteuid(65534)
    try:
        with pytest.raises(NotPermitted, match="may not use") as caught:
            client.get("/v1/vms")
    finally:
        os.seteuid(0)

    assert "group" in caught.value.hint


def test_a_daemon_whose_backlog_is_full_is_waited_for(short_dir: Path) -> None:
    path = short_dir / "arcsup.sock"
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(str(path))
        listener.listen(0)
        first.connect(str(path))

        def accept() -> None:
            for _ in range(2):
                listener.accept()[0].close()

        accepting = threading.Timer(0.2, accept)
        accepting.start()
        # It comes through, and is then told by whom: nobody answers.
        with pytest.raises(DaemonUnreachable, match="had answered"):
            Client(path).get("/v1/vms")
        accepting.join()
