"""The programs beside a QEMU (swtpm, virtiofsd): watched, because QEMU runs on without them.

None can be started again under its guest. A share's open files end with their server, and QEMU does
not connect to another one: without ``reconnect`` on its chardev it stays disconnected, and with it
QEMU 7.2 refuses vhost-user-fs ("Failed to set msg fds"); hw/virtio/vhost-user-fs.c has no handler
for a connection that comes back. A TPM gets the descriptor of its commands once, when QEMU starts
(docs/specs/tpm.rst), and what a guest's firmware has measured into it is gone. So an end is told,
and that the VM has to be restarted.
"""

from functools import partial

import trio

from arcsup.model import ConditionType, Vm
from arcsup.vm import sound
from arcsup.vm.managed import ManagedVm, Workshop
from arcsup.vm.process import Process, ProcessEnd
from arcsup.vm.record import OwnedProcess

CONDITION = ConditionType.HELPERS_RUN

SETTLE = 2.0
"""Seconds after a helper's end in which QEMU's own may follow: then that is what ended it."""


async def watch_helpers(vm: ManagedVm, workshop: Workshop) -> None:
    """Tell of each helper of ``vm``'s QEMU that ends before it, until cancelled.

    They are found by the record, so whichever daemon started them.
    """
    processes = vm.record.launch.processes if vm.record.launch else ()
    helpers = [it for it in processes if it.role not in ("qemu", sound.ROLE)]
    if not helpers:
        return
    vm.set_condition(CONDITION, "Running", "the programs beside QEMU run", status=True)
    ended: dict[str, str] = {}
    async with trio.open_nursery() as nursery:
        for owned in helpers:
            nursery.start_soon(partial(_watch, vm, workshop, owned, ended))


async def _watch(
    vm: ManagedVm, workshop: Workshop, owned: OwnedProcess, ended: dict[str, str]
) -> None:
    process = Process.find(owned.identity, boot_id=workshop.boot_id)
    end = ProcessEnd()
    if process is not None:
        try:
            end = await process.wait()
        finally:
            process.close()
    await trio.sleep(SETTLE)
    what = f"{_describe(owned.role, vm.running)} has ended with {end}"
    ended[owned.role] = what
    message = f"{'; '.join(ended.values())}; the guest has it again after: arcsup restart {vm.name}"
    vm.set_condition(CONDITION, "HelperEnded", message, status=False)
    workshop.tell(vm.name, "helper-ended", what, role=owned.role, pid=owned.identity.pid)
    workshop.changed()


def _describe(role: str, vm: Vm | None) -> str:
    """Return what a helper is to the guest: its TPM, or one of its shares."""
    if role == "tpm":
        return "the TPM (swtpm)"
    index = role.removeprefix("virtiofs")
    if vm is not None and index.isdecimal() and int(index) < len(vm.shares):
        return f"the server (virtiofsd) of share {vm.shares[int(index)].tag}"
    return f"the helper {role}"
