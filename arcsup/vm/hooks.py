"""Programs of the user's that run around a VM's life: without a shell, with a deadline.

In system mode the daemon is root, so a hook would give root to whoever can write the VM file or
the program: both must belong to root and be writable by nobody else, or the hook is refused.
"""

import errno
import logging
import os
import shlex
import shutil
from pathlib import Path
from typing import Literal

import trio

from arcsup.errors import Terminal
from arcsup.host.trust import find_distrust
from arcsup.model import Argv
from arcsup.vm.managed import ManagedVm, Workshop
from arcsup.vm.process import inherited_environment

logger = logging.getLogger(__name__)

DEADLINE = 30.0
"""Seconds one hook may take."""

Moment = Literal["preStart", "postStart", "preStop", "postStop"]


async def run_hooks(vm: ManagedVm, workshop: Workshop, moment: Moment) -> None:
    """Run the hooks of ``moment`` in order; a failure is told and stops only that moment's list.

    ``preStart`` is different: raises Terminal, because the VM must not start without it.
    """
    hooks = vm.vm.hooks
    commands = {
        "preStart": hooks.pre_start,
        "postStart": hooks.post_start,
        "preStop": hooks.pre_stop,
        "postStop": hooks.post_stop,
    }[moment]
    for argv in commands:
        problem = await _run(argv, vm, workshop, moment)
        if not problem:
            continue
        message = f"{moment} hook {shlex.join(argv)}: {problem}"
        if moment == "preStart":
            raise Terminal(message, "mend the hook, then `arcsup start` the VM")
        workshop.tell(vm.name, "hook-failed", message)
        return


def _limiting(workshop: Workshop) -> Argv:
    """Return what gives a hook the limit of descriptors that the daemon was started with.

    The daemon raises its own as far as it may, and a program that waits by select(2), or closes
    every descriptor that it might have, is not made for that (setrlimit(2), select(2)).
    """
    if workshop.hook_descriptors is None:
        return ()
    return ("prlimit", f"--nofile={workshop.hook_descriptors}:", "--")


async def _run(argv: Argv, vm: ManagedVm, workshop: Workshop, moment: Moment) -> str:
    """Run one hook; return what is wrong, "" when nothing is."""
    if workshop.places.system and (why := find_distrust(vm.file) or find_distrust(Path(argv[0]))):
        return why
    log = workshop.places.log_of(vm.name) / "hooks.log"
    environment = {
        **inherited_environment(),
        "ARCSUP_VM": vm.name,
        "ARCSUP_UUID": str(vm.vm.uuid),
        "ARCSUP_MOMENT": moment,
        "ARCSUP_RUN": str(workshop.places.run),
    }
    if shutil.which(argv[0]) is None:
        number = errno.EACCES if Path(argv[0]).exists() else errno.ENOENT
        return f"cannot be run: {os.strerror(number)}"
    try:
        with open(log, "ab") as output:
            with trio.fail_after(DEADLINE):
                done = await trio.run_process(
                    [*_limiting(workshop), *argv],
                    stdin=b"",
                    stdout=output,
                    stderr=output,
                    env=environment,
                    check=False,
                )
    except trio.TooSlowError:
        return f"took longer than {DEADLINE:g} s and was ended"
    except OSError as error:
        return f"cannot be run: {error.strerror}"
    return f"exit code {done.returncode}; its output is in {log}" if done.returncode else ""
