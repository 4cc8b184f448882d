"""VMs whose file is not in the VM directory: started from a FILE that somebody named.

Like a unit of systemd-run: known while it runs, listed with its file, kept by its record over a
restart of the daemon, and forgotten once it was stopped, powered off, or the host restarted. One
that failed stays, with its reason, until somebody clears or stops it.
"""

import os
from pathlib import Path

from arcsup.errors import Refused
from arcsup.fleet import Fleet
from arcsup.model import Hooks, Vm, VmName
from arcsup.opening import open_named
from arcsup.plan.lifecycle import Phase
from arcsup.plan.mode import Mode, Purpose
from arcsup.plan.plan import Intent
from arcsup.spec.files import tell_insecurity
from arcsup.spec.together import find_shared
from arcsup.vm.managed import ManagedVm
from arcsup.vm.record import FRESH, Record, Source


def is_in_directory(fleet: Fleet, file: Path) -> bool:
    """Tell whether a file is one of the VM directory's, whatever way its path goes there."""
    resolve, vms = fleet.real_paths.resolve, fleet.workshop.places.vms
    return resolve(file.parent) == resolve(vms) and file.suffix == ".yaml"


async def take_up(fleet: Fleet, file: Path, source: str, vm: Vm, mode: Mode) -> VmName:
    """Take up a VM whose file is not in the VM directory, and want it to run in ``mode``.

    Asked again for what is up already, nothing changes. Raises Refused when its name, or what only
    one VM can have, is another VM's, and when its record cannot be read.
    """
    if fault := fleet.unreadable.get(vm.name):
        # Its QEMU may still run: the record alone tells.
        raise Refused(f"VM {vm.name}: {fault}", "or put another `name` into the file")
    text = Source(str(file), source, "")
    known = fleet.vms.get(vm.name)
    if known is not None and known.phase is not Phase.DOWN:
        _check_same(known, text, mode)
        return vm.name
    if known is not None and not known.record.transient:
        raise Refused(
            f"there is a VM {vm.name} already ({known.file})",
            f"arcsup start {vm.name}, or put another `name` into the file",
        )
    _check_unshared(fleet, file, vm)
    if fleet.workshop.places.system and vm.hooks != Hooks():
        _check_hooks(file, source)
    if known is None:
        known = fleet.vms[vm.name] = ManagedVm(Record(vm.name, text, transient=True), vm)
    # The same one goes on: its record may tell of devices that are still to be given back.
    known.asked, known.faults = vm, ()
    await known.save(
        fleet.workshop,
        **FRESH,
        source=text,
        intent=Intent.RUN,
        intent_boot=fleet.workshop.boot_id,
        lasting=mode.purpose is Purpose.CREATE,
        mode=mode,
    )
    fleet.workshop.tell(vm.name, "run", f"the operator asked to start it from {file}")
    return vm.name


def _check_same(known: ManagedVm, text: Source, mode: Mode) -> None:
    if not known.record.transient or known.record.source.file != text.file:
        raise Refused(
            f"there is a VM {known.name} already ({known.file})",
            "put another `name` into the file",
        )
    if known.record.intent in (Intent.STOP, Intent.KILL):
        raise Refused(
            f"{known.name} is still stopping",
            f"arcsup wait {known.name} --for gone, then start it; "
            f"`arcsup kill {known.name}` ends it at once",
        )
    if known.record.source != text or known.record.mode != mode:
        raise Refused(
            f"{known.name} is up already, with another version of the file or other switches",
            f"arcsup stop {known.name} first",
        )


def _check_unshared(fleet: Fleet, file: Path, vm: Vm) -> None:
    images = fleet.workshop.places.images
    for other in fleet.vms.values():
        if other.name == vm.name or other.running is None:
            continue
        shared = find_shared(
            vm, other.running, lambda path: fleet.real_paths.resolve(images / path)
        )
        if shared:
            raise Refused(
                f"{file}: asks for {shared}, which VM {other.name} has",
                f"arcsup stop {other.name} first, or change the file",
            )


def _check_hooks(file: Path, source: str) -> None:
    """Raise Refused unless root itself wrote these hooks: whoever asks names file and text."""
    try:
        with open_named(file) as stream:
            problem = tell_insecurity(os.fstat(stream.fileno()))
            if not problem and stream.read(len(source.encode()) + 1) != source.encode():
                problem = "says something else than was sent"
    except OSError as error:
        problem = f"cannot be read: {error.strerror}"
    if problem:
        raise Refused(
            f"{file}: has hooks, which root runs only for root's own files; it {problem}",
            "take the hooks out, or have root keep the file in the VM directory",
        )
