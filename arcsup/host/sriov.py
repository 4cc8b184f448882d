"""Virtual functions: how many a card has.

They are counted by their links: a read of ``sriov_numvfs`` waits for the lock that a stuck write
to it holds. Source: Documentation/ABI/testing/sysfs-bus-pci, drivers/pci/iov.c.
"""

import errno
import re
from pathlib import Path

import trio

from arcsup.errors import ArcsupError, Refused, Terminal, Transient
from arcsup.host.cards import PCI
from arcsup.host.holders import find_holders
from arcsup.host.host_use import FindHostUse, find_host_use
from arcsup.host.in_use import FindHolders, require_free
from arcsup.host.sysfs import Sysfs
from arcsup.host.vendor_vgpu import observe_vendor_vf
from arcsup.host.vfio_drivers import is_on_vfio
from arcsup.host.writer import Word, comes_true, explain, run_helper, write_sysfs

SRIOV_MANAGE = Path("/usr/lib/nvidia/sriov-manage")

_WRITE_SECONDS = 60.0
_TOOL_SECONDS = 120.0
_READY_SECONDS = 30.0
_LOCK_TRIES = 5
_LOCK_PAUSE = 1.0
"""sriov-manage needs a lock that a monitoring program may have for a moment."""

_VIRTFN = re.compile(r"virtfn(\d{1,5})")
_WORDS = {
    errno.EBUSY: Word(Transient, "the driver is busy, or other VFs were made meanwhile"),
    errno.ENOENT: Word(Transient, "no driver that makes virtual functions is bound to the card"),
    errno.ERANGE: Word(Terminal, "the card cannot have that many"),
    errno.EINVAL: Word(Terminal, "the card cannot have that many"),
    errno.ENOMEM: Word(
        Terminal,
        "the firmware has left no bus numbers or address space for them",
        "switch SR-IOV and 64-bit BARs on in the firmware, or boot with pci=realloc,assign-busses",
    ),
    errno.ENODEV: Word(Transient, "the driver is not ready for it"),
}


def find_vfs(sysfs: Sysfs, address: str) -> dict[int, str]:
    """Return number -> address of a card's VFs, by its links."""
    path = f"{PCI}/{address}"
    matches = (_VIRTFN.fullmatch(name) for name in sysfs.names(path))
    links = {int(match[1]): sysfs.link_name(f"{path}/{match[0]}") for match in matches if match}
    return {number: vf for number, vf in sorted(links.items()) if vf is not None}


async def enable_vfs(
    address: str,
    count: int,
    sysfs: Sysfs,
    *,
    holders: FindHolders = find_holders,
    find_use: FindHostUse = find_host_use,
    sriov_manage: Path = SRIOV_MANAGE,
) -> None:
    """Let the card at a PCI address have ``count`` VFs that can be used; 0 takes all away.

    NVIDIA's tool makes as many as the card can have: there more than ``count`` is enough. Raises
    Refused while a slice of these VFs is there or the host uses one, Transient, Stuck or Terminal.
    """
    _require_count(sysfs, address, count)
    if not _is_enough(sysfs, address, count):
        if find_vfs(sysfs, address):
            await _require_vfs_unused(sysfs, address, holders, find_use)
        await _set_count(sysfs, address, count, sriov_manage)
    vfs = find_vfs(sysfs, address)
    if len(vfs) < count:
        raise Transient(
            f"{address}: {count} virtual functions were asked for and {len(vfs)} were made",
            "the kernel log tells why",
        )
    for vf in vfs.values():
        await _await_vf(sysfs, address, vf)


def _require_count(sysfs: Sysfs, address: str, count: int) -> None:
    path = f"{PCI}/{address}"
    if not sysfs.is_folder(path):
        raise Transient(f"{address} is not there")
    total = sysfs.count(f"{path}/sriov_totalvfs")
    if total is None:
        raise Terminal(f"{address} has no SR-IOV", "its firmware or vendor may have it off")
    if total == 0 < count:
        raise Terminal(
            f"{address} has SR-IOV, but its driver has it switched off",
            "for Intel's xe see the module parameter max_vfs",
        )
    if count > total:
        raise Terminal(
            f"{address} can have {total} virtual functions, not {count}",
            "lower the number in arcsup.yaml",
        )


def _is_nvidia(sysfs: Sysfs, address: str) -> bool:
    return sysfs.link_name(f"{PCI}/{address}/driver") == "nvidia"


def _is_enough(sysfs: Sysfs, address: str, count: int) -> bool:
    have = len(find_vfs(sysfs, address))
    return have == count or (_is_nvidia(sysfs, address) and have >= count > 0)


async def _require_vfs_unused(
    sysfs: Sysfs, address: str, holders: FindHolders, find_use: FindHostUse
) -> None:
    """Refuse to take VFs away while anything was made of one, or the host's programs have one.

    Whoever made it: the kernel takes them from under whoever uses them (sriov_disable in
    drivers/pci/iov.c unbinds their drivers, which is never refused).
    """
    vfs = find_vfs(sysfs, address)
    parents = {(sysfs.real(f"bus/mdev/devices/{name}") or "").rpartition("/")[0]
               for name in sysfs.names("bus/mdev/devices")}  # fmt: skip
    for vf in vfs.values():
        path = f"{PCI}/{vf}"
        seen = observe_vendor_vf(sysfs, path, vf)
        if seen is not None and seen.current is not None:
            why = f"{vf} has the vGPU type {seen.current}"
        elif sysfs.real(path) in parents:
            why = f"{vf} has a mediated device"
        elif is_on_vfio(sysfs, path):
            why = f"{vf} is handed out (on {sysfs.link_name(f'{path}/driver')})"
        else:
            continue
        raise Refused(
            f"the virtual functions of {address} cannot be changed: {why}", "take it back first"
        )
    # Thousands of small reads in /proc.
    used = await trio.to_thread.run_sync(find_use, sysfs, list(vfs.values()))
    if used:
        why = "; ".join(f"{vf} {use}" for vf, use in used.items())
        raise Refused(
            f"the virtual functions of {address} cannot be changed: {why}", "end that use first"
        )
    await require_free(sysfs, [f"{PCI}/{vf}" for vf in vfs.values()], holders)


async def _set_count(sysfs: Sysfs, address: str, count: int, sriov_manage: Path) -> None:
    try:
        if find_vfs(sysfs, address):
            # The kernel does not change one number into another (EBUSY).
            await _write_count(sysfs, address, 0)
        if count:
            await _make_vfs(sysfs, address, count)
    except OSError as error:
        if not _is_nvidia(sysfs, address):
            raise explain(f"{count} virtual functions on {address}", error, _WORDS) from error
        await _run_sriov_manage(sysfs, address, count, sriov_manage)


async def _make_vfs(sysfs: Sysfs, address: str, count: int) -> None:
    """Make VFs that no driver of the host takes: its programs would have them at once.

    A desktop opens each that i915 or xe takes, and dies when that goes. Only NVIDIA's need theirs,
    and only network interfaces are for the host, too. Whether drivers take them is put back in any
    case; where a killed daemon could not, they find none but by name (pci_device_add_driver_probe
    in drivers/pci/pci-driver.c), which is how we bind.
    """
    attribute = f"{PCI}/{address}/sriov_drivers_autoprobe"
    is_the_hosts = _is_nvidia(sysfs, address) or sysfs.is_folder(f"{PCI}/{address}/net")
    if is_the_hosts or sysfs.text(attribute) != "1":
        await _write_count(sysfs, address, count)
        return
    await write_sysfs(sysfs.full(attribute), "0", seconds=_WRITE_SECONDS)
    try:
        await _write_count(sysfs, address, count)
    finally:
        with trio.CancelScope(shield=True):
            await write_sysfs(sysfs.full(attribute), "1", seconds=_WRITE_SECONDS)


async def _write_count(sysfs: Sysfs, address: str, count: int) -> None:
    path = sysfs.full(f"{PCI}/{address}/sriov_numvfs")
    await write_sysfs(path, str(count), seconds=_WRITE_SECONDS)


async def _run_sriov_manage(sysfs: Sysfs, address: str, count: int, tool: Path) -> None:
    """Use the vendor's tool; whether it did anything is seen at the links, not its exit code."""
    if not tool.exists():
        raise Terminal(
            f"the virtual functions of {address} cannot be changed: {tool} is not there",
            "install the host driver of NVIDIA vGPU completely",
        )
    said = ""
    for attempt in range(_LOCK_TRIES):
        if attempt:
            await trio.sleep(_LOCK_PAUSE)
        command = [str(tool), "-e" if count else "-d", address]
        end = await run_helper(command, seconds=_TOOL_SECONDS, what=f"{tool} {address}")
        said = end.output.strip()
        if _is_enough(sysfs, address, count) or "unbindLock" not in said:
            break
    if not _is_enough(sysfs, address, count):
        raise _tool_failure(address, said)


def _tool_failure(address: str, said: str) -> ArcsupError:
    if "unbindLock" in said:
        return Transient(
            f"{address} is in use by a program that watches it",
            "stop nvidia-persistenced, dcgm and exporters while its VFs are changed",
        )
    last = said.splitlines()[-1] if said else "nothing"
    return Transient(f"{address}: its virtual functions did not change; sriov-manage said: {last}")


async def _await_vf(sysfs: Sysfs, card: str, vf: str) -> None:
    if not await comes_true(lambda: not _vf_obstacle(sysfs, card, vf), seconds=_READY_SECONDS):
        raise Transient(f"{vf} is not usable yet: {_vf_obstacle(sysfs, card, vf)}")


def _vf_obstacle(sysfs: Sysfs, card: str, vf: str) -> str:
    """Return what a new VF still lacks; "" when it is as complete as its card is."""
    path = f"{PCI}/{vf}"
    if not sysfs.is_folder(path):
        return "it is not there"
    if sysfs.has(f"{PCI}/{card}/iommu_group") and not sysfs.has(f"{path}/iommu_group"):
        return "it has no IOMMU group"
    if not _is_nvidia(sysfs, card):
        return ""
    if sysfs.link_name(f"{path}/driver") != "nvidia":
        return "its driver has not taken it"
    types = sysfs.names(f"{path}/mdev_supported_types")
    seen = observe_vendor_vf(sysfs, path, vf)
    has_types = bool(types) and not any(name.startswith("pci-") for name in types)
    is_settled = has_types or (seen is not None and seen.settled)
    return "" if is_settled else "its driver has not made its types"
