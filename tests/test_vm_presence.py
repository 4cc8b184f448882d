"""A VM never goes on without a device that it asked for."""

import json
from pathlib import Path

import pytest
from attrs import evolve

from arcsup.devices import Backend
from arcsup.errors import Terminal
from arcsup.host.owned import OwnedSlice
from arcsup.model import VmName
from arcsup.spec.native import vm_to_native
from arcsup.vm.launch import HEADER, bring_up
from arcsup.vm.managed import ManagedVm
from arcsup.vm.monitor import look
from arcsup.vm.presence import verify_slices
from arcsup.vm.record import Launch
from tests.qmp_answers import Answers
from tests.small_host import BOOT, SmallHost, small_host_with_web

UUID = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001"
SLICE = OwnedSlice(Backend.MDEV, 0, UUID, "mbochs", "mbochs", "mbochs-small", f"/sys/{UUID}")


def devices(*names: str) -> list[dict[str, str]]:
    return [{"name": name, "type": "child<vfio-pci>"} for name in names]


@pytest.fixture
async def host(tmp_path: Path) -> SmallHost:
    return await small_host_with_web(tmp_path, "gpus: [{mdevType: mbochs-small}]\n")


@pytest.fixture
def vm(host: SmallHost) -> ManagedVm:
    """A VM that runs with one slice."""
    vm = host.fleet.vms[VmName("web")]
    launch = Launch(BOOT, json.dumps(vm_to_native(vm.vm)), devices=("gpu0", "rng"))
    vm.record = evolve(vm.record, launch=launch, slices=(SLICE,))
    vm.running = vm.vm
    return vm


async def test_a_start_without_a_device_that_was_asked_for_fails(
    host: SmallHost, vm: ManagedVm
) -> None:
    with pytest.raises(Terminal, match="QEMU runs without gpu0"):
        await bring_up(vm, host.fleet.workshop, Answers(qom_list=devices("rng")))


async def test_a_reset_that_has_taken_a_slice_along_ends_the_vm_as_one_that_lost_a_device(
    host: SmallHost, vm: ManagedVm
) -> None:
    await verify_slices(vm, host.fleet.workshop, Answers(qom_list=devices("rng", "gpu0")))
    assert "device-lost" not in host.told

    await verify_slices(vm, host.fleet.workshop, Answers(qom_list=devices("rng")))

    assert vm.order is not None
    assert vm.order.device_lost
    assert vm.order.because == (
        "QEMU has gpu0 no more: a reset took it along, or the guest let it go"
    )
    assert "device-lost" in host.told


async def test_a_device_that_is_no_slice_may_be_unplugged_by_hand(
    host: SmallHost, vm: ManagedVm
) -> None:
    await verify_slices(vm, host.fleet.workshop, Answers(qom_list=devices("gpu0")))
    assert vm.order is None


@pytest.mark.parametrize(
    ("words", "lost"),
    [
        ("vfio_err_notifier_handler(0000:2b:00.0) Unrecoverable error detected.", True),
        ("KVM internal error. Suberror: 1", False),
    ],
)
async def test_qemu_halted_by_a_pci_error_of_a_slice_has_lost_it(
    host: SmallHost, vm: ManagedVm, words: str, lost: bool
) -> None:
    log = host.places.log_of(vm.name) / "qemu.log"
    log.parent.mkdir(parents=True)
    log.write_text(f"{HEADER} now qemu\nqemu-system-x86_64: {words}\n")
    qmp = Answers(query_status={"status": "internal-error"}, quit={})

    await look(vm, host.fleet.workshop, qmp, bring_up)

    assert (vm.order is not None and vm.order.device_lost) is lost
    assert ("quit" in qmp.asked) is not lost
