"""Random faults and orders for a real daemon with real QEMUs, and what must hold after each round.

A round brings one fault upon the daemon, gives orders meanwhile, takes the fault back, and says for
each VM whether it is to run. Then all must come to that, and: at no time were there two QEMUs of
one VM; no process, socket, overlay, shared memory or owner is left of what is down; the daemon has
never ended by itself, nor called anything a fault of its own.
"""

import random
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from attrs import define, field

from arcsup.control.client import Client, vm_path
from arcsup.errors import ArcsupError, DaemonUnreachable, NoSuchObject
from tests.chaos.faults import FAULTS, clock_environment, clock_leftovers_removed, file_systems
from tests.leftovers import find_processes_naming, find_sockets
from tests.qemu.daemon import TINY, Daemon, end

RESTART = "restart: {burst: 1000, period: 1s, delay: 50ms, maxDelay: 200ms}\n"
COMMON = f"{TINY}{RESTART}stop: {{timeout: 100ms}}\n"

VMS = {
    "plain": COMMON,
    "disk": f"{COMMON}disks: [{{path: disk.qcow2, size: 1MiB}}]\n",
    "ephemeral": f"{COMMON}disks: [{{path: base.raw, format: raw, size: 1MiB, ephemeral: true}}]\n",
    "frames": f"{COMMON}lookingGlass: {{width: 320, height: 240}}\n",
    "screen": f"{COMMON}display: {{type: vnc}}\n",
}

VERBS = ("start", "stop", "kill", "restart", "clear", "reset", "pause", "resume")

CONVERGE_SECONDS = 90.0
"""How long all may take to come to what was asked for, on a busy machine."""

OUR_FAULT = ("fault in arcsup", "the daemon answered 5")


@define
class Round:
    """What was found in one round."""

    number: int
    fault: str
    orders: int = 0
    refused: int = 0
    violations: list[str] = field(factory=list)
    seconds: float = 0.0

    def __str__(self) -> str:
        verdict = "; ".join(self.violations) or "ok"
        return (
            f"round {self.number:3}  {self.fault:16}  {self.orders:2} orders,"
            f" {self.refused:2} refused  {self.seconds:5.1f} s  {verdict}"
        )


@define
class Watcher:
    """Counts the QEMUs of each VM all the time; two of one are a violation whenever they are."""

    top: Path
    doubles: set[str] = field(factory=set)
    _over: threading.Event = field(factory=threading.Event)

    def look(self) -> None:
        seen: dict[str, list[int]] = {}
        for pid, command in find_processes_naming(self.top).items():
            name = re.search(r"-name guest=([a-z0-9-]+)", command)
            # A shell at its gate, and setpriv before it is the program, have not begun.
            if name and "qemu-system" in command.split()[0]:
                seen.setdefault(name[1], []).append(pid)
        self.doubles |= {f"{name}: QEMUs {pids}" for name, pids in seen.items() if len(pids) > 1}

    def run(self) -> None:
        while not self._over.wait(0.02):
            self.look()

    @contextmanager
    def watching(self) -> Iterator[None]:
        thread = threading.Thread(target=self.run)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()


def run_chaos(top: Path, *, seed: int, rounds: int, faults: tuple[str, ...]) -> Iterator[Round]:
    """Yield what each round found. Needs root: it mounts file systems, and QEMU has its own user.

    Every fault comes once before any comes twice.
    """
    chance = random.Random(seed)
    (top / "arcsup.yaml").write_text("resync: 2s\n")
    options = ("--config", str(top / "arcsup.yaml"))
    daemon = Daemon(top, options, environment=clock_environment(top))
    watcher = Watcher(top)
    with clock_leftovers_removed(), file_systems(top):
        daemon.start()
        try:
            with watcher.watching():
                for name, text in VMS.items():
                    daemon.drop(name, text)
                for name in VMS:
                    daemon.wait_for(name, "running")
                ahead = list[str]()
                for number in range(1, rounds + 1):
                    ahead = ahead or chance.sample(faults, len(faults))
                    yield _run_round(daemon, watcher, Round(number, ahead.pop()), chance)
        finally:
            end(daemon)


def _run_round(daemon: Daemon, watcher: Watcher, it: Round, chance: random.Random) -> Round:
    began, read = time.monotonic(), len(daemon.read_log())
    try:
        with contextmanager(FAULTS[it.fault])(daemon, chance):
            for _ in range(chance.randint(3, 12)):
                _give_order(daemon, it, chance)
        _converge(daemon, it, chance)
        _find_leftovers(daemon, it)
    except AssertionError as error:
        it.violations.append(str(error).splitlines()[0])
        with suppress(AssertionError):
            daemon.kill()
            daemon.start()
    it.violations += sorted(watcher.doubles)
    watcher.doubles.clear()
    if "Traceback (most recent call last)" in daemon.read_log()[read:]:
        it.violations.append("a traceback in the daemon's log")
    it.seconds = time.monotonic() - began
    return it


def _give_order(daemon: Daemon, it: Round, chance: random.Random) -> None:
    name, verb = chance.choice(list(VMS)), chance.choice((*VERBS, "touch", "remove", "list"))
    it.orders += 1
    try:
        if verb == "touch":
            daemon.drop(name, VMS[name])
        elif verb == "remove":
            (daemon.vms / f"{name}.yaml").unlink(missing_ok=True)
        elif verb == "list":
            daemon.client.get("/v1/vms")
        else:
            Client(daemon.run / "arcsup.sock").post(vm_path(name, verb), patience=5)
    except ArcsupError as error:
        it.refused += 1
        if any(words in error.message for words in OUR_FAULT):
            it.violations.append(f"{verb}: {error.message}")
    time.sleep(chance.choice((0, 0, 0.05, 0.3)))


def _converge(daemon: Daemon, it: Round, chance: random.Random) -> None:
    """Say of each VM whether it is to run, and wait until it is so."""
    assert daemon.process is not None
    assert daemon.process.poll() is None, "the daemon ended by itself"
    for name, text in VMS.items():
        daemon.drop(name, text)
    wanted = {name: "running" if chance.random() < 0.7 else "stopped" for name in VMS}
    deadline = time.monotonic() + CONVERGE_SECONDS
    while left := {
        name: state for name in wanted if (state := _state_of(daemon, name)) != wanted[name]
    }:
        assert daemon.process.poll() is None, "the daemon ended by itself"
        assert time.monotonic() < deadline, (
            f"not as ordered: {_reasons(daemon, left)}, not {wanted}"
        )
        for name, state in left.items():
            _order_again(daemon, name, state, wanted[name], adopts=it.number % 2 == 0)
        time.sleep(0.2)


def _reasons(daemon: Daemon, left: dict[str, str]) -> dict[str, str]:
    reasons = dict(left)
    for name, state in left.items():
        with suppress(ArcsupError):
            reasons[name] = f"{state}: {daemon.status(name)['reason']}"
    return reasons


def _state_of(daemon: Daemon, name: str) -> str:
    try:
        return daemon.state_of(name)
    except DaemonUnreachable:
        return "unreachable"


def _order_again(daemon: Daemon, name: str, state: str, wanted: str, *, adopts: bool) -> None:
    """Do what a person does who wants it so.

    A QEMU that no record tells of is adopted with ``adopts``, where that can be; else it must end.
    """
    with suppress(ArcsupError):
        if wanted == "stopped":
            if state not in {"stopping", "stopped"}:
                daemon.client.post(vm_path(name, "stop"), patience=5)
            return
        if state in {"waiting", "failed"} and "no record" in daemon.status(name)["reason"]:
            if adopts:
                with suppress(ArcsupError):
                    daemon.client.post(vm_path(name, "adopt"), patience=5)
                    return
            daemon.client.post(vm_path(name, "kill"), patience=5)
        if state == "paused":
            daemon.client.post(vm_path(name, "resume"), patience=5)
        elif state not in {"starting", "stopping", "backoff"}:
            daemon.client.post(vm_path(name, "start"), patience=5)


def _find_leftovers(daemon: Daemon, it: Round) -> None:
    """Nothing of what is down is left; what takes a moment to go has one."""
    deadline = time.monotonic() + 10
    while left := _leftovers(daemon):
        if time.monotonic() > deadline:
            it.violations += left
            return
        time.sleep(0.1)


def _leftovers(daemon: Daemon) -> list[str]:
    try:
        states = {name: daemon.state_of(name) for name in VMS}
    except (DaemonUnreachable, NoSuchObject) as error:
        return [error.message]
    found = []
    for name in (name for name, state in states.items() if state == "stopped"):
        found += [f"{name} is stopped, QEMU {pid} runs" for pid in daemon.qemus(f"{name},")]
        found += [f"left: {path}" for path in find_sockets(daemon.run / name)]
        overlays = daemon.state / "images/.ephemeral" / name
        found += [f"left: {path}" for path in overlays.glob("*")]
    if states["disk"] == "stopped" and (image := daemon.state / "images/disk.qcow2").exists():
        owner = image.stat().st_uid
        found += [f"{image} belongs to user {owner}"] * (owner != 0)
    return found
