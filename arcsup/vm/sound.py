"""The program that plays Scream's sound beside a VM: kept running, never in the VM's way.

Scream's driver in the guest writes samples into shared memory; a receiver on the host plays them
in somebody's session. Source: Scream's README, "Using IVSHMEM", and its Receivers/unix/README.md.
"""

import logging
import shutil
from pathlib import Path

import trio
from attrs import evolve

from arcsup.errors import Terminal
from arcsup.model import Argv, Audio, ConditionType
from arcsup.vm.control_groups import admit
from arcsup.vm.managed import ManagedVm, Workshop
from arcsup.vm.process import Process, closing_gate, inherited_environment, start_gated
from arcsup.vm.record import OwnedProcess
from arcsup.vm.shared_memory import scream_memory
from arcsup.vm.viewer import Viewer

logger = logging.getLogger(__name__)

ROLE = "scream"
CONDITION = ConditionType.SOUND_PLAYS

FIRST_DELAY = 0.5
LONGEST_DELAY = 60.0
"""Seconds until a receiver that ended is started again; they double. One that has played for
``LONGEST_DELAY`` begins anew."""


async def keep_receiver(vm: ManagedVm, workshop: Workshop) -> None:
    """Keep a receiver running beside ``vm``'s QEMU, from when the guest runs until cancelled.

    It stays when the daemon goes, and the next daemon finds it in the VM's record; the clean-up
    after QEMU's end ends it, as every helper. What prevents it is told once and kept as a
    condition.
    """
    if vm.running is None or vm.running.audio is not Audio.SCREAM:
        return
    if not vm.evidence.was_ready:
        await vm.ready.wait()
    program = shutil.which("scream")
    if program is None:
        _tell_silence(vm, workshop, "NotInstalled", "no Scream receiver (scream) is installed")
        return
    command = receiver_command(program, scream_memory(vm.running), workshop.viewer)
    delay = FIRST_DELAY
    while True:
        began = trio.current_time()
        try:
            process = _find_receiver(vm, workshop) or await _start(vm, workshop, command)
        except Terminal as error:
            _tell_silence(vm, workshop, "CannotStart", error.message)
            return
        try:
            end = await process.wait()
        finally:
            process.close()
        if trio.current_time() - began >= LONGEST_DELAY:
            delay = FIRST_DELAY
        why = f"the Scream receiver ended with {end}; see qemu.log"
        _tell_silence(vm, workshop, "Ended", why)
        await trio.sleep(delay)
        delay = min(2 * delay, LONGEST_DELAY)


def receiver_command(program: str, memory: Path, viewer: Viewer | None) -> Argv:
    """Return the receiver as the viewer's program: sound servers play for their own user only."""
    command = (program, "-m", str(memory))
    if viewer is None:
        return command
    user = (f"--reuid={viewer.uid}", f"--regid={viewer.gid}", "--init-groups", "--no-new-privs")
    return ("setpriv", *user, "--", *command)


def receiver_environment(viewer: Viewer | None) -> dict[str, str]:
    """Return what the receiver finds the viewer's sound server by (pam_systemd(8))."""
    if viewer is None:
        return inherited_environment()
    return {
        "HOME": viewer.home,
        "LOGNAME": viewer.name,
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "USER": viewer.name,
        "XDG_RUNTIME_DIR": str(viewer.runtime_folder),
    }


def _find_receiver(vm: ManagedVm, workshop: Workshop) -> Process | None:
    """Return the receiver that an earlier daemon started, if it still runs."""
    for owned in vm.record.launch.processes if vm.record.launch else ():
        if owned.role == ROLE:
            return Process.find(owned.identity, boot_id=workshop.boot_id)
    return None


async def _start(vm: ManagedVm, workshop: Workshop, command: Argv) -> Process:
    gated = start_gated(
        command,
        boot_id=workshop.boot_id,
        output=workshop.places.log_of(vm.name) / "qemu.log",
        environment=receiver_environment(workshop.viewer),
    )
    with closing_gate(gated):
        launch = vm.record.launch
        if launch is None:
            raise AssertionError("a VM that is supervised has been launched")
        others = tuple(owned for owned in launch.processes if owned.role != ROLE)
        owned = OwnedProcess(ROLE, gated.process.identity)
        await vm.save(workshop, launch=evolve(launch, processes=(*others, owned)))
        admit(vm, gated.process.pid)
        gated.open_gate()
    vm.set_condition(CONDITION, "Started", "the Scream receiver runs", status=True)
    workshop.tell(vm.name, "sound-started", "the Scream receiver was started")
    return gated.process


def _tell_silence(vm: ManagedVm, workshop: Workshop, reason: str, why: str) -> None:
    vm.set_condition(CONDITION, reason, why, status=False)
    workshop.tell(vm.name, "sound-ended" if reason == "Ended" else "no-sound", why)
    workshop.changed()
