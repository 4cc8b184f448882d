"""Whether a guest reaches what listens on the host's loopback, and telling where it does."""

import trio

from arcsup.errors import describe_os_error
from arcsup.host.loopback import close_loopback
from arcsup.model import ConditionType, NetworkType, Vm
from arcsup.vm.managed import ManagedVm, Workshop
from arcsup.vm.process import read_start_time
from arcsup.vm.record import Launch

CONDITION = ConditionType.HOST_LOOPBACK
"""True where the guest reaches it: no fault of the VM's, so it makes none look unwell."""

_REACHED = "the guest reaches what listens on the host's loopback"


def has_way_to_loopback(vm: Vm) -> bool:
    """Tell whether QEMU makes connections for the guest: only its own NAT does."""
    return any(network.type is NetworkType.USER for network in vm.networks)


def is_kept_from_loopback(vm: Vm) -> bool:
    """Tell whether the programs of a VM are to be kept from the loopback.

    All share one control group, so one network that may reach it opens it for all.
    """
    return has_way_to_loopback(vm) and not any(it.host_loopback for it in vm.networks)


async def guard_loopback(vm: ManagedVm, workshop: Workshop) -> None:
    """Keep the programs of a VM from the loopback, unless its file asks for it; tell where not.

    Done before the guest runs, and once more when a daemon takes a VM over. The VM runs in any
    case.
    """
    running, launch = vm.running, vm.record.launch
    if running is None or launch is None or not has_way_to_loopback(running):
        return
    if not is_kept_from_loopback(running):
        vm.set_condition(CONDITION, "AskedFor", f"{_REACHED}: hostLoopback", status=True)
    elif not workshop.places.system:
        # The kernel lets no other user have a say in that.
        why = f"{_REACHED}: only the system's daemon can prevent it"
        vm.set_condition(CONDITION, "NotRoot", why, status=True)
    elif not launch.cgroup:
        why = f"{_REACHED}: it has no control group"
        vm.set_condition(CONDITION, "NoControlGroup", why, status=True)
    else:
        await _close(vm, workshop, launch.cgroup)


async def _close(vm: ManagedVm, workshop: Workshop, group: str) -> None:
    try:
        await trio.to_thread.run_sync(close_loopback, group)
    except OSError as error:
        if not _runs(vm.record.launch):
            return  # systemd takes a group away with its last program.
        why = f"{_REACHED}: {describe_os_error(error)}"
        vm.set_condition(CONDITION, "NoFilter", why, status=True)
        workshop.tell(vm.name, "loopback-open", why)
    else:
        vm.conditions.pop(CONDITION, None)


def _runs(launch: Launch | None) -> bool:
    return launch is not None and any(
        read_start_time(owned.identity.pid) == owned.identity.start_time
        for owned in launch.processes
        if owned.role == "qemu"
    )


def explain_refusal(vm: Vm, words: str) -> str:
    """Return what a QEMU said at its end, with what to do where the filter may be behind it.

    Its own arguments (``qemu.args``) can name what listens on the loopback, such as an NBD server.
    """
    if vm.qemu.args and is_kept_from_loopback(vm) and _NOT_PERMITTED in words:
        return f"{words} (to let it connect to the host's loopback: networks: hostLoopback: true)"
    return words


_NOT_PERMITTED = "Operation not permitted"
"""What strerror(3) says of EPERM, in the language that QEMU speaks."""
