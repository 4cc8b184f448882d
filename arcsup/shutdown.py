"""Whether the host goes down with the daemon, and how VMs stop and systemd waits for them then.

One unit does it all: the daemon is told to end in either case, and asks which it is. A second unit
that stops the VMs first, as libvirt-guests does, would also stop them when somebody restarts it or
an upgrade does, and an inhibitor of logind holds a shutdown up for some seconds at most.
"""

import logging
import subprocess
from collections.abc import Sequence

import trio

from arcsup.errors import is_shortage
from arcsup.fleet import Fleet
from arcsup.notify import notify
from arcsup.plan.lifecycle import Phase
from arcsup.vm import hooks
from arcsup.vm.managed import ManagedVm, StopOrder

logger = logging.getLogger(__name__)

PATIENCE = 5.0
"""Seconds for the service manager to answer; it has much to do when it shuts down."""

ASK_AGAIN = 0.5
"""Seconds after which it is asked again where no program could be started for want of something."""

EXTENSION = 30.0
"""Seconds that systemd is asked to wait on, again and again for as long as VMs are stopping."""


async def host_goes_down(*, system: bool) -> bool:
    """Return whether the host (or the user's session) shuts down or reboots.

    Source: systemctl(1), is-system-running: ``stopping``. Without systemd nobody knows.
    """
    manager = ["systemctl"] if system else ["systemctl", "--user"]
    with trio.move_on_after(PATIENCE):
        while True:
            try:
                answer = await trio.run_process(
                    [*manager, "is-system-running"],
                    capture_stdout=True,
                    stderr=subprocess.DEVNULL,
                    check=False,
                )
            except OSError as error:
                if not is_shortage(error):
                    return False  # There is no systemctl.
                await trio.sleep(ASK_AGAIN)
            else:
                return answer.stdout.strip() == b"stopping"
    return False


async def ask_for_time() -> None:
    """Ask systemd for more than TimeoutStopSec until cancelled. Source: sd_notify(3)."""
    while True:
        notify(EXTEND_TIMEOUT_USEC=int(EXTENSION * 1_000_000))
        await trio.sleep(EXTENSION / 3)


AFTER_THE_GUEST = 30.0
"""Seconds from the end of a guest's time until nothing is left of its QEMU: the rest of the stop
ladder takes half of them."""


async def stop_all(fleet: Fleet) -> None:
    """Stop every VM, those that others come after last. The operator's intent stays as it is.

    Nobody is waited for whom the kernel does not let go of, nor longer than all stops may take.
    """
    with trio.move_on_after(_longest_stop(_find_up(fleet))):
        while up := _find_up(fleet):
            for vm in _find_unneeded(up):
                vm.give_order(StopOrder("the daemon ends"))
            await fleet.changed.wait()
    left = [vm.name for vm in fleet.vms.values() if vm.phase is not Phase.DOWN]
    if left:
        logger.warning("the daemon ends without VM %s, which did not", ", ".join(left))


def _find_up(fleet: Fleet) -> Sequence[ManagedVm]:
    """Return the VMs that are up and can be stopped."""
    return [vm for vm in fleet.vms.values() if vm.phase is not Phase.DOWN and not vm.is_stuck]


def _find_unneeded(up: Sequence[ManagedVm]) -> Sequence[ManagedVm]:
    """Return those that no other comes after. In a circle everybody is needed: then it is all."""
    needed = {name for vm in up for name in vm.vm.after}
    return [vm for vm in up if vm.name not in needed] or up


def _longest_stop(up: Sequence[ManagedVm]) -> float:
    """Return the seconds in which all have stopped one after the other if nothing is wrong."""
    seconds = 0.0
    while up:
        together = _find_unneeded(up)
        seconds += max(_may_take(vm) for vm in together)
        up = [vm for vm in up if vm not in together]
    return seconds


def _may_take(vm: ManagedVm) -> float:
    around = (*vm.vm.hooks.pre_stop, *vm.vm.hooks.post_stop)
    return vm.vm.stop.timeout + AFTER_THE_GUEST + hooks.DEADLINE * len(around)
