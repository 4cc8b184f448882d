"""The keeper of virtual functions on a device tree whose driver is played."""

import errno
import json
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio
from attrs import define, field

from arcsup import virtual_functions
from arcsup.devices import VfQuota
from arcsup.errors import ArcsupError, Refused, Stuck, Terminal, Transient
from arcsup.host.inventory import observe_inventory
from arcsup.host.pci_ids import PciIds
from arcsup.host.surroundings import Surroundings
from arcsup.host.sysfs import Sysfs
from arcsup.host.vf_quotas import observe_vf_quotas
from arcsup.host.writer import comes_true, unanswered_writes
from arcsup.look import DeviceLook
from arcsup.model import MiB
from arcsup.spec.config import GpuPolicy
from arcsup.vf_journal import KeptQuota, VfJournal
from arcsup.virtual_functions import VfKeeper
from tests.trees import Tree

CARD, OTHER = "0000:41:00.0", "0000:42:00.0"
BOOT = "this boot"


@define
class Driver:
    """Makes virtual functions by links, as the kernel does; ``answers`` are what it says first."""

    tree: Tree
    answers: list[ArcsupError] = field(factory=list)
    asked: list[tuple[str, int]] = field(factory=list)
    made_all_the_same: int | None = None
    blocked: Mapping[str, trio.Event] = field(factory=dict)

    async def enable_vfs(self, address: str, count: int, sysfs: Sysfs) -> None:
        self.asked.append((address, count))
        if address in self.blocked:
            await self.blocked[address].wait()
        await trio.lowlevel.checkpoint()
        if self.answers:
            if self.made_all_the_same is not None:
                self.make(address, self.made_all_the_same)
            raise self.answers.pop(0)
        self.make(address, count)

    def make(self, address: str, count: int) -> None:
        pf = f"devices/pci0000:00/{address}"
        for link in (self.tree.root / pf).glob("virtfn*"):
            link.unlink()
        for number in range(count):
            vf = f"{address[:-1]}{number + 1}"
            if not (self.tree.root / f"devices/pci0000:00/{vf}").exists():
                self.tree.populate_pci(vf, pci_class="0x120000", ids="8086:56c0", group=10 + number)
            self.tree.link(f"{pf}/virtfn{number}", f"devices/pci0000:00/{vf}")


@define
class World:
    """A keeper, and what it has told and when it has called."""

    keeper: VfKeeper
    driver: Driver
    told: list[tuple[str, str]]
    calls: list[float]

    def tend(self, *entries: GpuPolicy, users: Mapping[str, str] | None = None) -> None:
        inventory = observe_inventory(Sysfs(self.driver.tree.root), Surroundings(PciIds(())))
        self.keeper.tend(inventory, entries, users or {})

    def count(self, address: str = CARD) -> int:
        return len(list((self.driver.tree.root / f"bus/pci/devices/{address}").glob("virtfn*")))


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    tree = Tree(tmp_path / "sys")
    for number, address in enumerate((CARD, OTHER)):
        tree.populate_pci(
            address,
            pci_class="0x120000",
            ids="8086:56c0",
            driver="xe",
            group=number,
            files={"sriov_totalvfs": "8\n"},
        )
    return tree


@asynccontextmanager
async def open_world(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, state: Path
) -> AsyncIterator[World]:
    driver = Driver(tree)
    monkeypatch.setattr(virtual_functions, "enable_vfs", driver.enable_vfs)
    told: list[tuple[str, str]] = []
    calls: list[float] = []
    async with trio.open_nursery() as nursery:
        keeper = VfKeeper(
            tree.root,
            VfJournal.load(state / "vfs.json", BOOT),
            lambda kind, message: told.append((kind, message)),
            lambda: calls.append(trio.current_time()),
            nursery,
        )
        yield World(keeper, driver, told, calls)
        nursery.cancel_scope.cancel()


async def until(condition: Callable[[], object]) -> None:
    """Wait for what tasks and threads do."""
    assert await comes_true(lambda: bool(condition()), seconds=60)


async def test_a_card_gets_its_virtual_functions_and_the_daemon_looks_again(
    tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_world(tree, monkeypatch, tmp_path) as world:
        world.tend(GpuPolicy(CARD, vfs=3))
        why = {CARD: "its virtual functions are being changed from 0 to 3"}
        assert world.keeper.busy == why, "nothing of it is given meanwhile"
        world.tend(GpuPolicy(CARD, vfs=3))
        await until(lambda: world.calls)

        assert world.driver.asked == [(CARD, 3)], "once"
        assert world.count() == 3
        assert world.keeper.busy == {}
        assert world.told == [("vfs-set", f"{CARD} has 3 virtual functions now")]
        world.tend(GpuPolicy(CARD, vfs=3))
        assert len(world.driver.asked) == 1
    kept = json.loads((tmp_path / "vfs.json").read_text())
    assert kept == {"bootId": BOOT, "cards": {CARD: [3]}, "quotas": {}}


async def test_the_journal_says_so_before_anything_is_written(
    tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_world(tree, monkeypatch, tmp_path) as world:
        world.driver.blocked = {CARD: trio.Event()}
        world.tend(GpuPolicy(CARD, vfs=3))
        await until(lambda: world.driver.asked)
        assert json.loads((tmp_path / "vfs.json").read_text())["cards"] == {CARD: [3, 8]}
    # The daemon ended there, and the kernel made them all the same: they are ours.
    async with open_world(tree, monkeypatch, tmp_path) as world:
        world.driver.make(CARD, 3)
        world.tend(GpuPolicy(CARD, vfs=0))
        await until(lambda: not world.count())


async def test_a_kernel_that_does_not_answer_holds_up_no_other_card(
    tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_world(tree, monkeypatch, tmp_path) as world:
        world.driver.blocked = {CARD: trio.Event()}
        world.tend(GpuPolicy("*", vfs=2))
        await until(lambda: world.count(OTHER))
        assert world.count(CARD) == 0
        assert CARD in world.keeper.busy


async def test_what_somebody_else_enabled_is_left_and_said_once(
    tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "vfs.json").write_text(json.dumps({"bootId": "another", "cards": {CARD: [2]}}))
    async with open_world(tree, monkeypatch, tmp_path) as world:
        world.driver.make(CARD, 2)
        for _ in range(2):
            world.tend(GpuPolicy(CARD, vfs=4))
        because = f"{CARD}: it has 2 virtual functions, not 4, and not by arcsup"
        assert world.told == [("vfs-left", because)]
        assert world.keeper.findings() == [because]
        assert world.driver.asked == []
        world.tend(GpuPolicy(CARD))
        assert world.keeper.findings() == []


async def test_what_went_meanwhile_is_nobodys_when_it_comes_again(
    tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "vfs.json").write_text(json.dumps({"bootId": BOOT, "cards": {CARD: [2]}}))
    async with open_world(tree, monkeypatch, tmp_path) as world:
        world.tend(GpuPolicy(CARD))
        world.driver.make(CARD, 2)
        world.tend(GpuPolicy(CARD, vfs=4))
        assert world.driver.asked == []


async def test_a_kernel_that_has_not_answered_yet_makes_nobody_forget_whose_they_are(
    tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = KeptQuota(QUOTA, {0: VfQuota(vram_mib=MiB(4096))})
    async with open_world(tree, monkeypatch, tmp_path) as world:
        await world.keeper.journal.note(CARD, 2)
        await world.keeper.journal.note_quota(CARD, kept)
        monkeypatch.setattr("arcsup.look.PATIENCE", 0)
        world.keeper.tend(await DeviceLook(tree.root).observe(), (), {})

        assert world.keeper.journal.counts == {CARD: (2,)}
        assert world.keeper.journal.quotas == {CARD: kept}


@pytest.mark.parametrize("count", [3, 5])
async def test_what_a_boot_service_enables_between_look_and_deed_is_never_arcsups(
    tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr(virtual_functions, "RETRY_SECONDS", 0.05)
    async with open_world(tree, monkeypatch, tmp_path) as world:
        world.tend(GpuPolicy(CARD, vfs=3))
        world.driver.make(CARD, count)
        await until(lambda: world.told)
        meanwhile = f"it had 0 virtual functions when it was looked at, and has {count} now"
        assert world.told == [("vfs-left", f"{CARD}: {meanwhile}")]

        def tended() -> bool:
            world.tend(GpuPolicy(CARD, vfs=0))
            return world.keeper.findings()[0].endswith("not by arcsup")

        await until(tended)
        assert world.driver.asked == []
        assert world.keeper.journal.counts == {}


async def test_what_the_kernel_makes_late_is_arcsups_though_the_look_did_not_see_it(
    tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(virtual_functions, "RETRY_SECONDS", 0.05)
    async with open_world(tree, monkeypatch, tmp_path) as world:
        world.driver.answers = [Stuck("no answer")]
        world.tend(GpuPolicy(CARD, vfs=3))
        await until(lambda: len(world.calls) == 2)
        seen = await DeviceLook(tree.root).observe()
        world.driver.make(CARD, 3)
        world.keeper.tend(seen, (GpuPolicy(CARD, vfs=4),), {})

        def tended() -> bool:
            world.tend(GpuPolicy(CARD, vfs=4))
            return world.count() == 4

        await until(tended)
        assert world.driver.asked == [(CARD, 3), (CARD, 4)]


@pytest.mark.parametrize(
    "error", [Transient("busy"), Refused("in use"), Stuck("no answer")], ids=str
)
async def test_what_may_get_better_is_tried_again_after_a_while(
    tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: ArcsupError
) -> None:
    monkeypatch.setattr(virtual_functions, "RETRY_SECONDS", 0.05)
    async with open_world(tree, monkeypatch, tmp_path) as world:
        world.driver.answers = [error]
        world.tend(GpuPolicy(CARD, vfs=3))
        await until(lambda: world.told)
        assert world.told[0] == ("vfs-left", f"{CARD}: {error.message}")
        assert world.keeper.busy[CARD].endswith(f"could not be enabled: {error.message}")

        def tended() -> bool:
            world.tend(GpuPolicy(CARD, vfs=3))
            return world.count() == 3 and not world.keeper.findings()

        await until(tended)
        assert world.keeper.busy == {}


async def test_what_is_hopeless_is_tried_again_only_when_the_operator_says_so(
    tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_world(tree, monkeypatch, tmp_path) as world:
        world.driver.answers = [Terminal("it can have 8", "lower the number")]
        world.tend(GpuPolicy(CARD, vfs=30))
        await until(lambda: world.told)
        world.tend(GpuPolicy(CARD, vfs=30))
        assert len(world.driver.asked) == 1
        assert world.keeper.findings() == [f"{CARD}: it can have 8 (lower the number)"]
        world.keeper.retry()
        world.tend(GpuPolicy(CARD, vfs=3))
        await until(lambda: world.count() == 3)


async def test_a_change_that_got_only_half_way_is_tried_again(
    tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(virtual_functions, "RETRY_SECONDS", 0.05)
    (tmp_path / "vfs.json").write_text(json.dumps({"bootId": BOOT, "cards": {CARD: [2]}}))
    async with open_world(tree, monkeypatch, tmp_path) as world:
        world.driver.make(CARD, 2)
        world.driver.answers, world.driver.made_all_the_same = [Transient("busy")], 0

        def tended() -> bool:
            world.tend(GpuPolicy(CARD, vfs=4))
            return world.count() == 4

        await until(tended)
        assert world.driver.asked == [(CARD, 4), (CARD, 4)]


async def test_a_card_that_makes_fewer_is_not_cycled_again_and_again(
    tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_world(tree, monkeypatch, tmp_path) as world:
        world.driver.answers, world.driver.made_all_the_same = [Transient("2 were made")], 2
        world.tend(GpuPolicy(CARD, vfs=3))
        await until(lambda: world.told)
        world.tend(GpuPolicy(CARD, vfs=3))
        assert world.driver.asked == [(CARD, 3)]
        assert world.keeper.busy == {}, "those that are there can be given"
        world.tend(GpuPolicy(CARD, vfs=0))
        await until(lambda: not world.count())


QUOTA = VfQuota(vram_mib=MiB(2048), exec_quantum_ms=20)
FAIR = {"vram_quota": 4 << 30, "exec_quantum_ms": 0, "preempt_timeout_us": 0}


def make_quota_files(tree: Tree) -> None:
    """Make what xe has for each VF that the card can have."""
    for number in range(1, 9):
        for name, value in FAIR.items():
            folder = f"devices/pci0000:00/{CARD}/sriov_admin/vf{number}/profile"
            tree.write(f"{folder}/{name}", f"{value}\n")


async def quotas(tree: Tree) -> dict[int, tuple[int | None, int | None]]:
    seen = await observe_vf_quotas(Sysfs(tree.root), CARD)
    return {number: (it.vram_mib, it.exec_quantum_ms) for number, it in seen.items()}


async def test_functions_get_their_quotas_and_the_former_ones_when_they_are_asked_for_no_more(
    tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_quota_files(tree)
    wanted = GpuPolicy(CARD, vfs=2, vf_quota=QUOTA)

    async with open_world(tree, monkeypatch, tmp_path) as world:
        world.tend(wanted)
        await until(lambda: len(world.calls) == 1)
        world.tend(wanted)
        assert world.keeper.busy == {CARD: "what its virtual functions may use is being set"}
        await until(lambda: len(world.calls) == 2)
        assert await quotas(tree) == {0: (2048, 20), 1: (2048, 20)}
        world.tend(wanted)
        assert world.keeper.busy == {}
        assert world.told[1:] == [
            ("vf-quota-set", f"{CARD}: its virtual functions have the quotas asked for")
        ]
    # The next daemon knows of it, and what was before.
    async with open_world(tree, monkeypatch, tmp_path) as world:
        world.tend(wanted)
        assert world.keeper.busy == {}
        world.tend(GpuPolicy(CARD, vfs=2, vf_quota=VfQuota(exec_quantum_ms=5)))
        await until(lambda: len(world.calls) == 1)
        assert await quotas(tree) == {0: (4096, 5), 1: (4096, 5)}, (
            "what is not asked for is as it was"
        )
        world.tend(GpuPolicy(CARD, vfs=2))
        await until(lambda: len(world.calls) == 2)
        assert await quotas(tree) == {0: (4096, 0), 1: (4096, 0)}
    assert json.loads((tmp_path / "vfs.json").read_text())["quotas"] == {}


async def test_an_excluded_function_keeps_its_own_quota_until_it_is_excluded_no_more(
    tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_quota_files(tree)
    wanted = GpuPolicy(CARD, vfs=2, vf_quota=QUOTA)
    excluded = GpuPolicy(f"{CARD[:-1]}2", exclude=True)
    async with open_world(tree, monkeypatch, tmp_path) as world:

        async def settle(*entries: GpuPolicy) -> dict[int, tuple[int | None, int | None]]:
            for _ in range(3):
                world.tend(*entries)
                await until(lambda: not world.keeper.busy)
            return await quotas(tree)

        assert await settle(wanted, excluded) == {0: (2048, 20), 1: (4096, 0)}
        assert await settle(wanted) == {0: (2048, 20), 1: (2048, 20)}
        assert await settle(GpuPolicy("10de"), excluded) == {0: (4096, 0), 1: (2048, 20)}


async def test_quotas_that_a_killed_daemon_had_begun_are_set_or_put_back_by_the_next(
    tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_quota_files(tree)
    former = {"vram_mib": 4096, "exec_quantum_ms": 0, "preempt_timeout_us": None}
    begun = {"wanted": None, "former": {"0": former, "1": former}}
    kept = {"bootId": BOOT, "cards": {CARD: [2]}, "quotas": {CARD: begun}}
    (tmp_path / "vfs.json").write_text(json.dumps(kept))
    path = f"devices/pci0000:00/{CARD}/sriov_admin/vf1/profile"
    tree.write(f"{path}/vram_quota", f"{1 << 30}\n")

    async with open_world(tree, monkeypatch, tmp_path) as world:
        world.driver.make(CARD, 2)
        world.tend(GpuPolicy(CARD, vfs=2))
        await until(lambda: world.calls)

        assert await quotas(tree) == {0: (4096, 0), 1: (4096, 0)}


async def test_functions_that_are_taken_away_have_their_former_turns_again(
    tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_quota_files(tree)
    async with open_world(tree, monkeypatch, tmp_path) as world:
        for policy in (GpuPolicy(CARD, vfs=2, vf_quota=QUOTA), GpuPolicy(CARD, vfs=0)):
            for _ in range(2):
                world.tend(policy)
                await until(lambda: not world.keeper.busy)
        assert world.count() == 0
        folder = tree.root / f"devices/pci0000:00/{CARD}/sriov_admin/vf1/profile"
        assert (folder / "exec_quantum_ms").read_text() == "0"
        assert world.keeper.journal.quotas == {}


async def test_a_card_without_quotas_says_so_and_its_functions_can_be_given(
    tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_world(tree, monkeypatch, tmp_path) as world:
        world.driver.make(CARD, 2)
        for _ in range(2):
            world.tend(GpuPolicy(CARD, vf_quota=QUOTA))
            await until(lambda: not world.keeper.busy)

        (finding,) = world.keeper.findings()
        assert "its driver has no vram_quota" in finding
        assert "Linux" in finding


async def test_the_daemon_ends_while_a_driver_does_not_tell_a_quota(
    tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_quota_files(tree)
    quota = tree.root / f"devices/pci0000:00/{CARD}/sriov_admin/vf1/profile/vram_quota"
    quota.unlink()
    os.mkfifo(quota)
    async with AsyncExitStack() as held, open_world(tree, monkeypatch, tmp_path) as world:

        def is_read() -> bool:
            """Tell whether somebody reads the pipe, and leave him waiting."""
            with suppress(OSError):
                held.callback(os.close, os.open(quota, os.O_WRONLY | os.O_NONBLOCK))
                return True
            return False

        world.driver.make(CARD, 2)
        world.tend(GpuPolicy(CARD, vf_quota=QUOTA))
        await until(is_read)
    assert await comes_true(lambda: str(quota) not in unanswered_writes(), seconds=60)


@pytest.mark.parametrize(
    "error",
    [OSError(errno.EMFILE, "Too many open files"), RuntimeError("can't start new thread")],
    ids=repr,
)
async def test_a_card_is_tried_again_when_the_host_had_nothing_left_for_it(
    tree: Tree,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    error: Exception,
) -> None:
    monkeypatch.setattr(virtual_functions, "RETRY_SECONDS", 0.01)
    async with open_world(tree, monkeypatch, tmp_path) as world:
        failures = [error]
        enable = world.driver.enable_vfs

        async def fail_once(address: str, count: int, sysfs: Sysfs) -> None:
            if failures:
                raise failures.pop()
            await enable(address, count, sysfs)

        monkeypatch.setattr(virtual_functions, "enable_vfs", fail_once)
        wanted = GpuPolicy(CARD, vfs=4)
        world.tend(wanted)
        await until(lambda: world.keeper.findings())
        assert str(error) in world.keeper.findings()[0]
        await until(lambda: world.calls)

        world.tend(wanted)
        await until(lambda: world.count() == 4)
        await until(lambda: not world.keeper.findings())
