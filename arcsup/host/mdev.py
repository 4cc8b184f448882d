"""Making and removing mediated devices.

Source: Documentation/ABI/testing/sysfs-bus-vfio-mdev, drivers/vfio/mdev/mdev_sysfs.c and
mdev_core.c; which driver answers a full card how was measured or read in the drivers' sources.
"""

import errno

from arcsup.errors import ArcsupError, Refused, Stuck, Terminal, Transient
from arcsup.host.cards import PCI
from arcsup.host.in_use import FindHolders, require_free
from arcsup.host.owned import OwnedSlice
from arcsup.host.sysfs import Sysfs
from arcsup.host.writer import Word, comes_true, explain, is_unanswered, write_sysfs

_CREATE_SECONDS = 30.0
_REMOVE_SECONDS = 10.0
_LOOK_SECONDS = 5.0
"""How long what a finished write has made may take to be seen, or to be gone."""

_TAKEN = "no room is left on the card: somebody else has taken it meanwhile"
_CREATE_WORDS = {
    # The driver counts (i915, mbochs), the mdev core counts, NVIDIA's resource manager refuses.
    errno.ENOSPC: Word(Transient, _TAKEN),
    errno.EUSERS: Word(Transient, _TAKEN),
    errno.EIO: Word(
        Transient,
        "the driver has no room for it now: another type or size, MIG without an instance, or full",
        "the kernel log may tell which",
    ),
    errno.EEXIST: Word(Transient, "an earlier device of this uuid is still being removed"),
    errno.ENODEV: Word(Transient, "the parent is just going away"),
    errno.EAGAIN: Word(Transient, "the driver is not ready for it yet"),
    errno.EINVAL: Word(
        Terminal,
        "the driver refuses this type",
        "choose another type; the kernel log may tell why",
    ),
}
_REMOVE_WORDS = {
    errno.EAGAIN: Word(Transient, "somebody is still making or removing it"),
}


def find_parent(sysfs: Sysfs, parent: str) -> str | None:
    """Return the path of a parent by its address, or its name where it is no PCI; None: gone."""
    path = f"{PCI}/{parent}"
    if sysfs.is_folder(path):
        return path
    # The class is there only while the module is, but so are parents that are no PCI.
    path = f"class/mdev_bus/{parent}"
    return sysfs.real(path) if sysfs.has(path) else None


async def create_mdev(owned: OwnedSlice, sysfs: Sysfs) -> None:
    """Make a mediated device, or find it made.

    Raises Transient, Stuck, Terminal, or Refused when its uuid is another device's.
    """
    name = f"{owned.type} on {owned.parent}"
    if sysfs.is_folder(owned.device):
        _require_ours(owned, sysfs)
    else:
        _require_type(owned, sysfs)
        create = _create_attribute(owned, sysfs)
        try:
            await write_sysfs(create, owned.id, seconds=_CREATE_SECONDS)
        except OSError as error:
            if error.errno == errno.ENOENT:
                raise Transient(f"{name}: the parent has just gone") from error
            # A helper of a daemon that was killed may have been a moment earlier.
            if error.errno != errno.EEXIST or not sysfs.is_folder(owned.device):
                raise explain(name, error, _CREATE_WORDS) from error
    if not await comes_true(lambda: not mdev_obstacle(owned, sysfs), seconds=_LOOK_SECONDS):
        raise Transient(f"{name}: {mdev_obstacle(owned, sysfs)}")


def mdev_obstacle(owned: OwnedSlice, sysfs: Sysfs) -> str:
    """Return what keeps a mediated device from being used; "" where nothing does."""
    if not sysfs.is_folder(owned.device):
        return f"{owned.id} is not there"
    # The link is made last, after the uevents (mdev_create_sysfs_files).
    found = sysfs.link_name(f"{owned.device}/mdev_type")
    if found is None:
        return f"the type of {owned.id} is not there yet"
    if found != owned.type or _parent_of(owned, sysfs) != owned.parent:
        return f"{owned.id} is of type {found} on {_parent_of(owned, sysfs)}"
    if sysfs.link_name(f"{owned.device}/driver") is None:
        return f"{owned.id} has no driver"
    return ""


async def remove_mdev(owned: OwnedSlice, sysfs: Sysfs, find: FindHolders) -> None:
    """Remove a mediated device that nobody holds, or find it gone.

    Raises Refused when it is held or is another than ours, Stuck, or Transient.
    """
    attribute = sysfs.full(f"{owned.device}/remove")
    if not sysfs.is_folder(owned.device):
        # A remove that waits for a holder takes the folder away first, and the capacity last.
        if is_unanswered(attribute):
            raise Stuck(f"{owned.id} is still being removed", "somebody has opened it meanwhile")
        if is_unanswered(_create_attribute(owned, sysfs)):
            raise Stuck(f"{owned.id} may still be being made", "the kernel log may tell why")
        return
    _require_ours(owned, sysfs)
    await require_free(sysfs, [owned.device], find)
    try:
        await write_sysfs(attribute, "1", seconds=_REMOVE_SECONDS)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENODEV):  # Then it went by itself.
            raise explain(f"remove {owned.id}", error, _REMOVE_WORDS) from error
    if not await comes_true(lambda: not sysfs.is_folder(owned.device), seconds=_LOOK_SECONDS):
        raise Stuck(f"{owned.id} was removed and is still there", "the kernel log may tell why")


def _create_attribute(owned: OwnedSlice, sysfs: Sysfs) -> str:
    parent = find_parent(sysfs, owned.parent)
    return sysfs.full(f"{parent}/mdev_supported_types/{owned.type}/create")


def _parent_of(owned: OwnedSlice, sysfs: Sysfs) -> str:
    return (sysfs.real(owned.device) or "").rpartition("/")[0].rpartition("/")[2]


def _require_ours(owned: OwnedSlice, sysfs: Sysfs) -> None:
    """Refuse a device that was made by somebody else under our uuid."""
    found = sysfs.link_name(f"{owned.device}/mdev_type")
    parent = _parent_of(owned, sysfs)
    if (found is not None and found != owned.type) or (parent and parent != owned.parent):
        raise Refused(
            f"{owned.id} is there, but of type {found} on {parent}: arcsup did not make it so",
            f"remove it by hand: echo 1 > {sysfs.full(owned.device)}/remove",
        )


def _require_type(owned: OwnedSlice, sysfs: Sysfs) -> None:
    """Raise Transient while the parent is not ready, Terminal where it has no such type."""
    parent = find_parent(sysfs, owned.parent)
    if parent is None:
        raise Transient(f"{owned.parent} is not there")
    types = f"{parent}/mdev_supported_types"
    if not (owned.type and sysfs.is_folder(f"{types}/{owned.type}")):
        raise _unknown_type(owned, sysfs.names(types))


def _unknown_type(owned: OwnedSlice, offered: list[str]) -> ArcsupError:
    # dev_driver_string() is the bus's name until the driver is bound.
    if not offered or any(name.startswith("pci-") for name in offered):
        return Transient(f"the driver of {owned.parent} has not made its types yet")
    return Terminal(
        f"{owned.parent} has no type {owned.type}", f"it offers {', '.join(offered[:8])}"
    )
