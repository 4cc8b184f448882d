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
from arcsup.errors import NoSuchObject, NotRecorded, Refused, TimedOut
from arcsup.events.dirty import Dirty
from arcsup.fleet import View
from arcsup.model import ConditionType, State, VmName, VmStatus
from arcsup.operator import Operator
from arcsup.places import Places
from arcsup.plan.lifecycle import Phase
from arcsup.plan.plan import ForgetVm, Intent, StartVm
from arcsup.reconcile import Reconciler
from arcsup.show import show_vm
from arcsup.vf_journal import VfJournal
from arcsup.virtual_functions import VfKeeper
from arcsup.vm.managed import ManagedVm, StopOrder
from arcsup.vm.record import Launch, Record
from arcsup.vm.strays import Stray, vm_lock
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


def fill_disk(host: SmallHost, monkeypatch: pytest.MonkeyPatch) -> list[NotRecorded]:
    """Let no record be written for as long as the list is not empty."""
    refusals = [NotRecorded("web.json cannot be written: No space left on device", "make room")]
    records = host.fleet.workshop.records
    save = records.save

    async def refuse(record: Record) -> None:
        if refusals:
            raise refusals[0]
        await save(record)

    monkeypatch.setattr(records, "save", refuse)
    return refusals


@pytest.mark.parametrize(("verb", "hard"), [("stop", False), ("kill", True)])
async def test_on_a_full_disk_an_end_is_ordered_at_once_and_recorded_when_there_is_room(
    host: SmallHost, monkeypatch: pytest.MonkeyPatch, verb: str, *, hard: bool
) -> None:
    vm = host.fleet.vms[WEB]
    vm.phase, vm.running = Phase.RUNNING, vm.vm
    refusals = fill_disk(host, monkeypatch)

    async with operating(host) as operator:
        await getattr(operator, verb)("web")

        assert vm.order is not None
        assert vm.order.hard is hard
        assert vm.record.intent is Intent(verb)
        [condition] = operator.status("web").conditions
        assert (condition.type, condition.status) == ("Recorded", False)
        assert "No space left on device" in condition.message
        with pytest.raises(NotRecorded):
            await operator.reconciler._make_pass(frozenset())
        assert vm.record.intent is Intent(verb)

        refusals.clear()
        await operator.reconciler._make_pass(frozenset())
    assert not vm.unsaved
    assert vm.conditions[ConditionType.RECORDED].status
    assert host.fleet.workshop.records.known[WEB].intent is Intent(verb)


async def test_on_a_full_disk_a_start_and_a_restart_are_refused_and_change_nothing(
    host: SmallHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm = host.fleet.vms[WEB]
    fill_disk(host, monkeypatch)

    async with operating(host) as operator:
        await operator.stop("web")
        for ask in (operator.start, operator.restart):
            with pytest.raises(NotRecorded):
                await ask("web")
    assert (vm.record.intent, vm.order) == (Intent.STOP, None)
    assert vm.unsaved


async def test_who_is_to_end_ends_though_a_changed_file_cannot_be_recorded(
    host: SmallHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm = host.fleet.vms[WEB]
    vm.phase, vm.running = Phase.RUNNING, vm.vm
    await vm.save(host.fleet.workshop, intent=Intent.STOP, intent_boot=BOOT)
    fill_disk(host, monkeypatch)
    host.drop("web", "memory: 128\n")

    async with operating(host) as operator:
        with pytest.raises(ExceptionGroup):
            await operator.reconciler._make_pass(frozenset({"files"}))

    assert vm.order is not None


async def test_a_planned_start_is_not_carried_out_after_a_stop_that_came_between(
    host: SmallHost,
) -> None:
    vm = host.fleet.vms[WEB]
    planned = StartVm(WEB, "autostart")

    async with operating(host) as operator:
        await operator.stop("web")
        await operator.reconciler._carry_out(planned)

    assert (vm.phase, vm.starts) == (Phase.DOWN, 0)


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

    await resume_vm(vm, host.fleet.workshop)

    assert "undone" in host.told
    assert (vm.record.launch, vm.record.save) == (None, False)


async def test_a_record_stays_while_somebody_has_its_vms_lock(host: SmallHost) -> None:
    host.drop("other", "memory: 64\n")
    (host.places.vms / "web.yaml").unlink()
    host.open()
    await host.fleet.read_files()
    vm, records = host.fleet.vms[WEB], host.fleet.workshop.records
    forget = ForgetVm(WEB, "its file was removed")

    async with operating(host) as operator:
        with vm_lock(host.places, WEB):
            await operator.reconciler._carry_out(forget)
            assert records.load_all()[0][WEB] == vm.record
            assert WEB in host.fleet.vms
        await operator.reconciler._carry_out(forget)

    assert WEB not in records.load_all()[0]
    assert WEB not in host.fleet.vms


async def test_nothing_is_adopted_where_nothing_was_lost(host: SmallHost) -> None:
    async with operating(host) as operator:
        with pytest.raises(Refused, match="no QEMU of web runs that no record tells of"):
            await operator.adopt("web")
        with pytest.raises(NoSuchObject):
            await operator.adopt("other")


async def test_what_was_told_to_an_installer_stays_for_a_vm_whose_record_was_lost(
    host: SmallHost,
) -> None:
    answers = host.fleet.answers
    for name in ("web", "other", "unreadable"):
        (answers.folder / f"{name}-0123").mkdir(parents=True)
    host.fleet.vms[WEB].unrecorded = Stray()
    host.fleet.unreadable[VmName("unreadable")] = "it cannot be read"

    async with operating(host) as operator:
        operator.reconciler._remove_stale_answers()

    left = {place.name for place in answers.folder.iterdir()}
    assert left == {"web-0123", "unreadable-0123"}
