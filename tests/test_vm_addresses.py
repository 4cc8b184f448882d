"""A device whose memory has no address in the guest is told of: the guest cannot use it."""

import json
import math
from pathlib import Path

import pytest
import trio
from attrs import evolve
from trio.testing import MockClock

from arcsup.devices import Backend
from arcsup.host.owned import OwnedSlice
from arcsup.model import VmName
from arcsup.plan.lifecycle import Phase
from arcsup.spec.native import vm_to_native
from arcsup.vm.addresses import (
    CONDITION,
    LOOK,
    PATIENCE,
    find_unaddressed,
    parse_functions,
    watch_addresses,
)
from arcsup.vm.managed import ManagedVm
from arcsup.vm.qmp import NonsenseError
from arcsup.vm.record import Launch
from tests.qmp_answers import Answers
from tests.small_host import BOOT, SmallHost, small_host_with_web

UUID = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001"
SLICE = OwnedSlice(Backend.MDEV, 0, UUID, "mbochs", "mbochs", "mbochs-small", f"/sys/{UUID}")
ECAM = 0xB0000000

BARE = """\
00000000b0100010: 0xfe800000 0x00000000 0x0000000c 0x00000000
00000000b0100020: 0x00000000 0x00000000
"""
WRITTEN = BARE.replace("0x0000000c 0x00000000", "0x0000000c 0x00000001")


def monitor(*, silent: bool = True, registers: str = BARE) -> Answers:
    """Return a QEMU with a device that has a BAR of 256 MiB; ``silent``: it answers nowhere."""
    regions = [
        {"bar": 0, "type": "memory", "size": 4096, "address": 0xFE800000, "mem_type_64": False},
        {"bar": 1, "type": "io", "size": 128, "address": -1},
        {
            "bar": 2,
            "type": "memory",
            "size": 256 * 2**20,
            "address": -1 if silent else 2**32,
            "mem_type_64": True,
        },
        {"bar": 6, "type": "memory", "size": 65536, "address": -1},
    ]
    gpu = {"qdev_id": "gpu0", "bus": 1, "slot": 0, "function": 0, "regions": regions}
    port = {"qdev_id": "port0", "bus": 0, "slot": 25, "function": 0, "regions": []}
    bridge = {"bus": {"number": 0, "secondary": 1}, "devices": [gpu]}
    pci = [{"bus": 0, "devices": [port | {"pci_bridge": bridge}]}]
    return Answers(query_pci=pci, qom_get=ECAM, human_monitor_command=registers)


@pytest.mark.parametrize(
    ("qmp", "bare"),
    [
        (monitor(silent=False), {}),
        (monitor(registers=WRITTEN), {}),
        (monitor(), {"gpu0": "no address for BAR 2 of 256 MiB"}),
        (monitor(registers="Cannot access memory"), {"gpu0": "no address for BAR 2 of 256 MiB"}),
    ],
    ids=["it answers", "no driver has switched it on", "nothing is written", "no registers"],
)
async def test_an_address_that_is_written_counts_though_no_driver_has_switched_it_on(
    qmp: Answers, bare: dict[str, str]
) -> None:
    assert await find_unaddressed(["gpu0"], qmp) == bare


async def test_a_device_behind_a_bridge_that_nobody_has_numbered_is_not_usable_yet() -> None:
    qmp = Answers(query_pci=[{"bus": 0, "devices": []}])
    assert await find_unaddressed(["gpu0"], qmp) == {"gpu0": "the guest has not looked for it"}


@pytest.mark.parametrize(
    "answer",
    [
        None,
        [None],
        [{"devices": [{}]}],
        [{"devices": [{"pci_bridge": {"devices": 1}}]}],
        [{"devices": [{"qdev_id": "a", "bus": -1, "slot": 0, "function": 0, "regions": []}]}],
    ],
)
def test_an_answer_that_no_qemu_gives_is_nonsense(answer: object) -> None:
    with pytest.raises(NonsenseError):
        parse_functions(answer)


def test_an_answer_without_end_is_read_to_an_end() -> None:
    device: dict[str, object] = {"qdev_id": "", "bus": 0, "slot": 0, "function": 0, "regions": []}
    for depth in range(5000):
        inner = {"pci_bridge": {"devices": [device]}, "qdev_id": str(depth)}
        device = {"bus": 0, "slot": 0, "function": 0, "regions": [], **inner}
    assert len(parse_functions([{"devices": [device]}])) <= 1024


@pytest.fixture
async def host(tmp_path: Path) -> SmallHost:
    return await small_host_with_web(tmp_path, "gpus: [{mdevType: mbochs-small}]\n")


@pytest.fixture
def vm(host: SmallHost) -> ManagedVm:
    """A VM that runs with one slice."""
    vm = host.fleet.vms[VmName("web")]
    launch = Launch(BOOT, json.dumps(vm_to_native(vm.vm)), devices=("gpu0",))
    vm.record = evolve(vm.record, launch=launch, slices=(SLICE,))
    vm.running, vm.phase = vm.vm, Phase.RUNNING
    return vm


async def test_a_device_without_addresses_is_told_after_a_while_and_when_it_has_them(
    host: SmallHost, vm: ManagedVm, autojump_clock: MockClock
) -> None:
    vm.qmp = monitor()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch_addresses, vm, host.fleet.workshop)
        await trio.sleep(PATIENCE - 1)
        assert CONDITION not in vm.conditions
        await trio.sleep(PATIENCE)
        told = vm.conditions[CONDITION]
        assert not told.status
        assert "gpu0: no address for BAR 2 of 256 MiB" in told.message
        assert "arcsup restart web" in told.message
        vm.qmp = None
        await trio.sleep(PATIENCE)
        assert not vm.conditions[CONDITION].status
        vm.qmp = monitor(registers=WRITTEN)
        await trio.sleep(PATIENCE)
        assert vm.conditions[CONDITION].status
        nursery.cancel_scope.cancel()
    assert host.told == ["device-unusable", "device-usable"]


async def test_a_device_that_is_plugged_is_looked_at_at_once(
    host: SmallHost, vm: ManagedVm, autojump_clock: MockClock
) -> None:
    vm.record = evolve(vm.record, slices=())
    vm.qmp = monitor()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch_addresses, vm, host.fleet.workshop)
        await trio.sleep(LOOK + LOOK / 4)
        vm.record = evolve(vm.record, slices=(SLICE,))
        vm.plugged.set()
        vm.plugged = trio.Event()
        await trio.sleep(LOOK * 3 / 4 - 1)
        assert not vm.conditions[CONDITION].status
        nursery.cancel_scope.cancel()


async def test_a_monitor_that_talks_nonsense_ends_nothing(
    host: SmallHost, vm: ManagedVm, autojump_clock: MockClock
) -> None:
    vm.qmp = Answers(query_pci={"no": "list"})
    with trio.move_on_after(LOOK * 2):
        await watch_addresses(vm, host.fleet.workshop)
        await trio.sleep(math.inf)
    assert host.told == []
