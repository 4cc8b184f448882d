"""Making and removing NVIDIA's vGPUs on virtual functions: a number written, and read as truth.

The VF stays on its driver for ever: taken from it, it is dead until SR-IOV is cycled. Source:
NVIDIA's vgpu-vfio-pci driver as shipped with vGPU 17, its Linux KVM user guide.
"""

import errno

import trio

from arcsup.errors import Stuck, Terminal, Transient
from arcsup.host.cards import PCI
from arcsup.host.in_use import FindHolders, require_free
from arcsup.host.owned import OwnedSlice
from arcsup.host.sysfs import Sysfs
from arcsup.host.vendor_vgpu import observe_vendor_vf, type_id_of
from arcsup.host.vgpu_types import parse_creatable
from arcsup.host.writer import Word, explain, write_sysfs

_SECONDS = 30.0
_TRIES = 10
_PAUSE = 1.0
"""The driver ends its own task within five seconds after QEMU, and says EBUSY until then."""

_TAKEN = "the card has no room for this type now: it is full, or another size was made meanwhile"
_WORDS = {
    errno.EIO: Word(Transient, _TAKEN),
    errno.ENOSPC: Word(Transient, _TAKEN),
    errno.EBUSY: Word(Transient, "the function is still busy with its last VM"),
    errno.EPERM: Word(Transient, "the function was given a type meanwhile"),
    errno.EINVAL: Word(Terminal, "the driver does not know this type", "choose another type"),
    errno.ENODEV: Word(Terminal, "the driver does not know this type", "choose another type"),
    errno.ENOENT: Word(Transient, "the function has just gone"),
}


def find_type_id(sysfs: Sysfs, vf: str, wanted: str) -> str:
    """Return the id of a type given by id or name, as the VF or one of its siblings lists it.

    Numbers are of the card and driver, names last. Raises Transient while nobody lists the name:
    a full card lists nothing.
    """
    if wanted.removeprefix("nvidia-").isdecimal():
        return type_id_of(int(wanted.removeprefix("nvidia-")))
    card = f"{PCI}/{vf}/physfn"
    siblings = sorted(name for name in sysfs.names(card) if name.startswith("virtfn"))
    for function in (f"{PCI}/{vf}", *(f"{card}/{name}" for name in siblings)):
        listed = sysfs.text(f"{function}/nvidia/creatable_vgpu_types") or ""
        for number, name in parse_creatable(listed).items():
            if name == wanted:
                return type_id_of(number)
    raise Transient(f"no virtual function beside {vf} can be made a {wanted} now")


def vendor_obstacle(owned: OwnedSlice, sysfs: Sysfs, *, in_use: bool = False) -> str:
    """Return what keeps a VF with its type from being used; "" where nothing does.

    What cannot be read keeps nobody from it who has it ``in_use``.
    """
    if sysfs.link_name(f"{owned.device}/driver") is None:
        return f"{owned.id} is not there, or has no driver"
    seen = observe_vendor_vf(sysfs, owned.device, owned.id)
    if seen is not None and not seen.settled and in_use:
        return ""
    if seen is None or not seen.settled:
        return f"the driver of {owned.id} has not made its vGPU files yet"
    if seen.current != owned.type:
        return f"{owned.id} has type {seen.current or 'none'}, not {owned.type}"
    return ""


async def create_vendor(owned: OwnedSlice, sysfs: Sysfs) -> None:
    """Give a VF its type, or find it given. Raises Transient, Stuck or Terminal."""
    seen = observe_vendor_vf(sysfs, owned.device, owned.id)
    if seen is None or not seen.settled:
        raise Transient(vendor_obstacle(owned, sysfs))
    if seen.current not in (None, owned.type):
        raise Transient(f"{owned.id} was given type {seen.current} by somebody else meanwhile")
    if seen.current is None:
        number = (owned.type or "").removeprefix("nvidia-")
        try:
            await _write_type(owned, sysfs, number)
        except OSError as error:
            # Re-read, because EPERM is also the answer when it has the type already.
            if vendor_obstacle(owned, sysfs):
                raise explain(f"{owned.type} on {owned.id}", error, _WORDS) from error
    if obstacle := vendor_obstacle(owned, sysfs):
        raise Transient(obstacle)


async def remove_vendor(owned: OwnedSlice, sysfs: Sysfs, find: FindHolders) -> None:
    """Take a VF's type back when nobody holds it, or find it gone; never another's type.

    Raises Refused when it is held, Stuck when the driver does not let go of it, Transient when the
    driver does not tell which it has.
    """
    answer, is_dead = "", False
    for attempt in range(_TRIES if _has_type(owned, sysfs) else 0):
        if attempt:
            await trio.sleep(_PAUSE)
        await require_free(sysfs, [owned.device], find)
        try:
            await _write_type(owned, sysfs, "0")
        except OSError as error:
            answer = (error.strerror or str(error)).lower()
            is_dead = error.errno == errno.EIO
        # Read again: EPERM is the answer where there is none as well as where it is in use.
        if not _has_type(owned, sysfs):
            return
        if is_dead:
            break
    if _has_type(owned, sysfs):
        raise Stuck(
            f"{owned.id} keeps its type {owned.type}: {answer or 'it was cleared in vain'}",
            "when no VM uses the card, cycle its virtual functions: "
            f"sriov-manage -d {owned.card}, then -e {owned.card}",
        )


def _has_type(owned: OwnedSlice, sysfs: Sysfs) -> bool:
    seen = observe_vendor_vf(sysfs, owned.device, owned.id)
    if seen is not None and not seen.settled:
        raise Transient(
            f"which vGPU type {owned.id} has cannot be read now", "the kernel log may tell why"
        )
    return seen is not None and seen.current == owned.type


async def _write_type(owned: OwnedSlice, sysfs: Sysfs, number: str) -> None:
    path = sysfs.full(f"{owned.device}/nvidia/current_vgpu_type")
    await write_sysfs(path, number, seconds=_SECONDS)
