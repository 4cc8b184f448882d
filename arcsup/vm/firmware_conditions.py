"""What is told of a VM's UEFI firmware: variables that were made anew, and Secure Boot that is off.

What is told is read from the disk, so it is the same whichever daemon tells it.
"""

from pathlib import Path

import trio
from attrs import frozen

from arcsup.errors import Terminal, describe_os_error
from arcsup.host_trouble import is_host_trouble
from arcsup.model import ConditionType, Firmware
from arcsup.vm.firmware import find_firmware
from arcsup.vm.looking import look_at
from arcsup.vm.managed import ManagedVm, Workshop
from arcsup.vm.variables import (
    Enforcement,
    create_vars,
    find_replaced,
    observe_secure_boot,
    vars_file,
)

VARIABLES = ConditionType.UEFI_VARIABLES
SECURE_BOOT = ConditionType.SECURE_BOOT
"""Types of conditions."""


@frozen
class Statement:
    """A condition before it is a VM's."""

    type: ConditionType
    status: bool
    reason: str
    message: str


LOOK_AGAIN = 10.0
"""Seconds after which something that was told is looked at again: people mend it by hand."""

_IN_WORDS: dict[Enforcement, tuple[str, str]] = {
    "enforced": ("Enforced", "Secure Boot keys are enrolled"),
    "no-keys": (
        "NoPlatformKey",
        "no platform key is enrolled, so Secure Boot refuses nothing: enrol keys in the guest",
    ),
    "switched-off": (
        "SwitchedOff",
        "Secure Boot is switched off in the firmware's menu, so it refuses nothing",
    ),
}
"""Reason and message."""


async def prepare_variables(vm: ManagedVm, workshop: Workshop) -> None:
    """Make the variables of a VM that is about to start, and tell when old ones were replaced.

    Raises Terminal.
    """
    firmware = find_firmware((vm.running or vm.vm).firmware)
    if firmware is None:
        return
    store = vars_file(workshop.places.state, vm.name)
    replaced = await trio.to_thread.run_sync(create_vars, firmware, store)
    if replaced is not None:
        kept, because = str(replaced.kept), replaced.because
        workshop.tell(vm.name, "variables-replaced", str(replaced), kept=kept, because=because)


async def watch_variables(vm: ManagedVm, workshop: Workshop) -> None:
    """Say of a VM that is up what is wrong with its firmware, until nothing is; then return."""
    firmware = (vm.running or vm.vm).firmware
    if firmware is Firmware.BIOS:
        return
    store = vars_file(workshop.places.state, vm.name)
    while True:
        try:
            found = await look_at(f"the firmware of {vm.name}", find_statements, store, firmware)
        except RuntimeError as error:
            if not is_host_trouble(error):
                raise
            await trio.sleep(LOOK_AGAIN)
            continue
        for statement in found:
            _say(vm, workshop, statement)
        if all(it.status for it in found):
            return
        await trio.sleep(LOOK_AGAIN)


def find_statements(store: Path, firmware: Firmware) -> tuple[Statement, ...]:
    """Return what is to be said of a store that is in use. Blocks."""
    try:
        replaced = find_replaced(store)
        off = observe_secure_boot(store) if firmware is Firmware.UEFI_SECURE else None
    except (Terminal, OSError) as error:
        why = describe_os_error(error) if isinstance(error, OSError) else error.message
        return (Statement(VARIABLES, False, "Unknown", f"they cannot be looked at: {why}"),)
    first = (
        Statement(VARIABLES, True, "InPlace", "no older ones were set aside for them")
        if replaced is None
        else Statement(VARIABLES, False, "Replaced", str(replaced))
    )
    if off is None:
        return (first,)
    reason, message = _IN_WORDS[off]
    if off != "enforced":
        message = f"{message}; for the factory's settings, stop the VM and move {store} away"
    return first, Statement(SECURE_BOOT, off == "enforced", reason, message)


def _say(vm: ManagedVm, workshop: Workshop, it: Statement) -> None:
    known = vm.conditions.get(it.type)
    vm.set_condition(it.type, it.reason, it.message, status=it.status)
    if (known is None or known.status) is not it.status:
        if it.type == SECURE_BOOT:
            kind = "secure-boot-on" if it.status else "secure-boot-off"
            workshop.tell(vm.name, kind, it.message)
        workshop.changed()
