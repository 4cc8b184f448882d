"""Thousands of random steps on a host in memory: whatever happens, all becomes as it is wanted.

``tests/lab/test_soak.py`` does the like on real devices. ARCSUP_SOAK multiplies the number of runs.
"""

import os
import tempfile
from pathlib import Path
from unittest.mock import patch
from uuid import UUID

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from arcsup.devices import CapacityRule, Inventory
from arcsup.model import VmName
from arcsup.plan.lifecycle import Phase
from arcsup.plan.plan import Intent, judge, plan
from tests.sim_daemon import BOOT, Clock, Disk, SimDaemon
from tests.sim_kernel import DaemonKilled, SimKernel
from tests.slow_driver import Kind, Made, SlowDriver
from tests.small_host import places_in

RUNS = 25 * int(os.environ.get("ARCSUP_SOAK", "1"))
STEPS = 100

PASSES = 60
"""Passes within which all must be as it is wanted; some slices are quarantined and freed again."""

CARDS = ("0000:41:00.0", "0000:61:00.0", "mbochs")
NAMES = tuple(VmName(f"vm{number}") for number in range(5))
REQUESTS = (
    "{}",
    "{maxVRam: 1GiB}",
    "{maxVRam: 1GiB}",
    "{minVRam: 2GiB}",
    "{maxVRam: 1GiB}",
    "{mdevType: nvidia-2}",
    "{count: 2, maxVRam: 2GiB}",
    "{parent: '0000:61:00.0', optional: true}",
)


def make_drivers() -> dict[str, SlowDriver]:
    """A card of one size at a time with VFs, one of units, and one that mixes."""
    kinds = tuple(
        Kind(f"nvidia-{number}", f"GRID X-{size}Q", size * 1024, size, 8 // size)
        for number, size in enumerate((1, 2, 4))
    )
    vfs = tuple(f"0000:41:00.{number}" for number in range(1, 5))
    return {
        CARDS[0]: SlowDriver(CARDS[0], CapacityRule.SAME_SIZE, kinds, 8, vfs),
        CARDS[1]: SlowDriver(CARDS[1], CapacityRule.SAME_TYPE, kinds, 8),
        CARDS[2]: SlowDriver(CARDS[2], CapacityRule.ANY, kinds, 6, vendor=""),
    }


class Host(RuleBasedStateMachine):
    """A host, its operator, and a daemon that may die at any point."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(prefix="arc", dir="/tmp")
        top = Path(self.folder.name)
        self.places = places_in(top)
        self.places.vms.mkdir()
        self.clock = Clock()
        self.kernel = SimKernel(make_drivers(), lambda: self.disk.owned())
        self.disk = Disk(self.kernel.point)
        self.daemon: SimDaemon | None = None
        self.files: set[VmName] = set()
        self.written = 0
        self.strangers = 0

    @initialize(
        pulled=st.sets(st.sampled_from(CARDS), max_size=2),
        requests=st.lists(st.sampled_from(REQUESTS), min_size=2, max_size=len(NAMES)),
    )
    def begin(self, pulled: set[str], requests: list[str]) -> None:
        self.kernel.plugged = set(CARDS) - pulled
        self.start()
        for name, request in zip(NAMES, requests, strict=False):
            self.write_a_file(name, [request], "")

    # --- the daemon -------------------------------------------------------------------------

    def start(self) -> None:
        """Start a daemon; one that dies over it is gone."""
        self.kernel.dead = False
        self.daemon = SimDaemon(self.places, self.disk, self.kernel, self.clock)
        try:
            self.daemon.start()
        except DaemonKilled:
            self.daemon = None

    def let_work(self) -> None:
        """Let the daemon see what has happened and make a pass."""
        if self.daemon is None:
            return
        try:
            self.daemon.notice_ends()
            self.daemon.make_pass()
        except DaemonKilled:
            self.daemon = None

    @rule(seconds=st.sampled_from([0.0, 0.1, 1.0, 30.0, 300.0]))
    def time_goes_by(self, seconds: float) -> None:
        self.clock.now += seconds
        self.let_work()

    @precondition(lambda self: self.daemon is not None)
    @rule(points=st.integers(0, 12))
    def the_daemon_is_about_to_die(self, points: int) -> None:
        self.kernel.points_left = points

    @precondition(lambda self: self.daemon is not None)
    @rule()
    def the_daemon_is_killed(self) -> None:
        self.daemon = None

    # Twice, because a host without a daemon is a dull one.

    @precondition(lambda self: self.daemon is None)
    @rule(points=st.integers(0, 6))
    def the_daemon_is_started_and_dies_soon(self, points: int) -> None:
        self.kernel.points_left = points
        self.start()
        self.let_work()

    @precondition(lambda self: self.daemon is None)
    @rule()
    def the_daemon_is_started(self) -> None:
        self.kernel.points_left = None
        self.start()
        self.let_work()

    @precondition(lambda self: self.daemon is None)
    @rule()
    def the_daemon_is_started_too(self) -> None:
        self.the_daemon_is_started()

    # --- files and operators ----------------------------------------------------------------

    @rule(
        name=st.sampled_from(NAMES),
        request=st.lists(st.sampled_from(REQUESTS), max_size=2),
        autostart=st.sampled_from(["", "", "autostart: false\n"]),
    )
    def write_a_file(self, name: VmName, request: list[str], autostart: str) -> None:
        file = self.places.vms / f"{name}.yaml"
        restart = "restart: {policy: always, burst: 1000}\n"
        file.write_text(f"memory: 64\n{restart}{autostart}gpus: [{', '.join(request)}]\n")
        self.written += 1
        os.utime(file, (self.written, self.written))
        self.files.add(name)
        self.let_work()

    @precondition(lambda self: self.files)
    @rule(data=st.data())
    def remove_a_file(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.files)))
        (self.places.vms / f"{name}.yaml").unlink()
        self.files.remove(name)
        self.let_work()

    @rule(
        name=st.sampled_from(NAMES),
        intent=st.sampled_from([Intent.RUN, Intent.STOP, Intent.KILL, Intent.RESTART]),
    )
    def ask(self, name: VmName, intent: Intent) -> None:
        if self.daemon is None or name not in self.daemon.fleet.vms:
            return
        try:
            self.daemon.ask(name, intent)
        except DaemonKilled:
            self.daemon = None
        self.let_work()

    # --- devices and processes --------------------------------------------------------------

    @rule(card=st.sampled_from(CARDS))
    def plug_or_pull(self, card: str) -> None:
        if card in self.kernel.plugged:
            self.kernel.pull(card)
        elif not self.kernel.drivers[card].made:  # The slot is free once the card is gone.
            self.kernel.plugged.add(card)
        self.let_work()

    @precondition(lambda self: self.kernel.qemus)
    @rule(data=st.data())
    def kill_a_qemu(self, data: st.DataObject) -> None:
        self.kernel.end(data.draw(st.sampled_from(sorted(self.kernel.qemus))))
        self.let_work()

    @rule(card=st.sampled_from(CARDS), number=st.integers(0, 2), parent=st.integers(0, 3))
    def somebody_makes_a_device(self, card: str, number: int, parent: int) -> None:
        driver = self.kernel.drivers[card]
        place = driver.parents[parent % len(driver.parents)]
        if card not in self.kernel.plugged or not driver.can_make(driver.kinds[number], place):
            return
        self.strangers += 1
        name = str(UUID(int=self.strangers))
        driver.make(Made(name, driver.kinds[number], place, None, ours=False))
        self.kernel.foreign.add(name)
        self.let_work()

    @precondition(lambda self: self.kernel.foreign - set(self.kernel.holders))
    @rule(data=st.data())
    def somebody_removes_theirs(self, data: st.DataObject) -> None:
        free = sorted(self.kernel.foreign - set(self.kernel.holders))
        self.kernel._vanish(data.draw(st.sampled_from(free)))
        self.let_work()

    @precondition(lambda self: self.kernel.ids() - set(self.kernel.holders))
    @rule(data=st.data())
    def somebody_opens_a_device(self, data: st.DataObject) -> None:
        free = sorted(self.kernel.ids() - set(self.kernel.holders))
        self.kernel.holders[data.draw(st.sampled_from(free))] = 0
        self.let_work()

    @rule()
    def everybody_closes_theirs(self) -> None:
        for name in [name for name, pid in self.kernel.holders.items() if pid == 0]:
            self.kernel.let_go(name)
        self.let_work()

    # --- what is always true ----------------------------------------------------------------

    @invariant()
    def every_device_is_foreign_or_in_the_journal(self) -> None:
        assert self.kernel.ids() <= self.kernel.foreign | self.disk.owned()

    @invariant()
    def no_vm_runs_twice_or_without_its_devices(self) -> None:
        names = [qemu.vm for qemu in self.kernel.qemus.values()]
        assert len(set(names)) == len(names)
        for qemu in self.kernel.qemus.values():
            assert all(self.kernel.holders[name] == qemu.pid for name in qemu.slices)

    # --- the end ----------------------------------------------------------------------------

    def converge(self) -> None:
        """Let nothing more happen, and the daemon work until it has nothing to do."""
        self.kernel.points_left = None
        self.everybody_closes_theirs()
        if self.daemon is None:
            self.start()
        for _ in range(PASSES):
            self.clock.now += 31.0
            assert self.daemon is not None
            for name in self.daemon.fleet.allocation.quarantined():
                self.daemon.fleet.allocation.lift_quarantine(name)
            self.let_work()
            assert self.daemon is not None
            view = self.daemon.fleet.look()
            if not plan(view.wanted, view.seen, view.host, view.now):
                return
        raise AssertionError("it never comes to rest")

    def check(self) -> None:
        """Each VM that can run runs, the others say why, and nobody has what he does not use."""
        assert self.daemon is not None
        view = self.daemon.fleet.look()
        assert set(view.wanted) == self.files
        running = set()
        for name in self.files:
            verdict = judge(name, view.wanted, view.seen, view.host, view.now)
            is_up = view.seen[name].phase is Phase.RUNNING
            assert is_up is (verdict.up and not verdict.blocked), verdict
            if not is_up and verdict.up:
                assert view.seen[name].awaits, verdict
            if is_up:
                running.add(name)
        assert {qemu.vm for qemu in self.kernel.qemus.values()} == running
        used = {name for qemu in self.kernel.qemus.values() for name in qemu.slices}
        assert self.kernel.ids() == used | self.kernel.foreign
        assert not self.kernel.going, "a VM runs on with a device that was pulled"
        # A VM that waits remembers where it was, until it gets something else.
        for name, record in self.disk.kept.items():
            for owned in record.slices:
                assert owned.id in used or (name not in running and view.seen[name].awaits)

    def teardown(self) -> None:
        try:
            self.converge()
            self.check()
            for name in list(self.files):
                (self.places.vms / f"{name}.yaml").unlink()
            self.files.clear()
            self.converge()
            self.check()
            assert not self.disk.kept
            assert self.kernel.ids() == self.kernel.foreign
        finally:
            self.folder.cleanup()


TestThatWhateverHappensAllBecomesAsItIsWanted = Host.TestCase
TestThatWhateverHappensAllBecomesAsItIsWanted.settings = settings(
    max_examples=RUNS,
    stateful_step_count=STEPS,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


def test_a_vm_that_lacks_one_device_gives_back_the_other() -> None:
    host = Host()
    host.begin({CARDS[1], CARDS[2]}, [])
    host.write_a_file(NAMES[0], ["{maxVRam: 1GiB}"], "")
    assert len(host.kernel.ids()) == 1
    host.write_a_file(NAMES[0], ["{maxVRam: 1GiB}", "{mdevType: nope}"], "")
    host.ask(NAMES[0], Intent.RESTART)
    host.time_goes_by(1.0)
    assert not host.kernel.ids()
    host.teardown()


def test_a_vms_own_slice_is_not_in_the_way_of_another_size() -> None:
    host = Host()
    host.begin({CARDS[1], CARDS[2]}, [])
    host.write_a_file(NAMES[0], ["{maxVRam: 1GiB}"], "")
    # On a card of one size at a time.
    host.write_a_file(NAMES[0], ["{minVRam: 2GiB}"], "")
    host.ask(NAMES[0], Intent.RESTART)
    for _ in range(3):
        host.time_goes_by(1.0)
    (qemu,) = host.kernel.qemus.values()
    assert host.kernel.ids() == set(qemu.slices)
    host.teardown()


def test_a_vm_that_is_asked_for_while_the_devices_are_looked_at_gets_its_own() -> None:
    host = Host()
    host.begin(set(), [])
    host.write_a_file(NAMES[0], ["{}"], "autostart: false\n")
    assert host.daemon is not None
    daemon, look = host.daemon, host.daemon.fleet.allocation.look
    observe = look.observe

    async def observe_slowly() -> Inventory:
        vm = daemon.fleet.vms[NAMES[0]]
        await vm.save(daemon.fleet.workshop, intent=Intent.RUN, intent_boot=BOOT)
        return await observe()

    with patch.object(look, "observe", observe_slowly):
        host.let_work()

    (qemu,) = host.kernel.qemus.values()
    assert len(qemu.slices) == 1
    host.teardown()
