"""Handing whole PCI functions to a VFIO driver, and giving them back as they were.

By ``driver_override`` and ``drivers_probe``: ``new_id`` would change every device of its kind.
Source: Documentation/ABI/testing/sysfs-bus-pci, drivers/pci/pci-driver.c.
"""

import errno
from collections.abc import Collection

import trio

from arcsup.errors import Refused, Stuck, Terminal, Transient
from arcsup.host.cards import PCI
from arcsup.host.host_use import FindHostUse, find_host_use
from arcsup.host.identity import boot_id
from arcsup.host.in_use import FindHolders, require_free
from arcsup.host.iommu import IommuGroups
from arcsup.host.owned import Identity, OwnedSlice, Rebinding
from arcsup.host.sysfs import Sysfs
from arcsup.host.vfio_drivers import DRIVERS, VFIO_PCI, find_vfio_driver, is_on_vfio
from arcsup.host.writer import Word, comes_true, explain, read_sysfs, write_sysfs

_SECONDS = 15.0
_LOOK_SECONDS = 5.0
_NO_OVERRIDE = "\n"
"""An empty write never reaches the kernel; this one clears."""

_PROBE_WORDS = {
    errno.EINVAL: Word(Transient, "its driver refused it", "the kernel log tells why"),
    errno.ENODEV: Word(Transient, "the function has just gone"),
    errno.ENOENT: Word(Transient, "the function has just gone"),
}


async def observe_binding(sysfs: Sysfs, address: str) -> Rebinding:
    """Return what a function has now. Raises Transient where it is not there, or Stuck."""
    path = f"{PCI}/{address}"
    if not sysfs.is_folder(path):
        raise Transient(f"{address} is not there")
    driver = sysfs.link_name(f"{path}/driver")
    override = await _read_override(sysfs, address)
    return Rebinding(address, driver, override, observe_identity(sysfs, address))


def observe_identity(sysfs: Sysfs, address: str) -> Identity:
    """Return which device is at a PCI address now.

    Source: Documentation/ABI/testing/sysfs-bus-pci; ``unique_id`` is amdgpu's serial number.
    """
    path = f"{PCI}/{address}"
    ids = ("vendor", "device", "subsystem_vendor", "subsystem_device")
    vendor, device, board_vendor, board = (sysfs.hex_digits(f"{path}/{name}", 4) for name in ids)
    return Identity(
        f"{vendor}:{device}" if vendor and device else "",
        f"{board_vendor}:{board}" if board_vendor and board else "",
        sysfs.text(f"{path}/unique_id") or "",
    )


def find_end_of_boot(owned: OwnedSlice) -> str:
    """Return that what was done for a slice ended with the host's boot, in words; else "".

    The kernel forgets drivers, overrides, virtual functions and their MAC addresses, vGPUs: what is
    there now was made by somebody else, or is another device.
    """
    if owned.boot == boot_id():
        return ""
    when = "the host was started anew since" if owned.boot else "the journal tells no boot"
    return f"{when}: {owned.id} is left as it is now"


def find_stranger(function: Rebinding, sysfs: Sysfs) -> str:
    """Return that another device has a function's address now, in words; "" where none has."""
    found = observe_identity(sysfs, function.address)
    if function.identity.may_be(found):
        return ""
    return f"{function.address} is another device now: {found}; it was {function.identity}"


def binding_obstacle(owned: OwnedSlice, sysfs: Sysfs, *, beside: Collection[str] = ()) -> str:
    """Return what keeps the functions from being handed out; "" where nothing does.

    ``beside`` are functions that are about to be given to the same VM.
    """
    for function in owned.rebindings:
        driver = sysfs.link_name(f"{PCI}/{function.address}/driver")
        if not sysfs.is_folder(f"{PCI}/{function.address}"):
            return f"{function.address} is not there"
        if not is_on_vfio(sysfs, f"{PCI}/{function.address}"):
            return f"{function.address} is on {driver or 'no driver'}, not on {VFIO_PCI}"
    groups, along = IommuGroups(sysfs), [function.address for function in owned.rebindings]
    for address in along:
        number = groups.number_of(f"{PCI}/{address}")
        if number is None:
            return f"{address} has no IOMMU group"
        if blockers := groups.blockers(number, {*along, *beside}):
            return f"IOMMU group {number}: {', '.join(blockers)}"
    return ""


async def bind_slice(owned: OwnedSlice, sysfs: Sysfs, *, beside: Collection[str] = ()) -> None:
    """Give a function and its companions to their VFIO drivers, or find them given.

    ``beside`` are functions that go to the same VM: an IOMMU group is judged with them.
    What is half done stays so: ``restore_slice`` undoes it. Raises Transient, Stuck or Terminal.
    """
    _require_possible(owned, sysfs, beside)
    if not owned.force:
        await require_unused(sysfs, [function.address for function in owned.rebindings])
    for function in owned.rebindings:
        await _bind(sysfs, function.address)
    if obstacle := binding_obstacle(owned, sysfs, beside=beside):
        raise Transient(obstacle)


async def restore_slice(owned: OwnedSlice, sysfs: Sysfs, find: FindHolders) -> str:
    """Give functions that nobody holds back to the drivers that they had.

    Returns why some were left alone; "" where none was. Raises Refused when one is held, Stuck when
    a driver does not come back.
    """
    if because := find_end_of_boot(owned):
        return because
    present = [each for each in owned.rebindings if sysfs.is_folder(f"{PCI}/{each.address}")]
    strangers = {each.address: why for each in present if (why := find_stranger(each, sysfs))}
    present = [each for each in present if each.address not in strangers]
    await require_free(sysfs, [f"{PCI}/{each.address}" for each in present], find)
    for function in reversed(present):
        await _restore(sysfs, function)
    return "; ".join(strangers.values())


async def require_unused(
    sysfs: Sysfs, addresses: Collection[str], *, find: FindHostUse = find_host_use
) -> None:
    """Look whether the host uses any of these functions. Raises Transient with who does, and how.

    Its driver would let it go from under a program, or never (NVIDIA's): so before any is touched.
    """
    # Thousands of small reads in /proc.
    used = await trio.to_thread.run_sync(find, sysfs, addresses)
    if used:
        raise Transient(
            "; ".join(f"{address} {use}" for address, use in used.items()),
            "end that use, or let the VM take it all the same with `force: true` in its request",
        )


def _require_possible(owned: OwnedSlice, sysfs: Sysfs, beside: Collection[str]) -> None:
    """Look at everything that speaks against it before anything is changed."""
    groups = IommuGroups(sysfs)
    along = [function.address for function in owned.rebindings]
    for address in along:
        path = f"{PCI}/{address}"
        if not sysfs.is_folder(path):
            raise Transient(f"{address} is not there")
        number = groups.number_of(path)
        if number is None:
            raise Terminal(
                f"{address} has no IOMMU group",
                "switch the IOMMU on: in the firmware, and intel_iommu=on for Intel's",
            )
        if blockers := groups.blockers(number, {*along, *beside}):
            raise Terminal(
                f"IOMMU group {number} of {address} cannot be handed out: {', '.join(blockers)}",
                "a group goes as a whole: let the VM ask for the other GPUs in it too, free what "
                "else is in it, or use another slot of the board",
            )
        if not is_on_vfio(sysfs, path):
            _require_uncut(sysfs, address)
    bound = all(is_on_vfio(sysfs, f"{PCI}/{address}") for address in along)
    if not bound and not sysfs.is_folder(f"{DRIVERS}/{VFIO_PCI}"):
        raise Transient(f"the driver {VFIO_PCI} is not there", f"load it: modprobe {VFIO_PCI}")


def _require_uncut(sysfs: Sysfs, address: str) -> None:
    """Refuse to take a driver from a function on which slices were made."""
    path = f"{PCI}/{address}"
    if sysfs.has(f"{path}/physfn") and sysfs.link_name(f"{path}/driver") == "nvidia":
        raise Terminal(
            f"{address} is a virtual function of NVIDIA's: without its driver it is dead",
            "it is used by giving it a vGPU type",
        )
    vfs = sum(name.startswith("virtfn") for name in sysfs.names(path))
    real = sysfs.real(path)
    names = sysfs.names("bus/mdev/devices")
    mdevs = [name for name in names if _is_below(sysfs.real(f"bus/mdev/devices/{name}"), real)]
    if vfs or mdevs:
        what = f"{vfs} virtual functions" if vfs else f"mediated devices ({', '.join(mdevs[:3])})"
        raise Refused(
            f"{address} has {what}: it cannot be handed out as a whole",
            "take those back first",
        )


def _is_below(path: str | None, parent: str | None) -> bool:
    return path is not None and parent is not None and path.startswith(f"{parent}/")


async def _bind(sysfs: Sysfs, address: str) -> None:
    path = f"{PCI}/{address}"
    if is_on_vfio(sysfs, path):
        return
    # A list of ten thousand lines.
    driver = await trio.to_thread.run_sync(find_vfio_driver, sysfs, path)
    await _write_override(sysfs, address, driver)
    await _unbind(sysfs, address)
    await _probe(sysfs, address)
    if not await _has_driver_soon(sysfs, address, driver):
        raise Transient(f"{address} did not get the driver {driver}", "the kernel log tells why")


async def _restore(sysfs: Sysfs, former: Rebinding) -> None:
    address, path = former.address, f"{PCI}/{former.address}"
    driver = sysfs.link_name(f"{path}/driver")
    ours = driver if is_on_vfio(sysfs, path) else None
    if ours is not None and "vfio" not in (former.former_driver or ""):
        # First, else the function could come back to its VFIO driver by itself.
        await _write_override(sysfs, address, former.former_driver or _NO_OVERRIDE)
        await _unbind(sysfs, address)
    if sysfs.link_name(f"{path}/driver") is None and former.former_driver is not None:
        await _return_to(sysfs, address, former.former_driver)
    # An override that is neither ours nor the help of ours was somebody's will meanwhile.
    override = await _read_override(sysfs, address)
    if override in (ours, VFIO_PCI, former.former_driver) and override != former.former_override:
        await _write_override(sysfs, address, former.former_override or _NO_OVERRIDE)


async def _return_to(sysfs: Sysfs, address: str, driver: str) -> None:
    """Bind a function to the driver that it had, if that is still loaded."""
    is_loaded = sysfs.is_folder(f"{DRIVERS}/{driver}")
    # By name, because without autoprobe a VF is bound by override only, and because two drivers
    # can know one device (i915 and xe, nouveau and nvidia).
    await _write_override(sysfs, address, driver if is_loaded else _NO_OVERRIDE)
    await _probe(sysfs, address)
    if is_loaded and not await _has_driver_soon(sysfs, address, driver):
        raise Stuck(
            f"{address} did not come back to its driver {driver}", "the kernel log may tell why"
        )


async def _has_driver_soon(sysfs: Sysfs, address: str, driver: str) -> bool:
    path = f"{PCI}/{address}/driver"
    return await comes_true(lambda: sysfs.link_name(path) == driver, seconds=_LOOK_SECONDS)


async def _unbind(sysfs: Sysfs, address: str) -> None:
    path = f"{PCI}/{address}/driver"
    if not sysfs.is_folder(path):
        return
    try:
        await write_sysfs(sysfs.full(f"{path}/unbind"), address, seconds=_SECONDS)
    except OSError as error:
        if error.errno not in (errno.ENODEV, errno.ENOENT):  # Then it was unbound meanwhile.
            raise explain(f"unbind {address}", error, {}) from error
    if not await comes_true(lambda: not sysfs.is_folder(path), seconds=_LOOK_SECONDS):
        raise Stuck(f"{address} does not leave its driver", "the kernel log may tell why")


async def _probe(sysfs: Sysfs, address: str) -> None:
    try:
        await write_sysfs(sysfs.full("bus/pci/drivers_probe"), address, seconds=_SECONDS)
    except OSError as error:
        raise explain(f"bind {address}", error, _PROBE_WORDS) from error


async def _read_override(sysfs: Sysfs, address: str) -> str | None:
    path = sysfs.full(f"{PCI}/{address}/driver_override")
    try:
        text = await read_sysfs(path, seconds=_SECONDS)
    except OSError as error:
        raise explain(f"the driver override of {address}", error, _PROBE_WORDS) from error
    return None if text in ("", "(null)") else text


async def _write_override(sysfs: Sysfs, address: str, text: str) -> None:
    path = sysfs.full(f"{PCI}/{address}/driver_override")
    try:
        await write_sysfs(path, text, seconds=_SECONDS)
    except OSError as error:
        raise explain(f"the driver override of {address}", error, _PROBE_WORDS) from error
