"""The MAC address of a network card's virtual function, which only its physical function can set.

Source: ip-link(8), "vf NUM mac LLADDRESS".
"""

import json

from attrs import frozen

from arcsup.errors import Transient
from arcsup.host.cards import PCI
from arcsup.host.in_use import FindHolders, require_free
from arcsup.host.owned import OwnedSlice
from arcsup.host.sriov import find_vfs
from arcsup.host.sysfs import Sysfs
from arcsup.host.writer import run_helper

_SECONDS = 60.0
_NONE = "00:00:00:00:00:00"
"""No address was set: the driver of the virtual function makes its own."""


@frozen
class _Place:
    """Where a VF is addressed: its card's network interface, and its number on the card."""

    interface: str
    number: int


async def observe_vf_mac(sysfs: Sysfs, vf: str, *, ip: str = "ip") -> str | None:
    """Return the MAC address that a VF has by its card; None where the card does not tell.

    Raises Transient where it is no VF of a network card now.
    """
    return await _observe(_require_place(sysfs, vf), ip)


async def set_vf_mac(sysfs: Sysfs, vf: str, mac: str, *, ip: str = "ip") -> None:
    """Give a VF of a network card its MAC address through its PF, and look at it.

    Raises Transient where it is no VF of a network card now, or the driver refuses.
    """
    place = _require_place(sysfs, vf)
    number = str(place.number)
    command = [ip, "link", "set", "dev", place.interface, "vf", number, "mac", mac]
    end = await run_helper(command, seconds=_SECONDS, what=place.interface)
    found = await _observe(place, ip)
    if found != mac.lower():
        said = end.output.strip().splitlines()
        raise Transient(
            f"{vf} has the MAC address {found or 'unknown'}, not {mac}",
            f"ip said: {said[-1]}" if said else "",
        )


async def return_vf_mac(
    owned: OwnedSlice, sysfs: Sysfs, find: FindHolders, *, ip: str = "ip"
) -> None:
    """Give a VF that nobody holds back the address that it had; one set by others meanwhile stays.

    While it is without its former driver, for that reads the address when it takes the VF. Raises
    Refused when somebody holds it, Transient when the driver refuses.
    """
    place = _find_place(sysfs, owned.id)
    if place is None or owned.former_mac is None or owned.former_mac == owned.mac:
        return
    await require_free(sysfs, [owned.device], find)
    if await _observe(place, ip) != owned.mac:
        return
    try:
        await set_vf_mac(sysfs, owned.id, owned.former_mac, ip=ip)
    except Transient:
        # Some drivers take no address away again. Its next user sets another one.
        if owned.former_mac != _NONE:
            raise


def _require_place(sysfs: Sysfs, vf: str) -> _Place:
    place = _find_place(sysfs, vf)
    if place is None:
        raise Transient(f"{vf} is no virtual function of a network interface now")
    return place


def _find_place(sysfs: Sysfs, vf: str) -> _Place | None:
    card = sysfs.link_name(f"{PCI}/{vf}/physfn")
    interfaces = sysfs.names(f"{PCI}/{card}/net") if card else []
    numbers = [number for number, each in find_vfs(sysfs, card or "").items() if each == vf]
    return _Place(interfaces[0], numbers[0]) if interfaces and numbers else None


async def _observe(place: _Place, ip: str) -> str | None:
    show = [ip, "-json", "link", "show", "dev", place.interface]
    seen = await run_helper(show, seconds=_SECONDS, what=place.interface)
    return _macs_of_vfs(seen.output).get(place.number)


def _macs_of_vfs(text: str) -> dict[int, str]:
    """Return VF number -> MAC of ``ip -json link show``; older ones say "mac", newer "address"."""
    try:
        (link,) = json.loads(text)
        vfs = link.get("vfinfo_list", [])
        found = {vf["vf"]: vf.get("address") or vf.get("mac") for vf in vfs}
    except (ValueError, TypeError, KeyError, AttributeError):
        return {}
    return {number: mac.lower() for number, mac in found.items() if isinstance(mac, str)}
