"""A supervisor in memory, and the control socket served for it on a real unix socket."""

import contextlib
import threading
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import trio
from attrs import define, evolve, field

from arcsup.control.events import EventLog
from arcsup.control.metrics import Metrics
from arcsup.control.server import serve_control
from arcsup.devices import (
    Backend,
    Card,
    Function,
    Inventory,
    IommuGroup,
    NumaNodeSeen,
    Slice,
    SliceType,
)
from arcsup.errors import ArcsupError, NoSuchObject, Refused, SpecError, TimedOut
from arcsup.model import (
    Condition,
    ConditionType,
    CpuSet,
    Event,
    ExitClass,
    GpuKind,
    LastExit,
    MiB,
    PciAddress,
    SliceInUse,
    State,
    Step,
    VmName,
    VmStatus,
    Why,
    WhyLink,
)
from arcsup.plan.mode import NORMAL, Mode
from arcsup.plan.survey import TypeVerdict
from arcsup.unattended.store import Answers

START = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
PNG = b"\x89PNG\r\n\x1a\nnot much of a picture"


def make_status(name: str, state: State = State.RUNNING, **changes: Any) -> VmStatus:
    running = state in {State.RUNNING, State.PAUSED}
    status = VmStatus(
        name=VmName(name),
        state=state,
        reason="",
        since=START,
        pid=4242 if running else None,
        restarts=0,
        gpus=(),
        file=f"/etc/arcsup/vms/{name}.yaml",
        pending=(),
        uuid=UUID("6f6d5d38-6a5c-5c0a-9d2b-0f6f5a2f7b11"),
        qmp_socket=f"/run/arcsup/{name}/qmp.sock",
        monitor_socket=f"/run/arcsup/{name}/monitor.sock",
        console_socket=f"/run/arcsup/{name}/console.sock",
        argv=("qemu-system-x86_64", "-name", f"guest={name}") if running else (),
        numa_node=None,
        adopted=False,
        last_exit=None,
        next_try=None,
    )
    return evolve(status, **changes)


def make_event(message: str, vm: str | None = None, kind: str = "started") -> Event:
    return Event(START, None if vm is None else VmName(vm), kind, message, {"pid": 4242})


def make_slice() -> SliceInUse:
    return SliceInUse(GpuKind.VGPU, "nvidia-64", "0a1b", PciAddress("0000:41:00.0"), MiB(2048))


def make_devices() -> Inventory:
    """A host with one card, everything filled in that can be."""
    card = Card(
        address="0000:41:00.0",
        path="/sys/bus/pci/devices/0000:41:00.0",
        name="Tesla P4",
        group=IommuGroup(4, ("0000:41:00.0",), ("0000:41:00.1 is in use",)),
        backends=(Backend.MDEV,),
        vfs=(Function("0000:41:00.4", None, None, "/p", ("it is in use",)),),
        types=tuple(
            SliceType("t", "t", MiB(1024), 1, 8, "vfio-pci", parent, Backend.MDEV)
            for parent in ("0000:41:00.4", "0000:41:00.5")
        ),
        slices=(Slice(Backend.MDEV, "0a1b", "t", "0000:41:00.4", "/p", holders=(1,)),),
    )
    nodes = (NumaNodeSeen(0, CpuSet(frozenset({0})), MiB(1)),)
    return Inventory("far", "6.1", (card,), True, nodes, ("something is odd",))


def make_crashed(name: str) -> VmStatus:
    """A VM that waits for its next try, with everything filled in that can be."""
    return make_status(
        name,
        State.BACKOFF,
        reason="QEMU crashed; next try in 4 s",
        restarts=3,
        pending=("memory", "disks[0].path"),
        last_exit=LastExit(ExitClass.CRASH, None, 11, START, "killed by SIGSEGV"),
        next_try=START + timedelta(seconds=4),
        conditions=(
            Condition(ConditionType.DISKS_WORK, True, "Present", "nothing asked for", START),
        ),
        events=tuple(make_event(f"event {n}", name) for n in range(12)),
        gpus=(make_slice(),),
    )


@define
class FakeSupervisor:
    """Commands change the state at once; ``failures`` maps a verb to the error that it raises."""

    vms: dict[str, VmStatus] = field(factory=dict)
    calls: list[tuple[str, ...]] = field(factory=list)
    failures: dict[str, Exception] = field(factory=dict)
    answers: Answers | None = None
    """What the last submitted file's installer is to find."""
    later: tuple[str, ...] = ()
    """What the configuration has that only the next daemon takes."""

    modes: list[Mode] = field(factory=list)
    """Those of the files that were submitted."""
    planned: list[Step] = field(factory=list)
    log: EventLog = field(factory=lambda: EventLog(capacity=50))
    places: dict[str, str] = field(factory=dict)
    findings: list[str] = field(factory=list)
    followed: threading.Event = field(factory=threading.Event)
    """Set once somebody follows the events."""

    devices: Inventory = field(factory=Inventory)

    stuck: bool = False
    """``settle``, ``wait_for`` and ``clone`` never come to an end by themselves."""

    copied: list[tuple[Path, Path]] = field(factory=list)
    """What was asked to be cloned, and where to."""

    def add(self, *statuses: VmStatus) -> None:
        self.vms.update({status.name: status for status in statuses})

    def statuses(self) -> Sequence[VmStatus]:
        return [self.vms[name] for name in sorted(self.vms)]

    def status(self, name: str) -> VmStatus:
        if name not in self.vms:
            raise NoSuchObject(f"there is no VM {name}", "arcsup list shows those there are")
        return self.vms[name]

    def why(self, name: str) -> Why:
        status = self.status(name)
        as_desired = status.state is State.RUNNING
        chain = (
            WhyLink(f"{name} is {status.state}", "QEMU crashed", START),
            WhyLink("QEMU crashed", "killed by SIGSEGV", None, "start again", status.next_try),
        )
        return Why(status.name, status.state, as_desired, () if as_desired else chain)

    def definition(self, name: str) -> dict[str, Any]:
        return {"name": self.status(name).name, "memory": "2GiB", "networks": [{"type": "user"}]}

    def steps(self) -> Sequence[Step]:
        return self.planned

    @property
    def gpus(self) -> "FakeGpus":
        return FakeGpus(self)

    def report(self) -> dict[str, Any]:
        return {
            "version": "0.1.0",
            "pid": 1,
            "uptimeSeconds": 5.0,
            "places": self.places,
            "system": True,
            "findings": self.findings,
        }

    async def _act(self, verb: str, name: str, state: State | None = None) -> None:
        self.status(name)
        self.calls.append((verb, name))
        if verb in self.failures:
            raise self.failures[verb]
        if state is not None:
            self.vms[name] = make_status(name, state)
        self.log.append(make_event(f"{verb} {name}", name, verb))
        await trio.lowlevel.checkpoint()

    async def start(self, name: str, mode: Mode = NORMAL) -> None:
        await self._act(" ".join(["start", *mode.words]), name, State.RUNNING)

    async def submit(
        self, file: Path, source: str, mode: Mode = NORMAL, answers: Answers | None = None
    ) -> VmName:
        self.calls.append((" ".join(["submit", *mode.words]), str(file), source))
        self.modes.append(mode)
        self.answers = answers
        if "faulty" in source:
            raise SpecError(f"{file}:1:1: faulty: unknown key, expected one of name, memory")
        self.add(make_status(file.stem))
        await trio.lowlevel.checkpoint()
        return VmName(file.stem)

    async def stop(self, name: str, *, save: bool = False) -> None:
        await self._act("stop --save" if save else "stop", name, State.STOPPED)

    async def kill(self, name: str) -> None:
        await self._act("kill", name, State.STOPPED)

    async def adopt(self, name: str) -> None:
        await self._act("adopt", name, State.RUNNING)

    async def restart(self, name: str) -> None:
        await self._act("restart", name, State.RUNNING)

    async def reset(self, name: str) -> None:
        await self._act("reset", name)

    async def pause(self, name: str) -> None:
        await self._act("pause", name, State.PAUSED)

    async def resume(self, name: str) -> None:
        await self._act("resume", name, State.RUNNING)

    async def clear(self, name: str) -> None:
        if self.status(name).state is not State.FAILED:
            raise Refused(f"{name} has not failed", "arcsup start starts it")
        await self._act("clear", name, State.RUNNING)

    async def qmp(self, name: str, command: str, arguments: dict[str, Any]) -> Any:
        await self._act("qmp", name)
        return {"command": command, "arguments": arguments}

    async def screenshot(self, name: str) -> bytes:
        await self._act("screenshot", name)
        return PNG

    async def clone(
        self, name: str, source: Path, target: Path, report: Callable[[float], None]
    ) -> None:
        await self._act("clone", name)
        self.copied.append((source, target))
        report(50.0)
        if self.stuck:
            await trio.sleep_forever()

    async def reload(self) -> Sequence[str]:
        self.calls.append(("reload",))
        await trio.lowlevel.checkpoint()
        return self.later

    async def settle(self, name: str, verb: str, seconds: float) -> VmStatus:
        if self.stuck:
            await self._time_out(seconds)
        status = self.status(name)
        if status.state in {State.FAILED, State.INVALID}:
            raise ArcsupError(f"{name} {verb}: {status.reason}", f"arcsup why {name}")
        await trio.lowlevel.checkpoint()
        return status

    async def wait_for(self, name: str, state: State | None, seconds: float) -> VmStatus:
        status = self.status(name)
        if self.stuck or status.state is not state:
            await self._time_out(seconds)
        await trio.lowlevel.checkpoint()
        return status

    async def _time_out(self, seconds: float) -> None:
        await trio.sleep(seconds)
        raise TimedOut(f"not so after {seconds:g} s", "it may still happen")

    def events(self, since: int, vm: str | None) -> Sequence[tuple[int, Event]]:
        return self.log.since(since, vm)

    def follow(self, since: int, vm: str | None) -> AsyncGenerator[tuple[int, Event], None]:
        self.followed.set()
        return self.log.follow(since, vm)

    def metrics(self) -> bytes:
        return Metrics("0.1.0").expose(self.statuses())


VERDICTS = (
    TypeVerdict("0000:41:00.0", "nvidia-64", "GRID P4-2Q", MiB(2048), True, "the only one"),
    TypeVerdict("0000:42:00.0", "", "", None, False, "excluded"),
)


@define
class FakeGpus:
    """The GPUs of a fake supervisor; calls go into its list, failures come from its table."""

    supervisor: FakeSupervisor

    async def inventory(self) -> Inventory:
        await trio.lowlevel.checkpoint()
        return self.supervisor.devices

    async def explain(self, name: str) -> Sequence[tuple[int, Sequence[TypeVerdict]]]:
        self.supervisor.status(name)
        await trio.lowlevel.checkpoint()
        return [(0, VERDICTS)]

    async def explain_file(
        self, file: Path, source: str
    ) -> Sequence[tuple[int, Sequence[TypeVerdict]]]:
        self._note("explain", str(file), source)
        await trio.lowlevel.checkpoint()
        return [(0, VERDICTS[:1]), (1, ())]

    async def adopt(self, slice_id: str, name: str) -> None:
        self.supervisor.status(name)
        self._note("adopt", slice_id, name)
        await trio.lowlevel.checkpoint()

    async def release(self, slice_id: str) -> None:
        self._note("release", slice_id)
        await trio.lowlevel.checkpoint()

    def quarantined(self) -> Sequence[str]:
        return ["mbochs/mbochs-small"]

    def unquarantine(self, name: str) -> Sequence[str]:
        self._note("unquarantine", name)
        return self.quarantined()

    def _note(self, verb: str, *words: str) -> None:
        self.supervisor.calls.append((verb, *words))
        if verb in self.supervisor.failures:
            raise self.supervisor.failures[verb]


@contextlib.contextmanager
def serve_in_thread(supervisor: FakeSupervisor, run: Path) -> Iterator[None]:
    """Serve the control socket in a thread of its own, so that blocking clients can be tested."""
    ready, failed = threading.Event(), []
    token: list[trio.lowlevel.TrioToken] = []
    scope = trio.CancelScope()

    async def main() -> None:
        token.append(trio.lowlevel.current_trio_token())
        with scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(serve_control_with_status, supervisor, run / "arcsup.sock")
                ready.set()

    def run_trio() -> None:
        try:
            trio.run(main)
        except BaseException as error:
            failed.append(error)
        finally:
            ready.set()

    thread = threading.Thread(target=run_trio, daemon=True)
    thread.start()
    ready.wait(10)
    try:
        if failed:
            raise failed[0]
        yield
    finally:
        with contextlib.suppress(trio.RunFinishedError):
            token[0].run_sync_soon(scope.cancel)
        thread.join(10)
    if failed:
        raise failed[0]


async def serve_control_with_status(
    supervisor: FakeSupervisor,
    path: Path,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    await serve_control(supervisor, path, task_status=task_status)
