"""Everything that can happen to a host, at random: files, operators, QEMUs, daemons, cards.

What is done next hangs on the seed alone and never on how far the last thing has come, so the
same seed does the same again. Everything is done as soon as the last thing was begun; the kernel's
answers, which may take until some QEMU has ended, are awaited in threads.
"""

import contextlib
import os
import queue
import random
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from uuid import UUID

from attrs import define, field

from arcsup.errors import ArcsupError
from tests.lab.kernel import (
    MDEVS,
    PARENTS,
    PCI,
    bind,
    create,
    driver_of,
    mdevs,
    open_device,
    remove,
    unbind,
    wait_until,
    write,
)
from tests.lab.vms import TINY
from tests.leftovers import find_processes_naming, find_sockets
from tests.qemu.daemon import Daemon

NAMES = ("small", "large", "nvidia", "whole")

KERNEL_PATIENCE = 120.0
"""Seconds in which the kernel has done what waits for nobody any more."""

NEVER_GIVE_UP = "restart: {policy: always, burst: 1000, delay: 100ms, maxDelay: 500ms}\n"

PAUSES = (0.0, 0.0, 0.05, 0.3, 1.0, 3.0)
"""Seconds between two things: most come while the daemon is still busy with the one before."""


class Hands:
    """A person's hands on one device: does one thing after the other, however long each takes."""

    def __init__(self) -> None:
        self._work: queue.Queue[Callable[[], None]] = queue.Queue()
        self.errors: list[BaseException] = []
        threading.Thread(target=self._run, daemon=True).start()

    def do(self, deed: Callable[[], None]) -> None:
        """Have something done after everything before it."""
        self._work.put(deed)

    def is_done(self) -> bool:
        """Tell whether all of it was done."""
        return self._work.unfinished_tasks == 0

    def _run(self) -> None:
        while True:
            deed = self._work.get()
            try:
                deed()
            except (OSError, AssertionError) as error:
                self.errors.append(error)
            finally:
                self._work.task_done()


@define(eq=False)
class Soak:
    """The machine: ``steps`` are what was done until now, in words.

    ``cards`` are two display functions that nobody has bound: vgpu_sim's driver comes and goes on
    the first, the second is pulled and plugged again.
    """

    daemon: Daemon
    cards: list[Path]
    seed: int
    steps: list[str] = field(factory=list)
    chance: random.Random = field(init=False)
    wanted: dict[str, str] = field(factory=dict)
    stopped: set[str] = field(factory=set)
    is_up: bool = True
    has_driver: bool = False
    is_plugged: bool = True
    foreign: list[str] = field(factory=list)
    held: contextlib.ExitStack = field(factory=contextlib.ExitStack)
    being_removed: str = ""
    driver_hands: Hands = field(factory=Hands)
    slot_hands: Hands = field(factory=Hands)
    mdev_hands: Hands = field(factory=Hands)

    sockets: list[Path] = field(init=False)
    """Those of the daemon itself."""

    def __attrs_post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        self.sockets = find_sockets(self.daemon.run)

    # --- what can happen --------------------------------------------------------------------

    def requests(self, name: str) -> tuple[str, ...]:
        """Return what the VM of a name may ask for; another each time its file is edited."""
        return {
            "small": ("{mdevType: mbochs-small}", "{mdevType: mbochs-small, count: 2}"),
            "large": ("{minVRam: 5}", "{maxVRam: 20}", "{mdevType: mbochs-large}"),
            "nvidia": ("{vendor: '10de', optional: false}", "{mdevType: nvidia-64}"),
            "whole": (f"{{kind: passthrough, address: '{self.cards[1].name}'}}",),
        }[name]

    def drop_or_edit(self) -> str:
        name = self.chance.choice(NAMES)
        request = self.chance.choice(self.requests(name))
        memory = self.chance.choice(("", "description: edited\n"))
        self.wanted[name] = f"{TINY}{NEVER_GIVE_UP}{memory}gpus: [{request}]\n"
        self.daemon.drop(name, self.wanted[name])
        return f"drop {name}: {request}{' (described)' if memory else ''}"

    def remove_file(self) -> str:
        if not self.wanted:
            return ""
        name = self.chance.choice(sorted(self.wanted))
        del self.wanted[name]
        self.stopped.discard(name)
        (self.daemon.vms / f"{name}.yaml").unlink()
        return f"rm {name}.yaml"

    def kill_a_qemu(self) -> str:
        name = self.chance.choice(NAMES)
        for pid in self.daemon.qemus(name):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return f"kill -KILL the QEMU of {name}"

    def kill_the_daemon(self) -> str:
        comes_back = self.chance.random() < 0.6
        self.daemon.kill()
        self.is_up = comes_back
        if comes_back:
            self.daemon.spawn()
        return "kill -KILL the daemon" + (", start it" if comes_back else "")

    def start_the_daemon(self) -> str:
        if self.is_up:
            return ""
        self.daemon.spawn()
        self.is_up = True
        return "start the daemon"

    def ask(self) -> str:
        name, verb = self.chance.choice(sorted(self.wanted) or [""]), self.chance.choice(VERBS)
        if not name or not self.is_up:
            return ""
        self.daemon.until(self.daemon.answers, "the daemon answers")
        self.daemon.until(lambda: self.daemon.state_of(name) != "gone", f"{name} was read")
        with contextlib.suppress(ArcsupError):  # A restart of what is not up is refused, say.
            self.daemon.call(verb, name)
        if verb in ("stop", "kill"):
            self.stopped.add(name)
        else:
            self.stopped.discard(name)
        return f"arcsup {verb} {name}"

    def load_or_unload_the_driver(self) -> str:
        self.has_driver = not self.has_driver
        card = self.cards[0]
        self.driver_hands.do(lambda: bind(card, "nvidia") if has else unbind(card))
        has = self.has_driver
        return f"{'bind' if has else 'unbind'} {card.name} {'to' if has else 'from'} nvidia"

    def plug_or_pull(self) -> str:
        self.is_plugged = not self.is_plugged
        card = self.cards[1]
        if self.is_plugged:
            self.slot_hands.do(lambda: _plug(card))
        else:
            self.slot_hands.do(lambda: write(card / "remove", "1"))
        return f"{'plug' if self.is_plugged else 'pull'} {card.name}"

    def make_a_foreign_mdev(self) -> str:
        uuid = str(UUID(int=self.chance.getrandbits(128), version=4))
        self.foreign.append(uuid)
        create(PARENTS / "mbochs", "mbochs-small", uuid)
        return f"make foreign mdev {uuid}"

    def remove_a_foreign_mdev(self) -> str:
        free = [uuid for uuid in self.foreign if uuid != self.being_removed]
        if not free:
            return ""
        uuid = self.chance.choice(free)
        self.foreign.remove(uuid)
        self.mdev_hands.do(lambda: remove(MDEVS / uuid))
        return f"remove foreign mdev {uuid}"

    def begin_a_busy_remove(self) -> str:
        """Let a remove hang in the kernel: somebody has the device open."""
        if self.being_removed or not self.foreign:
            return ""
        uuid = self.being_removed = self.foreign.pop()
        self.held.enter_context(open_device(MDEVS / uuid))
        threading.Thread(target=remove, args=(MDEVS / uuid,), daemon=True).start()
        return f"remove foreign mdev {uuid}, which is open"

    def end_the_busy_remove(self) -> str:
        if not self.being_removed:
            return ""
        self.held.close()
        uuid, self.being_removed = self.being_removed, ""
        return f"close foreign mdev {uuid}"

    def step(self) -> None:
        """Do something, and wait a little or not at all."""
        deeds = [deed for deed, weight in DEEDS for _ in range(weight)]
        while not (done := self.chance.choice(deeds)(self)):
            pass
        pause = self.chance.choice(PAUSES)
        self.steps.append(f"{len(self.steps) + 1:3}. {done}; {pause:g} s")
        # Time that goes by is part of the story, and waits for nothing.
        time.sleep(pause)

    # --- what must be true in the end -------------------------------------------------------

    def settle(self) -> None:
        """Let the daemon be, and see that everything becomes as it is wanted."""
        if not self.is_up:
            self.daemon.spawn()
            self.is_up = True
        self.end_the_busy_remove()
        self.daemon.until(self.daemon.answers, "the daemon answers")
        self.daemon.until(self._is_all_done, "the kernel has done what it was asked for")
        for name in self.daemon.client.get("/v1/gpus/quarantine"):
            self.daemon.client.post("/v1/gpus/unquarantine", {"id": name})
        self.daemon.until(self._is_converged, "everything is as it is wanted")
        self._check_devices()
        self.steps.append("     settled")

    def _is_all_done(self) -> bool:
        everybody = (self.driver_hands, self.slot_hands, self.mdev_hands)
        errors = [error for hands in everybody for error in hands.errors]
        assert not errors, errors
        return all(hands.is_done() for hands in everybody)

    def expected(self, name: str) -> str:
        """Return the state that a VM is to come to."""
        if name in self.stopped:
            return "stopped"
        has = {"nvidia": self.has_driver, "whole": self.is_plugged}.get(name, True)
        return "running" if has else "waiting"

    def _is_converged(self) -> bool:
        states = {vm["name"]: vm["state"] for vm in self.daemon.client.get("/v1/vms")}
        if states != {name: self.expected(name) for name in self.wanted}:
            return False
        records = self.daemon.records()
        has = {name: bool(records[name]["slices"]) for name in states}
        # One that waits remembers where it was.
        return all(has[name] or state != "running" for name, state in states.items()) and not any(
            has[name] and state == "stopped" for name, state in states.items()
        )

    def _check_devices(self) -> None:
        """Each mediated device is wanted by somebody, each VM has one QEMU and no other has one."""
        running = {name for name in self.wanted if self.expected(name) == "running"}
        records = self.daemon.records()
        owned = [it for name in running for it in records[name]["slices"]]
        ours = [it["id"] for it in owned if it["backend"] == "mdev"]
        assert len(set(ours)) == len(ours), f"a device twice: {ours}"
        assert mdevs() == {*ours, *self.foreign}
        for name in NAMES:
            assert len(self.daemon.qemus(name)) == (name in running), name

    def finish(self) -> None:
        """Settle, take every file away, and see that nothing at all is left."""
        self.settle()
        for name in self.wanted:
            (self.daemon.vms / f"{name}.yaml").unlink()
        self.wanted.clear()
        self.daemon.until(lambda: not self.daemon.client.get("/v1/vms"), "every VM is gone")
        assert mdevs() == set(self.foreign)
        assert not self.daemon.records()
        # The daemon itself was forked from a program that knew nothing of its folders.
        assert not find_processes_naming(self.daemon.top)
        assert find_sockets(self.daemon.run) == self.sockets
        assert not [path for path in self.daemon.run.rglob("*") if path.name in NAMES]
        if self.is_plugged:
            assert driver_of(self.cards[1]) is None
            assert (self.cards[1] / "driver_override").read_text().strip() in ("", "(null)")

    def clean_up(self) -> None:
        """Put the machine back as it was, whatever happened; the daemon is gone by now."""
        self.held.close()
        for uuid in self.foreign:
            self.mdev_hands.do(partial(remove, MDEVS / uuid))
        if self.has_driver:
            self.driver_hands.do(lambda: unbind(self.cards[0]))
        if not self.is_plugged:
            self.slot_hands.do(lambda: _plug(self.cards[1]))
        everybody = (self.driver_hands, self.slot_hands, self.mdev_hands)
        wait_until(lambda: all(hands.is_done() for hands in everybody), KERNEL_PATIENCE)


def _plug(card: Path) -> None:
    """Find a function again that was removed; it is there when the write returns."""
    write(Path("/sys/bus/pci/rescan"), "1")
    assert (PCI / card.name).is_dir(), f"{card.name} was not found again"


VERBS = ("start", "stop", "kill", "restart")

DEEDS: tuple[tuple[Callable[[Soak], str], int], ...] = (
    (Soak.drop_or_edit, 6),
    (Soak.remove_file, 2),
    (Soak.kill_a_qemu, 3),
    (Soak.kill_the_daemon, 2),
    (Soak.start_the_daemon, 2),
    (Soak.ask, 3),
    (Soak.load_or_unload_the_driver, 2),
    (Soak.plug_or_pull, 2),
    (Soak.make_a_foreign_mdev, 1),
    (Soak.remove_a_foreign_mdev, 1),
    (Soak.begin_a_busy_remove, 1),
    (Soak.end_the_busy_remove, 1),
)
"""What can happen, and how often."""
