"""What supervision knows of a VM outlives its own trouble."""

import errno
import json
import signal
from functools import partial
from pathlib import Path

import pytest
import trio
from attrs import evolve
from trio.testing import MockClock

from arcsup.errors import NotRecorded, Terminal, Transient
from arcsup.model import ExitClass, Vm, VmName
from arcsup.places import Places
from arcsup.plan.lifecycle import Evidence, Phase, Step
from arcsup.spec.native import vm_to_native
from arcsup.vm import supervise, unrecorded
from arcsup.vm.managed import ManagedVm, StopOrder, Workshop
from arcsup.vm.process import Process, ProcessEnd, ProcessId
from arcsup.vm.record import Launch, Record, RecordStore
from arcsup.vm.strays import Stray
from tests.small_host import BOOT, SmallHost, small_host_with_web


class FullDisk(RecordStore):
    """A disk that has room again after so many writes."""

    writes_refused = 2

    async def save(self, record: Record) -> None:
        if self.writes_refused:
            self.writes_refused -= 1
            raise NotRecorded("the disk is full", "make room")
        await super().save(record)


@pytest.fixture
async def host(tmp_path: Path) -> SmallHost:
    """A host with the VM web, which is planned."""
    return await small_host_with_web(tmp_path)


@pytest.fixture
def vm(host: SmallHost) -> ManagedVm:
    """A VM that runs, on a disk that has become full."""
    vm = host.fleet.vms[VmName("web")]
    supervise.begin(vm, "a test")
    launch = Launch(BOOT, json.dumps(vm_to_native(vm.vm)), ready_at=0.0)
    vm.record, vm.running = evolve(vm.record, launch=launch), vm.vm
    vm.step(Step.READY)
    vm.evidence = Evidence(was_ready=True)
    host.fleet.workshop.records = FullDisk(host.places.state / "vms")
    host.fleet.workshop.records.prepare()
    return vm


async def end(host: SmallHost, vm: ManagedVm, how: ProcessEnd, **more: bool) -> None:
    finish = partial(supervise._finish, vm, host.fleet.workshop, how, "its last words", **more)
    await supervise._keep_at_it(vm, host.fleet.workshop, finish)
    assert vm.phase is Phase.DOWN
    assert vm.record.launch is None
    assert vm.record.last_exit is not None
    assert (vm.record.last_exit.code, vm.record.last_exit.signal) == (how.code, how.signal)
    assert vm.record.last_exit.detail == "its last words"
    assert host.told == ["trouble", "trouble", "ended"]


async def test_a_power_off_that_could_not_be_recorded_at_once_is_no_crash(
    autojump_clock: MockClock, host: SmallHost, vm: ManagedVm
) -> None:
    vm.evidence = evolve(vm.evidence, shutdown_reason="guest-shutdown")

    await end(host, vm, ProcessEnd(code=0))

    assert vm.record.last_exit is not None
    assert vm.record.last_exit.exit_class is ExitClass.GUEST_SHUTDOWN
    assert vm.record.halted == "the guest powered off"


async def test_a_stop_that_could_not_be_recorded_at_once_is_no_crash(
    autojump_clock: MockClock, host: SmallHost, vm: ManagedVm
) -> None:
    vm.give_order(StopOrder("its file was removed", hard=True))

    await end(host, vm, ProcessEnd(signal=9))

    assert vm.record.last_exit is not None
    assert vm.record.last_exit.exit_class is ExitClass.KILLED
    assert vm.record.restarts == 0


async def test_a_start_that_failed_for_good_is_not_tried_again_when_that_is_recorded_later(
    autojump_clock: MockClock, host: SmallHost, vm: ManagedVm
) -> None:
    vm.evidence = Evidence(was_ready=False)

    await end(host, vm, ProcessEnd(code=1), terminal=True)

    assert vm.record.failure is not None
    assert vm.record.failure.because == "its last words"


async def test_what_cannot_be_removed_keeps_no_vm_from_having_ended(
    autojump_clock: MockClock, host: SmallHost, vm: ManagedVm, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(places: Places, name: VmName) -> None:
        raise Transient("its runtime folder cannot be removed: Device or resource busy")

    def leave(running: Vm) -> tuple[str, ...]:
        return ("/dev/shm/frames: it is no file",)

    monkeypatch.setattr(supervise, "remove_runtime_folders", refuse)
    monkeypatch.setattr(supervise, "remove_shared_memory", leave)
    vm.give_order(StopOrder("its file was removed", hard=True))
    finish = partial(supervise._finish, vm, host.fleet.workshop, ProcessEnd(signal=9), "")

    await supervise._keep_at_it(vm, host.fleet.workshop, finish)

    assert (vm.phase, vm.record.launch) == (Phase.DOWN, None)
    assert host.told[-3:] == ["not-removed", "not-removed", "ended"]


async def trouble() -> None:
    raise RuntimeError("a defect")


@pytest.fixture
def room(host: SmallHost, vm: ManagedVm) -> None:
    """Let the disk take everything."""
    records = host.fleet.workshop.records
    assert isinstance(records, FullDisk)
    records.writes_refused = 0


@pytest.mark.usefixtures("room")
async def test_a_stop_is_one_also_where_qemu_ended_while_its_supervision_was_in_trouble(
    autojump_clock: MockClock, host: SmallHost, vm: ManagedVm
) -> None:
    vm.give_order(StopOrder("its file was removed"))

    await supervise._keep_at_it(vm, host.fleet.workshop, trouble)

    assert vm.record.last_exit is not None
    assert vm.record.last_exit.exit_class is ExitClass.STOPPED
    assert (vm.starts, vm.phase) == (1, Phase.DOWN)


@pytest.mark.usefixtures("room")
async def test_what_was_seen_of_an_end_outlives_trouble(
    autojump_clock: MockClock, host: SmallHost, vm: ManagedVm
) -> None:
    vm.evidence = evolve(vm.evidence, shutdown_reason="guest-shutdown")

    await supervise._keep_at_it(vm, host.fleet.workshop, trouble)

    assert vm.record.last_exit is not None
    assert vm.record.last_exit.exit_class is ExitClass.GUEST_SHUTDOWN


class Stubborn(Process):
    """A QEMU that only SIGKILL ends."""

    def __init__(self) -> None:
        super().__init__(ProcessId(BOOT, 1, 1), -1)
        self.sent: list[signal.Signals] = []
        self.gone = trio.Event()

    @property
    def ended(self) -> bool:
        return self.gone.is_set()

    def send(self, number: signal.Signals) -> None:
        self.sent.append(number)
        if number is signal.SIGKILL:
            self.gone.set()

    async def wait(self) -> ProcessEnd:
        await self.gone.wait()
        return ProcessEnd(signal=signal.SIGKILL)

    def close(self) -> None:
        pass


@pytest.mark.usefixtures("room")
async def test_a_stop_comes_to_its_end_though_its_supervision_is_in_trouble_again_and_again(
    autojump_clock: MockClock, host: SmallHost, vm: ManagedVm, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def break_down(*_: object) -> None:
        await trio.sleep(2)
        raise RuntimeError("a defect")

    process = Stubborn()
    monkeypatch.setattr(supervise, "find_qemu_process", lambda *_: process)
    monkeypatch.setattr(supervise, "keep_monitor", break_down)
    vm.give_order(StopOrder("its file was removed"))

    with trio.fail_after(200):
        await supervise._keep_at_it(vm, host.fleet.workshop, trouble)

    assert process.sent == [signal.SIGTERM, signal.SIGKILL]
    assert vm.record.last_exit is not None
    assert vm.record.last_exit.exit_class is ExitClass.STOPPED


def out_of(number: int) -> OSError:
    return OSError(number, "as the kernel says", "/var/log/arcsup/web/qemu.log")


def because_of(error: OSError) -> Terminal:
    wrapped = Terminal("qemu could not be started")
    wrapped.__cause__ = error
    return wrapped


@pytest.mark.parametrize(
    "error",
    [
        out_of(errno.ENOSPC),
        out_of(errno.EROFS),
        out_of(errno.EMFILE),
        because_of(out_of(errno.EAGAIN)),
        RuntimeError("can't start new thread"),
        MemoryError(),
        Terminal("disk0.qcow2: qemu: qemu_thread_create: Resource temporarily unavailable"),
    ],
    ids=repr,
)
async def test_the_hosts_trouble_costs_a_vm_nothing_and_passes_by_itself(
    autojump_clock: MockClock,
    host: SmallHost,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    async def refuse(vm: ManagedVm, workshop: Workshop) -> Process:
        await vm.save(workshop, launch=Launch(BOOT, json.dumps(vm_to_native(vm.vm))))
        raise error

    monkeypatch.setattr(supervise, "start_qemu", refuse)
    vm, workshop = host.fleet.vms[VmName("web")], host.fleet.workshop
    before = vm.record
    waited: list[str] = []
    workshop.changed = lambda: waited.append(host.fleet.look().seen[vm.name].awaits)

    for _ in range(10):
        supervise.begin(vm, "a test")
        await supervise.supervise(vm, workshop)

    assert (vm.phase, vm.record) == (Phase.DOWN, before)
    assert waited[-2].startswith("the host: ")
    assert waited[-1] == ""
    assert host.told.count("trouble") == 1


@pytest.mark.parametrize(
    "words",
    ["there is no such firmware", "Failed to lock byte 100: Resource temporarily unavailable"],
)
async def test_an_error_that_is_no_trouble_of_the_hosts_fails_the_start(
    host: SmallHost, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    async def refuse(*_: object) -> Process:
        raise Terminal(words)

    monkeypatch.setattr(supervise, "start_qemu", refuse)
    vm = host.fleet.vms[VmName("web")]
    supervise.begin(vm, "a test")

    await supervise.supervise(vm, host.fleet.workshop)

    assert vm.record.failure is not None


async def test_a_qemu_that_could_not_be_looked_at_for_a_while_is_adopted_after_that(
    autojump_clock: MockClock, host: SmallHost, vm: ManagedVm, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = [OSError(errno.EMFILE, "Too many open files")] * 3
    process = Stubborn()

    def look(*_: object) -> Process:
        if failures:
            raise failures.pop()
        process.gone.set()
        return process

    async def say_nothing(*_: object) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr(supervise, "find_qemu_process", look)
    monkeypatch.setattr(supervise, "keep_monitor", say_nothing)
    vm.phase = Phase.DOWN
    host.fleet.workshop.records = RecordStore(host.places.state / "vms")

    await supervise.resume_vm(vm, host.fleet.workshop)

    assert host.told == ["trouble", "trouble", "trouble", "adopted", "ended"]
    assert vm.record.last_exit is not None
    assert vm.record.last_exit.signal == signal.SIGKILL


async def test_how_a_qemu_ended_is_not_lost_when_the_kernel_log_cannot_be_read_at_once(
    autojump_clock: MockClock, host: SmallHost, vm: ManagedVm, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = [OSError(errno.EMFILE, "Too many open files")] * 3

    async def look(*_: object) -> str:
        if failures:
            raise failures.pop()
        return "the kernel killed it at the memory limit of its control group /arcsup"

    monkeypatch.setattr(supervise, "find_limit_reached", look)
    host.fleet.workshop.records = RecordStore(host.places.state / "vms")

    finish = partial(supervise._finish, vm, host.fleet.workshop, ProcessEnd(signal=9), "")
    await supervise._keep_at_it(vm, host.fleet.workshop, finish)

    assert vm.record.last_exit is not None
    assert vm.record.last_exit.signal == signal.SIGKILL
    assert "at the memory limit" in vm.record.last_exit.detail
    assert host.told == ["ended"]


async def test_a_qemu_without_a_record_is_not_over_because_nobody_could_look(
    autojump_clock: MockClock, host: SmallHost, vm: ManagedVm, monkeypatch: pytest.MonkeyPatch
) -> None:
    unseen = OSError(errno.EMFILE, "Too many open files")
    answers: list[Stray | OSError | None] = [Stray(), unseen, unseen, Stray(), None]
    asked = list[str]()

    def look(*_: object) -> Stray | None:
        asked.append(str(vm.unrecorded or ""))
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer

    monkeypatch.setattr(unrecorded, "find_stray", look)
    vm.phase = Phase.DOWN
    vm.record = evolve(vm.record, launch=None)

    await supervise.watch_unrecorded(vm, host.fleet.workshop)

    assert not answers
    assert all("no record tells of it" in what for what in asked[1:])
    assert vm.unrecorded is None
    assert host.told == ["unrecorded", "trouble", "unrecorded-ended"]
