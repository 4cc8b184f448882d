"""What an operator's commands leave in the record."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

import arcsup.operator
from arcsup.control.events import EventLog
from arcsup.control.metrics import Metrics
from arcsup.errors import TimedOut
from arcsup.events.dirty import Dirty
from arcsup.fleet import View
from arcsup.model import State, VmName, VmStatus
from arcsup.operator import Operator
from arcsup.places import Places
from arcsup.plan.lifecycle import Phase
from arcsup.plan.plan import Intent
from arcsup.reconcile import Reconciler
from arcsup.show import show_vm
from arcsup.vf_journal import VfJournal
from arcsup.virtual_functions import VfKeeper
from arcsup.vm.managed import ManagedVm, StopOrder
from arcsup.vm.record import Launch
from arcsup.vm.supervise import resume_vm
from tests.small_host import BOOT, SmallHost

WEB = VmName("web")


@pytest.fixture
async def host(tmp_path: Path) -> SmallHost:
    host = SmallHost(tmp_path)
    host.drop("web", "memory: 64\n")
    await host.fleet.read_files()
    return host


@asynccontextmanager
async def operating(host: SmallHost) -> AsyncIterator[Operator]:
    async with trio.open_nursery() as nursery:
        journal = VfJournal.load(host.places.state / "vfs.json", BOOT)
        keeper = VfKeeper(host.places.sysfs, journal, lambda *_: None, lambda: None, nursery)
        reconciler = Reconciler(host.fleet, Dirty(), Metrics("0"), nursery, 30.0, keeper)
        yield Operator(host.fleet, reconciler, EventLog(), Metrics("0"))


async def ask_to_stop_and_save(host: SmallHost) -> ManagedVm:
    """Return the VM up, with `stop --save` in its record as the operator has just asked for it."""
    vm = host.fleet.vms[WEB]
    vm.phase, vm.running = Phase.RUNNING, vm.vm
    await vm.save(host.fleet.workshop, intent=Intent.STOP, intent_boot=BOOT, save=True)
    return vm


async def test_a_start_before_the_stop_began_takes_the_wish_to_save_back(host: SmallHost) -> None:
    vm = await ask_to_stop_and_save(host)

    async with operating(host) as operator:
        await operator.start("web")
        await operator.stop("web")

    assert (vm.record.intent, vm.record.save) == (Intent.STOP, False)


async def test_a_start_after_the_stop_began_leaves_it_to_save(host: SmallHost) -> None:
    vm = await ask_to_stop_and_save(host)
    vm.give_order(StopOrder("the operator asked to stop it"))

    async with operating(host) as operator:
        await operator.start("web")

    assert (vm.record.intent, vm.record.save) == (Intent.RESTART, True)


async def test_who_asked_to_save_need_not_say_it_again(host: SmallHost) -> None:
    vm = await ask_to_stop_and_save(host)

    async with operating(host) as operator:
        await operator.stop("web")

    assert vm.record.save


async def test_who_waits_for_one_vm_looks_at_no_other(
    host: SmallHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.drop("other", "memory: 64\n")
    await host.fleet.read_files()
    shown = set()

    def note(vm: ManagedVm, view: View, places: Places) -> VmStatus:
        shown.add(vm.name)
        return show_vm(vm, view, places)

    monkeypatch.setattr(arcsup.operator, "show_vm", note)
    async with operating(host) as operator:
        with pytest.raises(TimedOut):
            await operator.wait_for("web", State.PAUSED, 0)

    assert shown == {"web"}


async def test_who_waits_until_a_vm_is_gone_is_told_when_its_file_is(host: SmallHost) -> None:
    async with operating(host) as operator, trio.open_nursery() as nursery:

        async def wait() -> None:
            with trio.fail_after(60):
                gone.append(await operator.wait_for("web", None, 60))

        gone: list[VmStatus] = []
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        assert not gone
        del host.fleet.vms[WEB]
        host.fleet.changed.ring()

    assert [status.name for status in gone] == ["web"]


async def test_a_start_that_is_undone_leaves_nothing_to_save(host: SmallHost) -> None:
    vm = await ask_to_stop_and_save(host)
    vm.phase = Phase.DOWN
    await vm.save(host.fleet.workshop, launch=Launch(BOOT, "memory: 64\n"))

    await resume_vm(vm, host.fleet.workshop, None)

    assert "undone" in host.told
    assert (vm.record.launch, vm.record.save) == (None, False)
