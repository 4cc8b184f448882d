"""Whom a VM's programs run as."""

from itertools import combinations
from pathlib import Path

import pytest
import trio
from attrs import evolve

from arcsup.errors import NotRecorded
from arcsup.host.accounts import Account, Accounts
from arcsup.model import VmName
from arcsup.vm import record
from arcsup.vm.belongings import choose_account
from arcsup.vm.managed import ManagedVm, Workshop
from arcsup.vm.record import Launch, Record, Source
from tests.small_host import SmallHost
from tests.vm_samples import make_vm

PER_VM = Accounts(Account(60000, 60000), per_vm=True, seed="host")
LAUNCH = Launch("boot", "")


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    workshop = SmallHost(tmp_path).fleet.workshop
    workshop.accounts = PER_VM
    return workshop


def make_rivals() -> tuple[ManagedVm, ManagedVm]:
    """Return two VMs whose names lead to the same number."""
    names = (f"vm-{index}" for index in range(1000))
    users = ((VmName(name), PER_VM.choose(name, ()).uid) for name in names)
    for (one, its), (other, others) in combinations(users, 2):
        if its == others:
            vms = (evolve(make_vm("x"), name=name) for name in (one, other))
            first, second = (ManagedVm(Record(vm.name, Source("", "", "")), vm) for vm in vms)
            return first, second
    raise AssertionError("a thousand names on 606 numbers")


async def start(vm: ManagedVm, workshop: Workshop) -> Account:
    account = (await choose_account(vm, workshop, LAUNCH)).account
    assert account is not None
    return account


async def test_vms_that_start_together_get_a_user_each(workshop: Workshop) -> None:
    chosen = []

    async def note(vm: ManagedVm) -> None:
        chosen.append(await start(vm, workshop))

    rivals = make_rivals()
    async with trio.open_nursery() as nursery:
        for vm in rivals:
            nursery.start_soon(note, vm)

    assert len({account.uid for account in chosen}) == 2
    launches = [workshop.records.known[vm.name].launch for vm in rivals]
    assert {launch.account for launch in launches if launch} == set(chosen)


async def test_the_user_of_a_start_that_failed_is_free_again(workshop: Workshop) -> None:
    first, second = make_rivals()
    account = await start(first, workshop)

    await first.save(workshop, launch=None)

    assert (await start(second, workshop)).uid == account.uid


async def test_a_user_that_could_not_be_recorded_is_nobodys(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, content: str, mode: int) -> None:
        raise OSError(28, "No space left on device")

    first, second = make_rivals()
    with monkeypatch.context() as full:
        full.setattr(record, "write_durably", refuse)
        with pytest.raises(NotRecorded):
            await start(first, workshop)
    assert first.record.launch is None

    assert (await start(second, workshop)).uid == PER_VM.choose(first.name, ()).uid


async def test_one_user_for_all_is_chosen_without_a_record(workshop: Workshop) -> None:
    workshop.accounts = evolve(PER_VM, per_vm=False)
    users = {(await start(vm, workshop)).uid for vm in make_rivals()}

    assert users == {PER_VM.shared.uid}
    assert workshop.records.known == {}
