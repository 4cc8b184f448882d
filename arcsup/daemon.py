"""The daemon: one nursery, and the whole story on this page.

Events only mark; one task observes, plans and carries out; one task per VM supervises. The VMs
are not the daemon's children in spirit: it may end, be killed or be replaced, and they run on.
"""

import logging
import os
import resource
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import trio
from attrs import evolve

import arcsup
from arcsup.allocation import Allocation, policy_of
from arcsup.control.events import EventLog
from arcsup.control.metrics import Metrics
from arcsup.control.reading_socket import ReadingSocket
from arcsup.control.server import serve_control
from arcsup.errors import ArcsupError, ExitCode, Refused, describe_os_error
from arcsup.events.dirty import Bell, Dirty
from arcsup.events.kernel_log import watch_kernel_log
from arcsup.events.uevents import watch_uevents
from arcsup.events.watch import watch_files
from arcsup.fleet import Fleet, default_start_slots
from arcsup.host.identity import boot_id, machine_id
from arcsup.host.owned import OwnedSlice, SliceChoice
from arcsup.host.privileged_files import forbid_privileged_files
from arcsup.host.writer import await_earlier_helpers
from arcsup.keep_going import keep_going
from arcsup.locks import locked
from arcsup.look import DeviceLook
from arcsup.model import Event, ExitClass, LastExit, VmName
from arcsup.notify import notify, watchdog_interval
from arcsup.operator import Operator
from arcsup.places import Places
from arcsup.plan.lifecycle import Phase
from arcsup.reconcile import Reconciler, choose_accounts
from arcsup.show import in_words
from arcsup.shutdown import ask_for_time, host_goes_down, stop_all
from arcsup.spec.config import Config
from arcsup.vf_journal import VfJournal
from arcsup.virtual_functions import VfKeeper
from arcsup.vm.control_groups import choose_control_groups
from arcsup.vm.logfiles import keep_logs_short
from arcsup.vm.managed import ManagedVm, Workshop
from arcsup.vm.private_tmp import choose_private_tmp
from arcsup.vm.record import RecordStore
from arcsup.vm.viewer import Viewer, find_viewer

logger = logging.getLogger(__name__)

EARLIER_WRITES = 3.0
"""Seconds that the device tree may take to come to rest from what a killed daemon was writing."""


def run_daemon(*, places: Places, config: Config, on_exit: str) -> int:
    """Run until SIGTERM or SIGINT; return the exit code. Raises ArcsupError when it cannot."""
    descriptors = _prepare_process()
    with ExitStack() as held:
        # Members of the socket's group pass through the first, QEMU's user through both.
        held.enter_context(_hold(places.run, mode=0o755))
        held.enter_context(_hold(places.state, mode=0o711 if places.system else 0o750))
        filtered = places.system and _filter_files()
        stop_vms = on_exit == "stop"
        trio.run(partial(_serve, places, config, descriptors, filtered=filtered, stop_vms=stop_vms))
    return ExitCode.OK


def _filter_files() -> bool:
    """Let nothing that the daemon starts make privileged files; return whether that holds."""
    try:
        forbid_privileged_files()
    except OSError as error:
        logger.warning(
            "shares that a guest writes to must be where root alone can pass: no filter of "
            "system calls keeps set-user-ID programs from them: %s",
            error.strerror,
        )
        return False
    return True


async def _serve(
    places: Places, config: Config, descriptors: int, *, filtered: bool, stop_vms: bool
) -> None:
    await await_earlier_helpers(seconds=EARLIER_WRITES)
    dirty, bell, event_log = Dirty(), Bell(), EventLog()
    metrics = Metrics(arcsup.__version__)
    allocation = Allocation(DeviceLook(places.sysfs), policy_of(config))
    viewer = find_viewer(config.viewer)
    workshop = _open_workshop(places, config, dirty, bell, event_log, metrics, allocation, viewer)
    private_tmp = await choose_private_tmp(places, config.image_dirs)
    workshop = evolve(
        workshop,
        private_tmp=private_tmp,
        hook_descriptors=descriptors,
        no_privileged_files=filtered,
    )
    fleet = Fleet(workshop, bell, config.start_limit or default_start_slots(), allocation)
    fleet.load_records()
    allocation.look.owners = fleet.slice_owners
    allocation.look.homes = fleet.slice_homes
    allocation.losses.changed = partial(dirty.mark, "devices")
    allocation.losses.tell = partial(_tell_of_device, workshop)
    async with trio.open_nursery() as vms:
        async with trio.open_nursery() as nursery:
            keeper = VfKeeper(
                places.sysfs,
                VfJournal.load(places.state / "vfs.json", workshop.boot_id),
                partial(workshop.tell, None),
                partial(dirty.mark, "devices"),
                vms,
            )
            reconciler = Reconciler(fleet, dirty, metrics, vms, config.resync, keeper, config)
            operator = Operator(fleet, reconciler, event_log, metrics)
            tell_of_socket = partial(workshop.tell, None, "socket-removed")
            reading = ReadingSocket(operator, places.read_only_socket, tell_of_socket)
            reading.give_to(config.monitoring_group)
            reconciler.reading = reading
            reconciler.adopt_all()
            # From here on everything that changes marks; nothing is decided before the files are
            # read.
            losses = allocation.losses
            tasks: dict[str, Callable[[], Awaitable[None]]] = {
                "watching VM files": partial(watch_files, places.vms, partial(dirty.mark, "files")),
                "listening to the kernel": partial(
                    watch_uevents, partial(dirty.mark, "kernel"), losses.hear_uevent
                ),
                "following the kernel log": partial(watch_kernel_log, losses.hear_log),
                "deciding about VMs": reconciler.run,
                "keeping logs short": partial(
                    keep_logs_short, fleet.log_folders, partial(_tell_of_log, workshop)
                ),
                "feeding the watchdog": partial(_feed_watchdog, reconciler),
                "telling systemd": partial(_tell_status, fleet),
            }
            for what, task in tasks.items():
                nursery.start_soon(keep_going, what, task)
            await reconciler.files_read.wait()
            serve = partial(serve_control, group=config.group, tell=tell_of_socket)
            await nursery.start(serve, operator, places.socket)
            await nursery.start(reading.serve)
            notify(READY=1)
            logger.info("ready", extra={"VMS": len(fleet.vms), "VM_DIRECTORY": places.vms})
            await _obey_signals(reconciler)
            notify(STOPPING=1)
            reconciler.ending = True
            if stop_vms or await host_goes_down(system=places.system):
                nursery.start_soon(ask_for_time)
                await stop_all(fleet)
            nursery.cancel_scope.cancel()
        # Only now: a copy of a disk that was cancelled is ended on the monitor of its VM.
        vms.cancel_scope.cancel()


def _open_workshop(
    places: Places,
    config: Config,
    dirty: Dirty,
    bell: Bell,
    event_log: EventLog,
    metrics: Metrics,
    allocation: Allocation,
    viewer: Viewer | None,
) -> Workshop:
    def tell(vm: VmName | None, kind: str, message: str, **data: Any) -> None:
        event_log.append(Event(datetime.now(UTC), vm, kind, message, data))
        fields = {"VM": vm, "EVENT": kind} if vm else {"EVENT": kind}
        logger.info("%s", message, extra=fields)

    def changed() -> None:
        dirty.mark("qemu")
        bell.ring()

    def ended(vm: VmName, last_exit: LastExit, *, comes_back: bool) -> None:
        if last_exit.exit_class is ExitClass.DEVICE_LOST:
            dirty.mark("devices")
        if comes_back:
            metrics.count_restart(vm, last_exit.exit_class)
        what = "QEMU ended" if last_exit.had_qemu else "no QEMU could be started"
        tell(vm, "ended", f"{what}: {in_words(last_exit)}", exitClass=last_exit.exit_class)

    def device_failed(choice: SliceChoice | OwnedSlice) -> None:
        allocation.note_failure(choice)
        dirty.mark("devices")

    def became_ready(vm: ManagedVm, seconds: float) -> None:
        metrics.observe_time_to_running(seconds)
        allocation.note_success(vm.record.slices_in_use)
        if vm.record.slices:
            # NVIDIA's vendor interface tells of no vGPU that was made.
            dirty.mark("devices")

    machine = str(machine_id(places.state))
    return Workshop(
        places=places,
        machine_id=machine,
        accounts=choose_accounts(config, machine) if places.system else None,
        control_groups=choose_control_groups(system=places.system),
        image_folders=config.image_dirs,
        iommufd=config.iommufd,
        usb=config.usb,
        boot_id=str(boot_id()),
        records=RecordStore(places.state / "vms", places.run_of),
        tell=tell,
        changed=changed,
        became_ready=became_ready,
        ended=ended,
        device_failed=device_failed,
        viewer=viewer,
    )


def _tell_of_device(workshop: Workshop, address: str, sentence: str) -> None:
    workshop.tell(None, "device-fault", f"{address}: {sentence}", address=address)


def _tell_of_log(workshop: Workshop, name: VmName, sentence: str) -> None:
    workshop.tell(name, "log-flood", sentence)


async def _obey_signals(reconciler: Reconciler) -> None:
    """Return when the daemon is to end; SIGHUP makes it look at everything again."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        async for number in signals:
            if number != signal.SIGHUP:
                logger.info("ending on %s", signal.Signals(number).name)
                return
            notify(RELOADING=1, MONOTONIC_USEC=time.monotonic_ns() // 1000)
            try:
                reconciler.reload()
            except ArcsupError as error:
                logger.error("%s", error.message)  # noqa: TRY400
            except OSError as error:
                logger.error("%s", describe_os_error(error))  # noqa: TRY400
            notify(READY=1)


async def _feed_watchdog(reconciler: Reconciler) -> None:
    """Tell systemd that we live, for as long as passes are made."""
    interval = watchdog_interval()
    while interval is not None:
        if time.monotonic() - reconciler.last_pass < 2 * reconciler.resync + interval:
            notify(WATCHDOG=1)
        await trio.sleep(interval)


async def _tell_status(fleet: Fleet) -> None:
    while True:
        running = sum(vm.phase is Phase.RUNNING for vm in fleet.vms.values())
        notify(STATUS=f"{running} of {len(fleet.vms)} VMs running")
        await fleet.changed.wait()


@contextmanager
def _hold(directory: Path, *, mode: int) -> Iterator[None]:
    """Hold a directory, made with ``mode`` if it is missing, for this daemon alone.

    Raises Refused when another daemon has it, ArcsupError when it cannot be made.
    """
    try:
        if not directory.is_dir():
            directory.mkdir(parents=True)
            directory.chmod(mode)
        lock = os.open(directory / "daemon.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ArcsupError(
            f"{error.filename}: {error.strerror}", "run as root, or name another directory"
        ) from error
    refusal = Refused(
        f"another daemon uses {directory}", "`arcsup list` talks to it; stop it first"
    )
    with locked(lock, lambda: refusal):
        yield


def _prepare_process() -> int:
    """Let nothing that we were started with leak into QEMU, and allow a descriptor per socket.

    Returns how many descriptors programs were allowed before. QEMU keeps what it is given here: its
    main loop polls, and newer versions raise the limit themselves (os-posix.c, os_setup_limits).
    """
    for descriptor in map(int, [entry.name for entry in Path("/proc/self/fd").iterdir()]):
        with suppress(OSError):  # The one that the directory itself was read through.
            os.set_inheritable(descriptor, descriptor <= sys.stderr.fileno())
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    os.umask(0o027)
    return soft
