"""Whether a guest can use the devices that QEMU has for it: whether their memory has addresses.

QEMU takes a device whatever its guest makes of it. A guest that has no room behind the port, or
does not look there, leaves BARs without addresses, and no driver can use such a device.

``query-pci`` tells of an address only while the device answers to it, which a driver switches on;
so the registers themselves decide, read where the guest reads them: through q35's MMCONFIG.
Sources: QAPI query-pci; QEMU's hw/pci/pci.c (pci_bar_address) and hw/pci/pcie_host.c; PCI Local
Bus Specification 3.0, section 6.2.5.1.
"""

import re
from collections.abc import Collection, Iterator, Mapping

import trio
from attrs import frozen
from qemu.qmp import QMPError

from arcsup.model import ConditionType
from arcsup.plan.lifecycle import Phase
from arcsup.vm.managed import ManagedVm, Workshop
from arcsup.vm.qmp import Qmp, take_list, take_number, take_word
from arcsup.vm.slices import slice_devices

CONDITION = ConditionType.DEVICES_USABLE

ANSWER = 5.0
"""Seconds within which a healthy QEMU answers."""

PATIENCE = 30.0
"""Seconds that a guest may leave a device without addresses: it boots, or its driver is at work."""

LOOK = 60.0
"""Seconds between two looks while every device has its addresses."""

LOOK_SOON = 2.0
"""Seconds between two looks while one has not."""

MOST_FUNCTIONS = 1024
"""Of one answer: there are 20 or so, and what a QEMU says is not believed to end."""

_BARS = 6
_LINE = re.compile(r"[0-9a-f]+:((?: 0x[0-9a-f]{8})+)")


@frozen
class _Bar:
    number: int
    size: int
    wide: bool
    answers: bool


@frozen
class _Function:
    """A PCI function where it is at the moment, with its memory BARs."""

    bus: int
    slot: int
    function: int
    bars: tuple[_Bar, ...]


async def find_unaddressed(devices: Collection[str], qmp: Qmp) -> dict[str, str]:
    """Return which of these devices have memory without an address, each with what of it.

    Raises QMPError, or TooSlowError when there is no answer.
    """
    with trio.fail_after(ANSWER):
        functions = parse_functions(await qmp.execute("query-pci"))
        found: dict[str, str] = {}
        for device in devices:
            function = functions.get(device)
            if function is None:
                found[device] = "the guest has not looked for it"
            elif bars := await _find_bare(function, qmp):
                named = (f"BAR {bar.number} of {_in_words(bar.size)}" for bar in bars)
                found[device] = f"no address for {', '.join(named)}"
        return found


def parse_functions(answer: object) -> dict[str, _Function]:
    """Return the functions of a ``query-pci`` that have an id. Raises NonsenseError."""
    found: dict[str, _Function] = {}
    ahead = [it for bus in take_list(answer) for it in take_list(_get(bus, "devices"))]
    for _ in range(MOST_FUNCTIONS):
        if not ahead:
            break
        device = ahead.pop()
        if _get(device, "pci_bridge") is not None:
            ahead += take_list(_get(_get(device, "pci_bridge"), "devices") or [])
        found[take_word(device, "qdev_id")] = _Function(
            take_number(device, "bus"),
            take_number(device, "slot"),
            take_number(device, "function"),
            tuple(_parse_bars(take_list(_get(device, "regions")))),
        )
    return found


def _parse_bars(regions: list[object]) -> Iterator[_Bar]:
    for region in regions:
        # The seventh is the expansion ROM, which guests leave off; ports are for no one any more.
        if _get(region, "type") == "memory" and (number := take_number(region, "bar")) < _BARS:
            wide, address = _get(region, "mem_type_64") is True, _get(region, "address")
            answers = isinstance(address, int) and address >= 0
            yield _Bar(number, take_number(region, "size"), wide, answers)


def _get(answer: object, key: str) -> object:
    return answer.get(key) if isinstance(answer, Mapping) else None


async def _find_bare(function: _Function, qmp: Qmp) -> list[_Bar]:
    """Return the BARs in which no address is written."""
    silent = [bar for bar in function.bars if not bar.answers]
    if not silent:
        return []
    words = await _read_bars(function, qmp)
    return [bar for bar in silent if not _is_written(bar, words)]


def _is_written(bar: _Bar, words: list[int]) -> bool:
    # The lowest four bits say of what kind the memory is.
    high = words[bar.number + 1] if bar.wide and bar.number + 1 < _BARS else 0
    return bool(words[bar.number] & ~0xF or high)


async def _read_bars(function: _Function, qmp: Qmp) -> list[int]:
    """Return the six registers as the guest would read them; zeros where it could not either."""
    where = {"path": "/machine/q35", "property": "MCFG"}
    base = await qmp.execute("qom-get", where)
    if not isinstance(base, int) or base < 0:
        return [0] * _BARS
    place = function.bus << 20 | function.slot << 15 | function.function << 12
    # 0x10: the first of them in the header.
    command = f"xp /{_BARS}wx {base + place + 0x10:#x}"
    text = await qmp.execute("human-monitor-command", {"command-line": command})
    lines = map(_LINE.fullmatch, str(text)[:1000].splitlines())
    words = [int(word, 16) for line in lines if line for word in line[1].split()]
    return words if len(words) == _BARS else [0] * _BARS


def _in_words(size: int) -> str:
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if size >= unit:
            return f"{size // unit} {name}"
    return f"{size} bytes"


async def watch_addresses(vm: ManagedVm, workshop: Workshop) -> None:
    """Say of a VM that runs which of its host devices its guest cannot use, until cancelled."""
    since: dict[str, float] = {}
    while True:
        plugged = vm.plugged
        bare = await _look(vm)
        if bare is not None:
            now = trio.current_time()
            since = {device: since.get(device, now) for device in bare}
            late = {it: why for it, why in bare.items() if now - since[it] >= PATIENCE}
            if late or not bare:
                _say(vm, workshop, late)
        with trio.move_on_after(LOOK_SOON if since else LOOK):
            await plugged.wait()


async def _look(vm: ManagedVm) -> dict[str, str] | None:
    """Return what has no addresses now; None where nobody can be asked."""
    if vm.qmp is None or vm.running is None or vm.phase is not Phase.RUNNING:
        return None
    devices = [it.id for it in slice_devices(vm.running, vm.record.slices_in_use)]
    try:
        return await find_unaddressed(devices, vm.qmp) if devices else {}
    except (QMPError, trio.TooSlowError):
        # The monitor's own watch tells of that.
        return None


def _say(vm: ManagedVm, workshop: Workshop, bare: Mapping[str, str]) -> None:
    known = vm.conditions.get(CONDITION)
    was_told = known is not None and not known.status
    if bare:
        what = "; ".join(f"{device}: {why}" for device, why in sorted(bare.items()))
        message = f"the guest cannot use {what}; a start makes room: arcsup restart {vm.name}"
        vm.set_condition(CONDITION, "NoAddresses", message, status=False)
        if not was_told:
            workshop.tell(vm.name, "device-unusable", message, devices=sorted(bare))
            workshop.changed()
    elif was_told:
        message = "its memory has addresses in the guest"
        vm.set_condition(CONDITION, "Addressed", message, status=True)
        workshop.tell(vm.name, "device-usable", f"what the guest could not use: {message}")
        workshop.changed()
