"""The USB devices of the host that a VM gets: not what is excluded, nor what the host uses."""

import os
from collections.abc import Sequence
from pathlib import Path

import trio

from arcsup.host.holders import PROC
from arcsup.host.host_use import find_usb_use
from arcsup.host.sysfs import Sysfs
from arcsup.host.usb import observe_usb
from arcsup.model import UsbByPort, UsbByProduct, Vm
from arcsup.plan.usb import UsbDevice, UsbPolicy, find_usb_bar, is_meant, needs_no_look
from arcsup.vm.managed import Workshop
from arcsup.vm.slices import DeviceTrouble

UsbRequests = tuple[UsbByProduct | UsbByPort, ...]


async def find_usb(vm: Vm, workshop: Workshop) -> tuple[tuple[int, UsbDevice], ...]:
    """Return the devices that a VM gets now, each with the number of its entry in ``usb``.

    Raises DeviceTrouble with what must not be given, and why.
    """
    found, why = await _look(vm.usb, workshop)
    if why:
        raise DeviceTrouble(why)
    return found


async def find_usb_awaited(requests: UsbRequests, workshop: Workshop) -> str:
    """Return why a VM does not get the USB devices that it asks for, "" where it does."""
    return (await _look(requests, workshop))[1]


async def _look(
    requests: UsbRequests, workshop: Workshop
) -> tuple[tuple[tuple[int, UsbDevice], ...], str]:
    if not requests:
        return (), ""
    # Thousands of small reads in /proc.
    return await trio.to_thread.run_sync(
        judge_usb, requests, workshop.usb, workshop.places.sysfs, abandon_on_cancel=True
    )


def judge_usb(
    requests: UsbRequests, entries: Sequence[UsbPolicy], root: Path, proc: Path | None = None
) -> tuple[tuple[tuple[int, UsbDevice], ...], str]:
    """Return the devices that are meant, and what speaks against giving them, "" for nothing.

    ``proc`` None is this host's own where ``root`` is its device tree, else none.
    """
    sysfs = Sysfs(root)
    devices = observe_usb(sysfs)
    found = [(n, it) for n, asked in enumerate(requests) for it in devices if is_meant(asked, it)]
    for number, request in enumerate(requests):
        meant = [device for index, device in found if index == number]
        if why := find_usb_bar(request, meant, entries):
            return (), f"usb[{number}]: {why}"
    if proc is None and root.resolve() == Path("/sys"):
        proc = PROC
    looked = {it.name: it for _, it in found if not needs_no_look(it, entries)}
    # Who is not root can be given nothing by us: what its user may open is its own.
    used = find_usb_use(sysfs, looked, proc=proc, sees_all=os.geteuid() == 0)
    for number, device in found:
        if use := used.get(device.name):
            way = f"`usb: [{{match: {device.name}, force: true}}]` in arcsup.yaml"
            return (), f"usb[{number}]: {device} {use}; {way} gives it all the same"
    return tuple(found), ""
