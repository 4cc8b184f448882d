"""What is taken away after a QEMU's end: its helper programs and its runtime folder.

Everything here may be done twice: a daemon that was killed half way leaves the rest to the next.
"""

import logging
from contextlib import suppress

import trio

from arcsup.model import VmName
from arcsup.places import Places
from arcsup.vm.process import Process, end_process
from arcsup.vm.record import Launch
from arcsup.vm.removal import remove_trees
from arcsup.vm.strays import lock_files

logger = logging.getLogger(__name__)

GRACE = 2.0
"""Seconds a helper may take to save its state (swtpm does) before it is killed."""


async def end_helpers(launch: Launch, *, boot_id: str) -> None:
    """End every program of a launch that still runs, QEMU's own process excepted."""
    async with trio.open_nursery() as nursery:
        for owned in launch.processes:
            if owned.role == "qemu":
                continue
            process = Process.find(owned.identity, boot_id=boot_id)
            if process is not None:
                nursery.start_soon(_end_helper, owned.role, process)


async def _end_helper(role: str, process: Process) -> None:
    try:
        await end_process(process, grace=GRACE)
    except trio.TooSlowError:
        logger.exception("%s does not end", role, extra={"HELPER_PID": process.pid})
    finally:
        process.close()


async def remove_runtime_folders(places: Places, name: VmName) -> None:
    """Remove a VM's sockets and locks; nothing happens when they are gone already. Transient.

    Whoever calls it holds the VM's lock. A lock file that nobody holds is no obstacle to a start:
    one that cannot be removed, on a file system that is read-only by now, stays.
    """
    await remove_trees(places.qemu_run_of(name), places.run_of(name))
    for path in lock_files(places, name):
        with suppress(OSError):
            path.unlink(missing_ok=True)
