"""Scopes are asked of systemd over D-Bus: a bus of the test's own, with a manager behind it."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from attrs import define, field
from jeepney import DBusAddress, HeaderFields, Message, new_error, new_method_return, new_signal
from jeepney.low_level import Parser

from arcsup.errors import Transient
from arcsup.host import scopes
from arcsup.host.cgroups import Limits
from arcsup.host.scopes import Scopes, find_scopes, find_user_bus

LIMITS = Limits(3 * 2**30, 1028)
MANAGER = DBusAddress("/org/freedesktop/systemd1", interface="org.freedesktop.systemd1.Manager")


@define
class Manager:
    """A bus with one service: it puts processes into scopes as files of ``proc`` tell."""

    folder: Path
    result: str = "done"
    refusal: str = ""
    attaches: bool = True
    started: list[tuple[Any, ...]] = field(factory=list)
    matches: list[str] = field(factory=list)

    @property
    def scopes(self) -> Scopes:
        return Scopes(f"unix:path={self.folder}/bus", "arcsup.service", self.folder)

    def add_process(self, pid: int, group: str = "/system.slice/arcsup.service") -> None:
        (self.folder / str(pid)).mkdir(exist_ok=True)
        (self.folder / str(pid) / "cgroup").write_text(f"0::{group}\n")

    def answer(self, call: Message) -> Iterator[Message]:
        match call.header.fields[HeaderFields.member]:
            case "Hello":
                yield new_method_return(call, "s", (":1.5",))
            case "AddMatch":
                self.matches.append(call.body[0])
                yield new_method_return(call)
            case "StartTransientUnit" if self.refusal:
                yield new_error(call, "org.freedesktop.systemd1.Refused", "s", (self.refusal,))
            case "StartTransientUnit":
                self.started.append(call.body)
                unit, _mode, properties, _units = call.body
                for pid in dict(properties)["PIDs"][1] if self.attaches else ():
                    self.add_process(pid, f"/machine.slice/{unit}")
                # The worst order: the job is done before it is known.
                job = "/org/freedesktop/systemd1/job/7"
                told = (7, job, unit, self.result)
                yield new_signal(MANAGER, "JobRemoved", "uoss", (6, job, "a.scope", "failed"))
                yield new_signal(MANAGER, "JobRemoved", "uoss", told)
                yield new_method_return(call, "o", (job,))

    def serve(self, listener: socket.socket) -> None:
        try:
            while True:
                self._converse(listener.accept()[0])
        except OSError:
            return  # The test is over.

    def _converse(self, peer: socket.socket) -> None:
        with peer:
            said, serial, parser = b"", 0, Parser()
            while b"BEGIN\r\n" not in said:
                if not (more := peer.recv(1024)):
                    return
                said += more
                if said.endswith(b"\r\n") and b"BEGIN" not in said:
                    peer.sendall(b"OK 1234deadbeef\r\n")
            data = said.partition(b"BEGIN\r\n")[2] or peer.recv(4096)
            while data:
                parser.add_data(data)
                while (message := parser.get_next_message()) is not None:
                    for answer in self.answer(message):
                        serial += 1
                        peer.sendall(answer.serialise(serial))
                data = peer.recv(4096)


@contextmanager
def listening(folder: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "bus"))
        listener.listen()
        yield listener
        listener.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def manager(short_dir: Path) -> Iterator[Manager]:
    manager = Manager(short_dir)
    manager.add_process(41)
    with listening(short_dir) as listener:
        thread = threading.Thread(target=manager.serve, args=(listener,), daemon=True)
        thread.start()
        yield manager
    thread.join(30)


async def test_a_scope_holds_all_programs_and_their_limits(manager: Manager) -> None:
    group = await manager.scopes.enclose("web", [41, 42], LIMITS)

    assert group == "/machine.slice/arcsup-web-41.scope"
    ((unit, mode, properties, more),) = manager.started
    assert (unit, mode, more) == ("arcsup-web-41.scope", "fail", [])
    values = {name: value for name, (_type, value) in properties}
    assert values == {
        "Description": "Virtual machine web",
        "Slice": "machine.slice",
        "PIDs": [41, 42],
        "MemoryMax": LIMITS.memory,
        "TasksMax": LIMITS.tasks,
        "CollectMode": "inactive-or-failed",
        "Before": ["arcsup.service"],
    }
    assert "arg2='arcsup-web-41.scope'" in manager.matches[0]


async def test_what_is_in_its_scope_stays_there(manager: Manager) -> None:
    once = await manager.scopes.enclose("web", [41], LIMITS)
    assert await manager.scopes.enclose("web", [41], LIMITS) == once
    assert len(manager.started) == 1


async def test_no_limit_is_systemds_infinity(manager: Manager) -> None:
    await Scopes(manager.scopes.bus, "", manager.folder).enclose("web", [41], Limits(None, 9))
    properties = dict(manager.started[0][2])
    assert properties["MemoryMax"] == ("t", 2**64 - 1)
    assert "Before" not in properties


async def test_a_job_that_fails_is_told(manager: Manager) -> None:
    manager.result = "failed"
    with pytest.raises(Transient, match=r"systemd could not start arcsup-web-41.scope: failed"):
        await manager.scopes.enclose("web", [41], LIMITS)


async def test_what_systemd_refuses_is_told_in_its_words(manager: Manager) -> None:
    manager.refusal = "Interactive authentication required."
    with pytest.raises(Transient, match=r"systemd says: Interactive authentication required\."):
        await manager.scopes.enclose("web", [41], LIMITS)


async def test_nobodys_word_is_taken_for_it_that_qemu_is_inside(manager: Manager) -> None:
    manager.attaches = False
    with pytest.raises(Transient, match="did not put QEMU into it"):
        await manager.scopes.enclose("web", [41], LIMITS)


async def test_without_a_bus_it_is_told(short_dir: Path) -> None:
    with pytest.raises(Transient, match=r"/bus does not answer: .*No such file"):
        await Scopes(f"unix:path={short_dir}/bus", "", short_dir).enclose("web", [41], LIMITS)


async def test_a_bus_that_never_answers_is_not_waited_for(
    short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scopes, "PATIENCE", 0.2)
    with listening(short_dir), pytest.raises(Transient):
        await Scopes(f"unix:path={short_dir}/bus", "", short_dir).enclose("web", [41], LIMITS)


def test_systemd_counts_only_as_process_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DBUS_SESSION_BUS_ADDRESS", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    assert find_scopes(system=True, booted=tmp_path / "none") is None
    system, user = (find_scopes(system=which, booted=tmp_path) for which in (True, False))
    assert system is not None
    assert user is not None
    assert system.bus == "unix:path=/run/dbus/system_bus_socket"
    assert user.bus == "unix:path=/run/user/7/bus"
    monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", "unix:abstract=here")
    assert find_user_bus() == "unix:abstract=here"
