"""The QMP session of one running QEMU: brought up, listened to, and opened again when it breaks.

A QEMU is started with its CPUs halted (-S), so that nothing of the guest runs before every
requested device is seen to be there and the CPUs are pinned. It is also told to pause, not to
exit, when the guest powers off or panics: how a guest ended can then still be read by a daemon
that was not there when it happened.
"""

import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import trio
from attrs import evolve
from qemu.qmp import ConnectError, ExecInterruptedError, QMPError

from arcsup.alongside import alongside
from arcsup.errors import Terminal, Transient
from arcsup.model import ConditionType
from arcsup.plan.lifecycle import Phase, Step
from arcsup.vm.launch import find_last_words
from arcsup.vm.live_clone import end_left_clone
from arcsup.vm.live_gpus import note_unplugged
from arcsup.vm.managed import ManagedVm, StopOrder, Workshop
from arcsup.vm.presence import verify_slices
from arcsup.vm.qmp import (
    Qmp,
    QmpEvent,
    check_peer,
    connect_qmp_socket,
    open_qmp,
    query_status,
)
from arcsup.vm.second_monitor import (
    SECOND_ANSWER,
    SECOND_MONITOR,
    query_status_elsewhere,
    quit_elsewhere,
)

logger = logging.getLogger(__name__)

ANSWER = 5.0
"""Seconds within which a healthy monitor answers."""

PULSE = 30.0
"""How often, in seconds, a monitor is asked whether it still answers."""

RETRY = 1.0
"""Seconds between attempts to open a monitor anew."""

SILENT_PULSE = 5.0
"""How often, in seconds, one that has stopped answering is asked."""

CROWD = 20
BREATH = 0.02
"""With so many events waiting, seconds between one and the next: a QEMU that tells thousands in a
second is looked at fifty times, and the rest is dropped as what nobody has read."""

LONGEST_QUOTE = 200
"""Characters that are kept of a QEMU's own words."""

BringUp = Callable[[ManagedVm, Workshop, Qmp], Awaitable[None]]
"""Makes a halted QEMU ready to run its guest. Raises Terminal when something is missing."""


async def keep_monitor(vm: ManagedVm, workshop: Workshop, bring_up: BringUp) -> None:
    """Keep the monitor of ``vm``'s QEMU open until cancelled. Never raises because of QEMU."""
    while True:
        silence = ""
        try:
            await _serve_session(vm, workshop, bring_up)
        except ExecInterruptedError:
            pass  # QEMU ended, or will be found silent at the next attempt.
        except (OSError, QMPError, trio.TooSlowError) as error:
            if vm.phase is not Phase.STARTING:
                silence = str(error) or f"no answer within {ANSWER:g} s"
        except (Terminal, Transient) as error:
            why, hopeless = error.message, isinstance(error, Terminal)
            vm.give_order(StopOrder(why, hard=True, start_failed=why, hopeless=hopeless))
        finally:
            vm.qmp = None
            vm.session_over.set()
            vm.session_over = trio.Event()
        if silence:
            _says_nothing(vm, workshop, silence)
            await _look_elsewhere(vm, workshop)
        await trio.sleep(RETRY)


async def _serve_session(vm: ManagedVm, workshop: Workshop, bring_up: BringUp) -> None:
    with trio.fail_after(ANSWER):
        stream, peer = await connect_qmp_socket(workshop.places.run_of(vm.name) / "qmp.sock")
    if vm.process is not None:
        check_peer(peer, vm.process.pid)
    # A QEMU that is still starting greets when it is done; one that is up greets at once.
    patience = trio.current_time() + (math.inf if vm.phase is Phase.STARTING else ANSWER)
    with trio.CancelScope(deadline=patience) as greeting:
        async with open_qmp(stream) as qmp:
            greeting.deadline = math.inf
            vm.qmp = qmp
            # A QEMU that ends while it is asked has said why: that is among the events.
            with suppress(ExecInterruptedError):
                await look(vm, workshop, qmp, bring_up)
                # Nobody may have listened when the guest was reset.
                await verify_slices(vm, workshop, qmp)
                await end_left_clone(vm, workshop)
            async with alongside(_feel_pulse, vm, workshop, qmp):
                async for event in qmp.events:
                    await _on_event(vm, workshop, qmp, event, bring_up)
                    if qmp.events.statistics().current_buffer_used > CROWD:
                        await trio.sleep(BREATH)
        if qmp.broken:
            raise ConnectError("it does not speak QMP", ValueError(qmp.broken))
    if greeting.cancelled_caught:
        raise trio.TooSlowError


async def _feel_pulse(vm: ManagedVm, workshop: Workshop, qmp: Qmp) -> None:
    pause = PULSE
    while True:
        await trio.sleep(pause)
        try:
            with trio.fail_after(ANSWER):
                await query_status(qmp)
        except (QMPError, trio.TooSlowError):
            pause = SILENT_PULSE
            _says_nothing(vm, workshop, f"no answer within {ANSWER:g} s")
            await _look_elsewhere(vm, workshop)
        else:
            pause = PULSE
            _says_something(vm, workshop)


def _says_nothing(vm: ManagedVm, workshop: Workshop, why: str) -> None:
    message = f"QEMU's monitor is silent: {_clip(why)}"
    known = vm.conditions.get(ConditionType.MONITOR_ANSWERS)
    vm.set_condition(ConditionType.MONITOR_ANSWERS, "Silent", message, status=False)
    if known is None or known.status:
        _quote(vm, workshop, "monitor-silent", message)
        workshop.changed()


def _says_something(vm: ManagedVm, workshop: Workshop) -> None:
    known = vm.conditions.get(ConditionType.MONITOR_ANSWERS)
    vm.set_condition(ConditionType.MONITOR_ANSWERS, "Answers", "QMP answers", status=True)
    if known is not None and not known.status:
        _quote(vm, workshop, "monitor-answers", "QEMU's monitor answers again")
        workshop.changed()


async def _look_elsewhere(vm: ManagedVm, workshop: Workshop) -> None:
    """Ask by the people's monitor whether the guest has ended: QEMU waits for ever to be told to.

    Only an end is acted on. Where nobody answers there either, the condition says already what is
    known, and the next attempt is made when the daemon's own monitor is tried again.
    """
    if vm.process is None:
        return
    socket = workshop.places.run_of(vm.name) / SECOND_MONITOR
    try:
        status = await query_status_elsewhere(socket, vm.process.pid)
        if note_end(vm, status):
            _quote(vm, workshop, "guest-ended", f"the people's monitor says {status}: QEMU quits")
            await quit_elsewhere(socket, vm.process.pid)
    except (OSError, QMPError, trio.TooSlowError) as error:
        why = str(error) or f"nothing within {SECOND_ANSWER:g} s"
        logger.info("nor does the second monitor answer: %s", why, extra={"VM": vm.name})


async def _on_event(
    vm: ManagedVm, workshop: Workshop, qmp: Qmp, event: QmpEvent, bring_up: BringUp
) -> None:
    logger.debug("%s", event.name, extra={"VM": vm.name, "QMP_DATA": event.data})
    match event.name:
        case "SHUTDOWN":
            _note_shutdown(vm, _clip(event.data.get("reason", "")))
        case "GUEST_PANICKED":
            vm.evidence = evolve(vm.evidence, panicked=True)
        case "RESET":
            reason = _clip(event.data.get("reason", ""))
            guest = event.data.get("guest") is True
            _quote(vm, workshop, "guest-reset", "the guest was reset", guest=guest, reason=reason)
            with suppress(ExecInterruptedError):
                await verify_slices(vm, workshop, qmp)
        case "DEVICE_DELETED" | "DEVICE_UNPLUG_GUEST_ERROR":
            gone = event.name == "DEVICE_DELETED"
            if note_unplugged(vm, str(event.data.get("device", "")), gone=gone):
                workshop.changed()
        case "BLOCK_IO_ERROR":
            _note_io_error(vm, workshop, event.data)
        case "POWERDOWN":
            _quote(vm, workshop, "power-button", "the power button was pressed")
    if event.name in _LOOK_AFTER or qmp.lost_events:
        qmp.lost_events = False
        with suppress(ExecInterruptedError):
            await look(vm, workshop, qmp, bring_up)


_LOOK_AFTER = frozenset({"SHUTDOWN", "GUEST_PANICKED", "STOP", "RESUME", "WATCHDOG", "SUSPEND"})
"""Events after which QEMU is asked how it is: what they say may be old by the time it is read."""


def _note_shutdown(vm: ManagedVm, reason: str) -> None:
    # The first reason is the cause. Our own quit, after a guest has ended, is none.
    ours = reason == "host-qmp-quit" and vm.evidence.found_shut_down
    if vm.evidence.shutdown_reason is None and not ours:
        vm.evidence = evolve(vm.evidence, shutdown_reason=reason)


def _note_io_error(vm: ManagedVm, workshop: Workshop, data: Mapping[str, Any]) -> None:
    device = _clip(data.get("device") or data.get("node-name"))
    message = f"disk {device}: {_clip(data.get('reason'))}"
    vm.set_condition(ConditionType.DISKS_WORK, "IoError", message, status=False)
    told = {key: _clip(data.get(key, "")) for key in ("operation", "action", "reason")}
    _quote(vm, workshop, "disk-error", message, device=device, **told)


def _quote(vm: ManagedVm, workshop: Workshop, kind: str, message: str, **data: str | bool) -> None:
    """Tell what QEMU or its guest says, but not as often as they like.

    The events of all VMs share one ring and one log: one VM must not push out the others'.
    """
    held_back = vm.restraint.admit(kind, time.monotonic())
    if held_back is not None:
        more = f" ({held_back} more like it were not told)" if held_back else ""
        workshop.tell(vm.name, kind, message + more, **data)


def _clip(words: object) -> str:
    return str(words)[:LONGEST_QUOTE]


async def look(vm: ManagedVm, workshop: Workshop, qmp: Qmp, bring_up: BringUp) -> None:
    """Ask QEMU how it is and draw the consequences. Source: QAPI type RunState."""
    with trio.fail_after(ANSWER):
        status = await query_status(qmp)
    _says_something(vm, workshop)
    if status in ("prelaunch", "inmigrate") and vm.order is None:
        with trio.fail_after(ANSWER):
            await bring_up(vm, workshop, qmp)
            status = await query_status(qmp)
    if note_end(vm, status):
        await _quit(qmp)
    elif status == "internal-error" and (why := _find_device_error(vm, workshop)):
        workshop.tell(vm.name, "device-lost", why)
        vm.give_order(StopOrder(why, device_lost=True))
    elif status == "internal-error":
        _note_shutdown(vm, "host-error")
        await _quit(qmp)
    elif status in ("running", "suspended"):
        await _note_running(vm, workshop)
    elif status in ("paused", "io-error", "debug", "watchdog"):
        await _note_paused(vm, workshop, status)


def note_end(vm: ManagedVm, status: str) -> bool:
    """Note the end of a guest that QEMU was found paused at; tell whether it is one.

    Why it is so comes as an event, unless nobody listened when it happened.
    """
    if status == "shutdown":
        vm.evidence = evolve(vm.evidence, found_shut_down=True)
    elif status == "guest-panicked":
        vm.evidence = evolve(vm.evidence, panicked=True)
    return status in ("shutdown", "guest-panicked")


def _find_device_error(vm: ManagedVm, workshop: Workshop) -> str:
    """Return what QEMU says of a device that a PCI error has ended; "" where it halted for else.

    It halts then with the state of an error of its own (hw/vfio/pci.c, vfio_err_notifier_handler).
    """
    words = find_last_words(vm, workshop)
    return words if vm.record.slices and "Unrecoverable error detected" in words else ""


async def _quit(qmp: Qmp) -> None:
    with trio.fail_after(ANSWER):
        await qmp.execute("quit")


async def _note_running(vm: ManagedVm, workshop: Workshop) -> None:
    if vm.phase is Phase.STARTING:
        await note_ready(vm, workshop)
    elif vm.phase is Phase.PAUSED:
        vm.step(Step.RESUME)
        _quote(vm, workshop, "resumed", "its virtual CPUs run again")
    workshop.changed()


async def _note_paused(vm: ManagedVm, workshop: Workshop, status: str) -> None:
    if vm.phase is Phase.STARTING:
        await note_ready(vm, workshop)
    if vm.phase is Phase.RUNNING:
        why = "its virtual CPUs are halted" if status == "paused" else f"QEMU halted it: {status}"
        vm.step(Step.PAUSE, why)
        _quote(vm, workshop, "paused", why)
    workshop.changed()


async def note_ready(vm: ManagedVm, workshop: Workshop) -> None:
    """Record that a VM runs; from here on its end is no failed start."""
    vm.evidence = evolve(vm.evidence, was_ready=True)
    since = datetime.now(UTC)
    launch = vm.record.launch
    if launch is not None and launch.ready_at is None:
        now = time.monotonic()
        took = now - launch.started_at
        try:
            # Before anybody can see it run: a daemon that dies now must not pass it for half made.
            await vm.save(workshop, launch=evolve(launch, ready_at=now), since=since)
        except Terminal as error:
            # A full disk is no reason to end a guest that runs.
            workshop.tell(vm.name, "trouble", error.message)
        vm.hindrance_told = ""
        workshop.became_ready(vm, took)
        workshop.tell(vm.name, "running", f"running after {took * 1000:.0f} ms")
    if vm.phase is Phase.STARTING:
        vm.step(Step.READY)
        vm.since = since
    vm.ready.set()
