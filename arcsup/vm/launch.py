"""One start, in the order that survives a crash at any instruction.

 1. The VM's lock is taken: a start that is refused has done nothing. Then the record says that a
    start is under way (fsync).
 2. Files and sockets are made; all of it may be there half done from an earlier try.
 3. QEMU and its helpers are started behind their gates: they exist, but have not begun.
 4. The record says who they are (fsync).
 5. The gates open. A control group is made for them, before if need be, and always before the guest
    runs: while the kernel waits to move a process, QEMU can as well get ready.

A daemon that dies before 5 leaves no program: the gates close with it. One that dies after 4
leaves programs that the next daemon knows.
"""

import json
import os
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from shlex import join

import trio
from attrs import evolve

from arcsup.alongside import alongside
from arcsup.errors import NotRecorded, Terminal, Transient
from arcsup.host.numa import observe_numa
from arcsup.host.sysfs import Sysfs
from arcsup.model import Argv, NetworkType, Vm
from arcsup.plan.lifecycle import Step
from arcsup.plan.plan import Intent
from arcsup.spec.native import vm_to_native
from arcsup.vm.belongings import (
    check_shares,
    choose_account,
    create_qemu_folder,
    hand_over_files,
    lend_belongings,
    open_folders,
)
from arcsup.vm.commandline import Sockets, build_command_line, expected_devices
from arcsup.vm.control_groups import belongs_in_group_first, enclose
from arcsup.vm.disks import MadeImage, take_back
from arcsup.vm.fdsets import name_files
from arcsup.vm.firmware_conditions import prepare_variables
from arcsup.vm.hooks import run_hooks
from arcsup.vm.iommufd import can_use_iommufd, open_iommufd
from arcsup.vm.limits import limits_of
from arcsup.vm.managed import ManagedVm, Workshop
from arcsup.vm.pinning import allowed_cpus, pin_vcpus, plan_pinning
from arcsup.vm.presence import find_absent
from arcsup.vm.privileges import lockable_bytes
from arcsup.vm.process import (
    Process,
    closing_gate,
    inherited_environment,
    limit_locked_memory,
    start_gated,
)
from arcsup.vm.qmp import Qmp
from arcsup.vm.reach import Bounds
from arcsup.vm.record import Launch, OwnedProcess
from arcsup.vm.resources import Needs, create_files, find_needs
from arcsup.vm.shared_memory import create_shared_memory, hold_device
from arcsup.vm.slices import find_cdev_slices, slice_devices, take_slices
from arcsup.vm.sockets import Listener, listen_unix
from arcsup.vm.strays import LockHeld, find_double, vm_lock, what_to_do
from arcsup.vm.taps import Tap, open_tap
from arcsup.vm.tpm import HelperCommand
from arcsup.vm.unrecorded import seek
from arcsup.vm.usb import find_usb
from arcsup.vm.viewer import give_display

HALTED = ("-S",)
"""The guest does not run before everything it asked for is seen to be there."""


async def start_qemu(vm: ManagedVm, workshop: Workshop) -> Process:
    """Start a QEMU, its guest still halted, and return it.

    Raises LockHeld, before anything was done, where a QEMU of this VM runs that no record tells
    of; Terminal or Transient, and then what was made is taken away by the caller's clean-up.
    """
    made: list[MadeImage] = []
    with vm_lock(workshop.places, vm.name) as lock:
        # Who has no lock of ours can be told by its command line alone.
        double = await trio.to_thread.run_sync(find_double, seek(workshop, vm))
        if double is not None:
            raise LockHeld(str(double), what_to_do(vm.name, double))
        try:
            return await _start_locked(vm, workshop, lock, made)
        except NotRecorded:
            raise  # It is tried again, with them.
        except Terminal:
            # Nothing stays of a VM that was refused: its images would be in the way of others.
            try:
                await trio.to_thread.run_sync(take_back, made)
            except OSError as error:
                why = f"{error.filename}: its folder cannot be written: {error.strerror}"
                workshop.tell(vm.name, "trouble", why)
            raise


async def _start_locked(
    vm: ManagedVm, workshop: Workshop, lock: Sequence[int], made: list[MadeImage]
) -> Process:
    intent = Intent.RUN if vm.record.intent is Intent.RESTART else vm.record.intent
    launch = Launch(workshop.boot_id, json.dumps(vm_to_native(vm.vm)), started_at=time.monotonic())
    await vm.save(workshop, launch=launch, intent=intent, halted="", retry_at=None)
    vm.running = vm.vm
    places = workshop.places
    places.log_of(vm.name).mkdir(mode=0o750, parents=True, exist_ok=True)
    await run_hooks(vm, workshop, "preStart")
    by_iommufd = workshop.iommufd and await can_use_iommufd(vm.running, places)
    await find_usb(vm.running, workshop)  # Before anything is made for it.
    slices = await take_slices(vm, workshop, iommufd=by_iommufd)
    launch = await choose_account(vm, workshop, launch)
    account = launch.account
    bounds = None
    if account is not None:
        allowed = (places.images, *workshop.image_folders)
        bounds = Bounds(account, allowed, own=places.answers)
    await _unless_ordered(vm, partial(create_files, vm.running, places, bounds, made))
    await prepare_variables(vm, workshop)
    with ExitStack() as opened:
        held = list(lock)
        if account is not None:
            await create_qemu_folder(places, vm.name)

        def open_socket(path: Path) -> Listener:
            listener = listen_unix(path)
            opened.callback(listener.close)
            return listener

        def take_device(path: Path) -> bool:
            if (descriptor := hold_device(path)) is not None:
                opened.callback(os.close, descriptor)
                held.append(descriptor)
            return descriptor is not None

        iommufd = open_iommufd(account, opened) if by_iommufd else None
        held += iommufd.descriptors if iommufd else ()
        cdevs = find_cdev_slices(slices, Sysfs(places.sysfs)) if iommufd else ()
        needs = await find_needs(
            vm.running,
            places,
            open_socket,
            slices=slice_devices(vm.running, slices, by_iommufd=cdevs),
            iommufd=iommufd,
            gpu_node=vm.gpu_node,
            take=take_device,
            account=account,
        )
        pieces = needs.resources.shared_memory
        await trio.to_thread.run_sync(create_shared_memory, pieces, workshop.viewer, account)
        if account is not None:
            check_shares(vm.running, workshop, needs.resources.sockets.shares)
            taps = await _open_taps(needs, opened)
            held += [descriptor for tap in taps for descriptor in tap.descriptors]
            needs = evolve(needs, resources=evolve(needs.resources, taps=taps))
            open_folders(places, vm.name, needs.resources.sockets, account)
            handed = await hand_over_files(vm, workshop, needs, account, opened)
            held += [it.descriptor for it in handed.resources.handed]
            private_tmp = await lend_belongings(vm, workshop, needs, account)
            needs = handed
            launch = evolve(launch, private_tmp=private_tmp)
        return await _spawn(vm, workshop, launch, needs, held)


async def _unless_ordered(vm: ManagedVm, create: Callable[[], Awaitable[None]]) -> None:
    """Make a VM's files; what is on a dead network file system is waited for until it is to end.

    A helper is killed for that, a look is left behind, and only what is being written is waited
    for. Raises Transient where the VM is to end.
    """
    because = vm.reason
    vm.reason = f"{because}; its images are looked at, and made where they are missing"
    with trio.CancelScope() as creating:
        async with alongside(_cancel_when_ordered, vm, creating):
            await create()
    if vm.order is not None:
        raise Transient("it was to end before its images were there")
    vm.reason = because


async def _cancel_when_ordered(vm: ManagedVm, work: trio.CancelScope) -> None:
    while vm.order is None:
        await vm.ordered.wait()
    vm.step(Step.STOP, vm.order.because)
    work.cancel()


async def _spawn(
    vm: ManagedVm, workshop: Workshop, launch: Launch, needs: Needs, held: Sequence[int]
) -> Process:
    log = workshop.places.log_of(vm.name) / "qemu.log"
    argv = (*build_command_line(needs.vm, needs.resources), *HALTED)
    _write_header(log, argv)
    qemu = HelperCommand("qemu", argv, (*held, *_passed(needs.resources.sockets)))
    with ExitStack() as gates:
        started = []
        for program in (*needs.helpers, qemu):
            gated = start_gated(
                program.argv,
                boot_id=workshop.boot_id,
                output=program.log or log,
                pass_fds=program.pass_fds,
                environment=inherited_environment(),
                account=None if program.keeps_user else launch.account,
                private_tmp=launch.private_tmp and not program.keeps_user,
            )
            gates.enter_context(closing_gate(gated))
            started.append((program.role, gated))
            if program is qemu and launch.account is not None and needs.resources.slices:
                together = workshop.shares_user and needs.resources.iommufd is not None
                limit = lockable_bytes(needs.vm, charged_together=together)
                limit_locked_memory(gated.process.pid, limit)
        launch = evolve(
            launch,
            limits=limits_of(needs.vm, needs.resources),
            argv=argv,
            processes=tuple(OwnedProcess(role, it.process.identity) for role, it in started),
            devices=tuple(sorted(expected_devices(needs.vm, needs.resources))),
            numa_node=needs.resources.numa_node,
            frames=_frames(needs),
        )
        await vm.save(workshop, launch=launch)
        if belongs_in_group_first(needs):
            await enclose(vm, workshop)
        for _, gated in started:
            gated.open_gate()
        for role, gated in started:
            if role != "qemu":
                gated.process.close()
    return started[-1][1].process


async def _open_taps(needs: Needs, opened: ExitStack) -> tuple[Tap, ...]:
    taps = []
    for index, network in enumerate(needs.vm.networks):
        if network.type in {NetworkType.BRIDGE, NetworkType.TAP}:
            tap = await open_tap(index, network, vhost=needs.resources.accel == "kvm")
            opened.callback(tap.close)
            taps.append(tap)
    return tuple(taps)


def _frames(needs: Needs) -> Argv:
    """Return where a Looking Glass client finds the frames of each monitor."""
    pieces = needs.resources.shared_memory
    return tuple(str(it.path) for it in pieces if it.id.startswith("looking-glass"))


def _passed(sockets: Sockets) -> Iterator[int]:
    """Yield the descriptors that QEMU itself listens on."""
    for listener in (sockets.qmp, sockets.monitor, sockets.console, sockets.agent):
        if listener.fd is not None:
            yield listener.fd


async def bring_up(vm: ManagedVm, workshop: Workshop, qmp: Qmp) -> None:
    """Check that every requested device is there, pin the virtual CPUs, and let the guest run.

    Raises Terminal, QMPError.
    """
    launch = vm.record.launch
    if launch is None or vm.running is None:
        raise AssertionError("a QEMU that is brought up has been launched")
    places = workshop.places
    folders = (places.run_of(vm.name), places.qemu_run_of(vm.name))
    give_display(*folders, workshop.viewer, launch.account)
    if missing := await find_absent(launch.devices, qmp):
        raise Terminal(f"QEMU runs without {', '.join(missing)}, which the VM asks for")
    if vm.process is not None:
        await _pin(vm.running, vm.process.pid, launch.numa_node, qmp)
    await vm.enclosed.wait()
    await qmp.execute("cont")


async def _pin(vm: Vm, pid: int, node: int | None, qmp: Qmp) -> None:
    pinning = plan_pinning(vm, observe_numa(Path("/sys")), allowed_cpus(), node)
    if pinning:
        await pin_vcpus(qmp, pid, pinning)


def _write_header(log: Path, argv: Argv) -> None:
    with open(log, "a") as stream:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        stream.write(f"{HEADER} {now} {join(argv)}\n")


HEADER = "=== arcsup starts QEMU:"
"""Begins the line that separates one QEMU's words from the next one's."""


def find_last_words(vm: ManagedVm, workshop: Workshop) -> str:
    """Return what the QEMU of the last start said before it ended, on one line."""
    words = read_last_words(workshop.places.log_of(vm.name) / "qemu.log")
    launch = vm.record.launch
    return words if launch is None else name_files(words, launch.argv)


def read_last_words(log: Path) -> str:
    """Return the lines after the last header without their time stamps; "" if there are none."""
    try:
        with open(log, "rb") as stream:
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - 65536))
            text = stream.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
    lines = text.rpartition(HEADER)[2].splitlines()[1:]
    words = [line.partition("qemu-system-x86_64: ")[2] or line for line in lines]
    return "; ".join(word.strip() for word in words if word.strip())[-500:]
