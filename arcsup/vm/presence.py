"""Whether a QEMU has every device that its VM asked for: after its start and each reset.

A reset is when QEMU carries out an unplugging that the guest has not answered yet
(hw/acpi/pcihp.c, ``acpi_pcihp_update``; measured), and then the guest comes up without the device.
``query-pci`` cannot tell: it shows only what is behind bridges that the firmware has numbered, and
at both moments it has not begun to (measured). So the objects are asked for, by id.
"""

from collections.abc import Iterable

import trio

from arcsup.vm.managed import ManagedVm, StopOrder, Workshop
from arcsup.vm.qmp import Qmp, list_devices
from arcsup.vm.slices import requests_by_slot, slice_devices

ANSWER = 5.0
"""Seconds within which a healthy QEMU lists its devices."""


async def find_absent(ids: Iterable[str], qmp: Qmp) -> tuple[str, ...]:
    """Return which of these device ids QEMU does not have.

    Raises QMPError, or TooSlowError when there is no answer.
    """
    with trio.fail_after(ANSWER):
        return tuple(sorted(set(ids) - await list_devices(qmp)))


async def verify_slices(vm: ManagedVm, workshop: Workshop, qmp: Qmp) -> None:
    """Stop a VM whose QEMU has lost a slice; it comes back with the slice.

    Raises QMPError, or TooSlowError when there is no answer.
    """
    if vm.running is None or vm.record.launch is None or vm.order is not None:
        return
    # What its file asks for no more may go with a reset, and has been asked to.
    unwanted = set(requests_by_slot(vm.running)) - set(requests_by_slot(vm.vm))
    held = tuple(it for it in vm.record.slices_in_use if it.mac or it.slot not in unwanted)
    slices = {device.id for device in slice_devices(vm.running, held)}
    if absent := await find_absent(slices & set(vm.record.launch.devices), qmp):
        what = ", ".join(absent)
        why = f"QEMU has {what} no more: a reset took it along, or the guest let it go"
        workshop.tell(vm.name, "device-lost", why)
        vm.give_order(StopOrder(why, device_lost=True))
