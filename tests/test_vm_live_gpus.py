"""GPUs come to a running VM and go from it; a daemon that dies in between loses and leaks none."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from attrs import define, evolve, field
from qemu.qmp.message import Message
from qemu.qmp.models import ErrorResponse
from qemu.qmp.qmp_client import ExecuteError
from trio.testing import MockClock, memory_stream_pair

from arcsup.devices import Backend
from arcsup.host.owned import OwnedSlice, SliceChoice
from arcsup.host.sysfs import Sysfs
from arcsup.model import ConditionType, GpuKind, GpuRequest, MiB, VmName
from arcsup.plan.lifecycle import Phase
from arcsup.spec.native import vm_to_native
from arcsup.vm import live_gpus, slices
from arcsup.vm.live_gpus import change_gpus, is_live_change, note_unplugged, wants_change
from arcsup.vm.managed import ManagedVm
from arcsup.vm.presence import verify_slices
from arcsup.vm.qmp import Qmp
from arcsup.vm.record import Launch, Record, RecordStore
from tests.small_host import BOOT, SmallHost

SMALL = GpuRequest(mdev_type="mbochs-small")
LARGE = GpuRequest(mdev_type="mbochs-large")
PORTS = tuple(f"port{number}" for number in range(4))


class DaemonDies(BaseException):
    """It is killed here: nothing after this point happens."""


@define
class World:
    """What outlives a daemon: QEMU with its devices, and the mediated devices that are made."""

    plugged: dict[str, str] = field(factory=dict)
    """Device id -> root port."""
    made: set[str] = field(factory=set)
    guest_lets_go: bool = True
    qemu_takes: bool = True
    steps_to_live: int = 10**6

    def step(self) -> None:
        self.steps_to_live -= 1
        if self.steps_to_live < 0:
            raise DaemonDies


class FakeQemu(Qmp):
    """A monitor over a world; the daemon may die before and after each of its deeds."""

    def __init__(self, world: World, vm: ManagedVm) -> None:
        super().__init__(memory_stream_pair()[0])
        self.world, self.vm = world, vm

    async def execute(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        given = arguments or {}
        if command == "qom-list":
            return [{"name": name} for name in (*PORTS, *self.world.plugged)]
        if command == "qom-get":
            return f"/machine/peripheral/x/{self.world.plugged[Path(given['path']).name]}"
        self.world.step()
        if command == "device_add":
            if not self.world.qemu_takes:
                answer = {"error": {"class": "GenericError", "desc": "vfio: no room"}}
                raise ExecuteError(ErrorResponse(answer), Message({}), Message(answer))
            self.world.plugged[given["id"]] = given["bus"]
        elif command == "device_del" and self.world.guest_lets_go:
            self.world.plugged.pop(given["id"])
            note_unplugged(self.vm, given["id"], gone=True)
        self.world.step()
        return {}


class MortalRecords(RecordStore):
    """Records of a daemon that may die before and after each write."""

    def __init__(self, directory: Path, world: World) -> None:
        super().__init__(directory)
        self.world = world

    async def save(self, record: Record) -> None:
        self.world.step()
        await super().save(record)
        self.world.step()


def choice(slot: int, request: GpuRequest) -> SliceChoice:
    uuid = f"00000000-0000-4000-8000-{slot:012}"
    return SliceChoice(Backend.MDEV, slot, "mbochs", "mbochs", request.mdev_type, uuid)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()

    async def create_slice(owned: OwnedSlice, sysfs: Sysfs) -> None:
        world.step()
        world.made.add(owned.id)
        world.step()

    async def remove_slice(owned: OwnedSlice, sysfs: Sysfs) -> str:
        assert f"gpu{owned.slot}" not in world.plugged, "it is taken from under a QEMU"
        world.step()
        world.made.discard(owned.id)
        world.step()
        return ""

    monkeypatch.setattr(live_gpus, "create_slice", create_slice)
    monkeypatch.setattr(slices, "remove_slice", remove_slice)
    monkeypatch.setattr(live_gpus, "is_ready", lambda *_, **_ways: "")
    return world


async def start(host: SmallHost, world: World, gpus: tuple[GpuRequest, ...]) -> ManagedVm:
    """A VM that runs with these GPUs, as it is after its start."""
    host.drop("web", "memory: 64\n")
    await host.plan()
    vm = host.fleet.vms[VmName("web")]
    vm.asked = vm.running = evolve(vm.asked, gpus=gpus)
    owned = []
    for slot, request in enumerate(gpus):
        it = choice(slot, request)
        path = f"/sys/bus/mdev/devices/{it.id}"
        owned.append(OwnedSlice(Backend.MDEV, slot, it.id, "mbochs", "mbochs", it.type, path))
        world.plugged[f"gpu{slot}"] = f"port{slot}"
        world.made.add(it.id)
    text = json.dumps(vm_to_native(vm.running))
    launch = Launch(BOOT, text, devices=(*world.plugged, *PORTS), started_at=1.0)
    await vm.save(host.fleet.workshop, launch=launch, slices=tuple(owned))
    vm.phase = Phase.RUNNING
    vm.qmp = FakeQemu(world, vm)
    return vm


async def change(host: SmallHost, vm: ManagedVm, gpus: tuple[GpuRequest, ...]) -> None:
    vm.asked = evolve(vm.asked, gpus=gpus)
    assert wants_change(vm)
    vm.choices = tuple(choice(slot, request) for slot, request in enumerate(gpus))
    await change_gpus(vm, host.fleet.workshop)


def check(vm: ManagedVm, world: World, count: int) -> None:
    """QEMU, the journal and the kernel agree on this many GPUs."""
    names = {f"gpu{slot}" for slot in range(count)}
    assert set(world.plugged) == names
    assert len(set(world.plugged.values())) == count, "each has a port of its own"
    assert world.made == {choice(slot, SMALL).id for slot in range(count)}
    assert {it.id for it in vm.record.slices} == world.made
    assert not any(it.left_over for it in vm.record.slices)
    assert vm.record.launch is not None
    assert set(vm.record.launch.devices) == names | set(PORTS)
    known = json.loads(vm.record.launch.text).get("gpus", [])
    assert [it["mdevType"] for it in known] == ["mbochs-small"] * count


@pytest.mark.parametrize(("before", "after"), [(0, 1), (1, 3), (2, 1), (3, 0)])
async def test_gpus_come_and_go_while_the_vm_runs(
    tmp_path: Path, world: World, before: int, after: int
) -> None:
    host = SmallHost(tmp_path)
    vm = await start(host, world, (SMALL,) * before)
    await change(host, vm, (SMALL,) * after)
    check(vm, world, after)
    assert vm.conditions[ConditionType.GPUS_CHANGED].status
    assert not wants_change(vm)


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 1)])
async def test_a_daemon_killed_at_any_step_loses_and_leaks_none(
    tmp_path: Path, world: World, before: int, after: int
) -> None:
    steps = 0
    while True:
        top = tmp_path / str(steps)
        top.mkdir()
        host = SmallHost(top)
        world.plugged, world.made, world.steps_to_live = {}, set(), 10**6
        vm = await start(host, world, (SMALL,) * before)
        records = MortalRecords(host.places.state / "vms", world)
        mortal = evolve(host.fleet.workshop, records=records)
        world.steps_to_live = steps
        vm.asked = evolve(vm.asked, gpus=(SMALL,) * after)
        choices = tuple(choice(slot, SMALL) for slot in range(after))
        try:
            vm.choices = choices
            await change_gpus(vm, mortal)
            died = False
        except DaemonDies:
            died = True
        world.steps_to_live = 10**6

        await go_on(host, vm, world, (SMALL,) * after, choices)

        check(host.fleet.vms[VmName("web")], world, after)
        if not died:
            break
        steps += 1
    assert steps > 10


async def go_on(
    host: SmallHost,
    before: ManagedVm,
    world: World,
    gpus: tuple[GpuRequest, ...],
    choices: tuple[SliceChoice, ...],
) -> None:
    """Let the next daemon take over the VM from what is on disk."""
    host.open()
    vm = host.fleet.vms[VmName("web")]
    assert vm.record.launch is not None
    known = json.loads(vm.record.launch.text).get("gpus", [])
    vm.running = evolve(before.vm, gpus=(SMALL,) * len(known))
    vm.asked = evolve(before.vm, gpus=gpus)
    vm.phase, vm.qmp = Phase.RUNNING, FakeQemu(world, vm)
    if wants_change(vm):
        vm.choices = choices
        await change_gpus(vm, host.fleet.workshop)


async def test_what_qemu_refuses_is_given_back_and_stays_pending_with_its_words(
    tmp_path: Path, world: World
) -> None:
    host = SmallHost(tmp_path)
    vm = await start(host, world, (SMALL,))
    world.qemu_takes = False
    await change(host, vm, (SMALL, SMALL))
    assert "vfio: no room" in vm.conditions[ConditionType.GPUS_CHANGED].message
    assert not wants_change(vm), "it is not tried again and again"
    assert vm.running is not None
    assert vm.running.gpus == (SMALL,)
    assert len(world.made) == len(vm.record.slices) == 1


async def test_a_guest_that_does_not_let_go_keeps_it_until_its_reset(
    tmp_path: Path, world: World, autojump_clock: MockClock
) -> None:
    host = SmallHost(tmp_path)
    vm = await start(host, world, (SMALL, SMALL))
    world.guest_lets_go = False
    await change(host, vm, (SMALL,))
    assert "the guest has not let gpu1 go" in vm.conditions[ConditionType.GPUS_CHANGED].message
    assert len(world.made) == len(vm.record.slices_in_use) == 2
    assert not wants_change(vm)

    del world.plugged["gpu1"]
    assert vm.qmp is not None
    await verify_slices(vm, host.fleet.workshop, vm.qmp)
    assert vm.order is None, "it was asked to go"
    assert note_unplugged(vm, "gpu1", gone=True)
    assert wants_change(vm)
    await change(host, vm, (SMALL,))
    check(vm, world, 1)


async def test_without_a_free_port_it_takes_a_restart(tmp_path: Path, world: World) -> None:
    host = SmallHost(tmp_path)
    vm = await start(host, world, (SMALL,) * 4)
    await change(host, vm, (SMALL,) * 5)
    assert "no PCIe port left" in vm.conditions[ConditionType.GPUS_CHANGED].message
    assert len(world.made) == len(vm.record.slices) == 4


@pytest.mark.parametrize(
    ("old", "new", "live"),
    [
        ((), (SMALL,), True),
        ((SMALL,), (SMALL, LARGE), True),
        ((SMALL, LARGE), (SMALL,), True),
        ((SMALL,), (SMALL,), False),
        ((SMALL,), (LARGE,), False),
        ((SMALL,), (LARGE, SMALL), False),
        ((SMALL, LARGE), (LARGE,), False),
        ((), (GpuRequest(kind=GpuKind.VIRTIO),), False),
        ((), (evolve(SMALL, display=True),), False),
        ((SMALL,), (evolve(SMALL, count=2),), False),
        ((), (evolve(SMALL, min_vram_mib=MiB(1)),), True),
    ],
)
def test_only_what_comes_or_goes_at_the_end_does_so_while_it_runs(
    old: tuple[GpuRequest, ...], new: tuple[GpuRequest, ...], live: bool
) -> None:
    assert is_live_change(old, new) is live
