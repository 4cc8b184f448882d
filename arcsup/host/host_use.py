"""What of the host uses a PCI function or a USB device: asked before a driver is taken from it.

Nothing in the kernel refuses to take it away: NVIDIA's driver then sleeps until its last user has
gone (nv_pci_remove_helper in nv-pci.c), others kill what uses the device. Sources: uevent's
DEVNAME, proc_pid_fd(5), proc_pid_mountinfo(5), proc_swaps(5), sysfs-class-net (operstate),
Documentation/input/event-codes.rst (what a keyboard has), and
/proc/driver/nvidia/gpus/ADDRESS/information of NVIDIA's driver.
"""

import errno
import os
import re
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path

from attrs import field, frozen

from arcsup.devices import Card
from arcsup.host.cards import PCI
from arcsup.host.holders import PROC, describe_process, visit_open_files
from arcsup.host.iommu import is_vfio_driver
from arcsup.host.sysfs import Sysfs

FindHostUse = Callable[[Sysfs, Collection[str]], Mapping[str, str]]

_DEVNAME = re.compile(r"^DEVNAME=(.+)$", re.MULTILINE)
_DRM = re.compile(r"(card|renderD)\d+")
_WATCHED_BY_ALL = re.compile(r"(snd/control|input/)")
"""Sound servers have the mixer of every card open, and sessions the plugs of its sockets, without
using the card."""

_MINOR = re.compile(r"^Device Minor:\s*(\d+)", re.MULTILINE)
_DEVICES_DEEP = 12
"""Folders below a function that are looked into: a keyboard behind two hubs is at eight."""

_USB = "0c03"


_KEYS_OF_A_KEYBOARD = 0xFFFFFFFE
"""Escape, the digits, and Q to D, bits 1 to 31 of its keys: by these udev tells keyboards, too
(src/udev/udev-builtin-input_id.c, test_key)."""

USB_DEVICES = "bus/usb/devices"


@frozen
class _Below:
    """What the drivers have made below a device.

    ``nodes`` are paths of device nodes; ``disks`` the kernel's names of disks and partitions, with
    their numbers; ``links`` and ``inputs`` what a USB device has of network interfaces, in words,
    and of keyboards and the like; ``keyboards`` those of them that a person can type on.
    """

    nodes: set[str] = field(factory=set)
    disks: dict[str, str] = field(factory=dict)
    held_disks: dict[str, str] = field(factory=dict)
    links: list[str] = field(factory=list)
    inputs: list[str] = field(factory=list)
    keyboards: list[str] = field(factory=list)


def find_host_use(
    sysfs: Sysfs, addresses: Iterable[str], *, proc: Path | None = PROC
) -> dict[str, str]:
    """Return what of the host uses these functions, as "is …" or "has …", by address.

    Those that nobody uses, that have no driver, or are on a VFIO driver, have no entry. A process
    that may not be looked into may use each that has a node: that is said, for nobody knows.
    ``proc`` None is for the tree of another host: then only what the tree tells is found.
    Thousands of small reads: call it from a thread.
    """
    found: dict[str, str] = {}
    nodes: dict[str, str] = {}
    for address in addresses:
        path = f"{PCI}/{address}"
        driver = sysfs.link_name(f"{path}/driver")
        if driver is None or is_vfio_driver(sysfs, path, driver):
            continue
        is_usb = sysfs.hex_digits(f"{path}/class", 6).startswith(_USB)
        below = _look_below(sysfs, path, is_usb=is_usb)
        if use := find_network_use(sysfs, path) or _used_by_kernel(below, proc):
            found[address] = use
        elif below.inputs:
            found[address] = f"has the host's input device {below.inputs[0]!r}"
        if driver == "nvidia" and proc is not None:
            below.nodes.update(_nvidia_nodes(proc, address))
        nodes |= dict.fromkeys(below.nodes, address)
    if proc is not None:
        for address, use in _used_by_processes(nodes, proc).items():
            found.setdefault(address, use)
    return found


def find_card_use(root: Path, cards: Iterable[Card]) -> dict[str, str]:
    """Return what of the host whose device tree is at ``root`` uses cards and their companions."""
    functions = [it for card in cards for it in (card.address, *_along(card))]
    # The processes of this host have nothing of another's tree open.
    proc = PROC if root.resolve() == Path("/sys") else None
    return find_host_use(Sysfs(root), functions, proc=proc)


def _along(card: Card) -> tuple[str, ...]:
    return tuple(companion.address for companion in card.companions)


def find_usb_use(
    sysfs: Sysfs, names: Collection[str], *, proc: Path | None = PROC, sees_all: bool = True
) -> dict[str, str]:
    """Return what of the host uses these USB devices, as "is …" or "has …", by the kernel's name.

    They are judged together: of two keyboards one can go, not both. ``proc`` is as above;
    ``sees_all`` False is for who may look into some processes only, and counts on no others.
    """
    found: dict[str, str] = {}
    nodes: dict[str, str] = {}
    others = _find_other_keyboards(sysfs, names)
    for name in names:
        path = f"{USB_DEVICES}/{name}"
        below = _look_below(sysfs, path, is_usb=True)
        if use := _used_by_kernel(below, proc):
            found[name] = use
        elif below.keyboards and not others:
            found[name] = f"has the host's only keyboard {below.keyboards[0]!r}"
        if own := _DEVNAME.search(sysfs.text(f"{path}/uevent") or ""):
            below.nodes.add(f"/dev/{own[1]}")
        nodes |= dict.fromkeys(below.nodes, name)
    if proc is not None:
        for name, use in _used_by_processes(nodes, proc, sees_all=sees_all).items():
            found.setdefault(name, use)
    return found


def _find_other_keyboards(sysfs: Sysfs, names: Iterable[str]) -> bool:
    """Tell whether the host has a keyboard that is at none of these USB devices."""
    ours = [f"{real}/" for name in names if (real := sysfs.real(f"{USB_DEVICES}/{name}"))]
    for name in sysfs.names("class/input"):
        real = sysfs.real(f"class/input/{name}")
        if real is None or not name.startswith("input") or not _is_keyboard(sysfs, real):
            continue
        # What a program makes (uinput) has no keys that anybody could press.
        if not real.startswith(("devices/virtual/input/", *ours)):
            return True
    return False


def _is_keyboard(sysfs: Sysfs, device: str) -> bool:
    lowest = (sysfs.text(f"{device}/capabilities/key") or "0").rpartition(" ")[2]
    try:
        return int(lowest, 16) & _KEYS_OF_A_KEYBOARD == _KEYS_OF_A_KEYBOARD
    except ValueError:
        return False


def find_network_use(sysfs: Sysfs, path: str) -> str:
    """Return what a function is to the host's network, as "is …" or "has …"; "" for nothing."""
    names = sysfs.names(f"{path}/net")
    up = next((name for name in names if sysfs.text(f"{path}/net/{name}/operstate") == "up"), None)
    if up is not None:
        return f"is the host's network interface {up}"
    # The folder goes with its last interface; those of other namespaces are not shown in it
    # (fs/kernfs/dir.c), and carry a container's packets.
    driver = sysfs.link_name(f"{path}/driver")
    is_the_hosts = driver is not None and not is_vfio_driver(sysfs, path, driver)
    if is_the_hosts and not names and sysfs.is_folder(f"{path}/net"):
        return "has its interface in another network namespace"
    return ""


def _look_below(sysfs: Sysfs, path: str, *, is_usb: bool) -> _Below:
    below = _Below()
    for device in _devices_below(sysfs.real(path) or path, sysfs):
        parts = device.split("/")
        kind, name = parts[-2], parts[-1]
        node = _DEVNAME.search(sysfs.text(f"{device}/uevent") or "")
        subsystem = sysfs.link_name(f"{device}/subsystem")
        if subsystem == "block":
            below.disks[name] = sysfs.text(f"{device}/dev") or ""
            if holders := sysfs.names(f"{device}/holders"):
                below.held_disks[name] = holders[0]
        if kind == "net" and is_usb and sysfs.text(f"{device}/operstate") not in (None, "down"):
            below.links.append(f"the host's network interface {name}")
        if name == "net" and is_usb and not sysfs.names(device):
            # See ``find_network_use``.
            below.links.append("its network interface in another network namespace")
        if kind == "input" and is_usb and name.startswith("input"):
            what = sysfs.text(f"{device}/name") or name
            below.inputs.append(what)
            if _is_keyboard(sysfs, device):
                below.keyboards.append(what)
        if node is not None and not _WATCHED_BY_ALL.match(node[1]):
            below.nodes.add(f"/dev/{node[1]}")
        elif kind == "drm" and _DRM.fullmatch(name):
            below.nodes.add(f"/dev/dri/{name}")
    return below


def _devices_below(top: str, sysfs: Sysfs) -> Iterator[str]:
    """Yield the folders below a device, without following links: those lead to other devices."""
    root = sysfs.full(top)
    for folder, names, _ in os.walk(root):
        if folder.removeprefix(root).count("/") >= _DEVICES_DEEP:
            names.clear()
        yield from (os.path.relpath(f"{folder}/{name}", sysfs.root) for name in names)


def _used_by_kernel(below: _Below, proc: Path | None) -> str:
    """Return what uses a function without having a file of it open."""
    if below.links:
        return f"has {below.links[0]}"
    for disk, holder in below.held_disks.items():
        return f"has the disk {disk}, which {holder} is made of"
    if proc is None or not below.disks:
        return ""
    return _mount_of(below.disks, proc) or _swap_of(below.disks, proc) or _claim_of(below.disks)


def _mount_of(disks: dict[str, str], proc: Path) -> str:
    for line in _lines(proc / "self/mountinfo"):
        before, _, after = line.partition(" - ")
        fields, source = before.split(" "), after.split(" ")
        if len(fields) < 5 or len(source) < 2:
            continue
        for disk, number in disks.items():
            # btrfs mounts under a number of its own, and tells the device's path.
            if fields[2] == number or source[1] == f"/dev/{disk}":
                return f"has the file system at {fields[4]} (on {disk})"
    return ""


def _swap_of(disks: dict[str, str], proc: Path) -> str:
    for line in _lines(proc / "swaps"):
        for disk in disks:
            if line.split(" ")[0] == f"/dev/{disk}":
                return f"has swap space of the host (on {disk})"
    return ""


def _claim_of(disks: dict[str, str]) -> str:
    for disk, number in disks.items():
        # What names of devices have "/" for has "!" in the device tree.
        if is_claimed(Path("/dev", disk.replace("!", "/")), number):
            return f"has the disk {disk}, which a file system or a program has for itself"
    return ""


def is_claimed(node: Path, number: str) -> bool:
    """Tell whether the kernel lets nobody else have a disk for himself; ``number`` is MAJOR:MINOR.

    So it is with what is mounted in any mount namespace, with every disk of a ZFS pool or of btrfs,
    and with what a program opened with O_EXCL (open(2), bd_may_claim in block/bdev.c). Where the
    node cannot be opened, or is another device's, nothing is told.
    """
    try:
        if _number_of(node) == number:
            os.close(os.open(node, os.O_RDONLY | os.O_EXCL | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError as error:
        return error.errno == errno.EBUSY
    return False


def _number_of(node: Path) -> str:
    status = node.stat()
    is_disk = stat.S_ISBLK(status.st_mode)
    return f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}" if is_disk else ""


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return []


def _nvidia_nodes(proc: Path, address: str) -> Iterator[str]:
    information = "\n".join(_lines(proc / f"driver/nvidia/gpus/{address}/information"))
    if match := _MINOR.search(information):
        yield f"/dev/nvidia{match[1]}"


def _used_by_processes(
    nodes: dict[str, str], proc: Path, *, sees_all: bool = True
) -> dict[str, str]:
    """Return in words by which processes devices are used; ``nodes`` is node -> address."""
    if not nodes:
        return {}
    users: dict[str, dict[int, str]] = {}

    def visit(pid: int, target: str) -> None:
        # In a chroot or a container the same node may have something before it.
        _, dev, name = target.removesuffix(" (deleted)").rpartition("/dev/")
        node = f"/dev/{name}"
        if dev and node in nodes:
            users.setdefault(nodes[node], {}).setdefault(pid, node)

    unseen = visit_open_files(proc, visit)
    found = {address: _describe(by_pid, proc) for address, by_pid in users.items()}
    if unseen and sees_all:
        who = describe_process(unseen[0], proc)
        for address in nodes.values():
            found.setdefault(address, f"may be used by {who}, which may not be looked into")
    return found


def _describe(by_pid: dict[int, str], proc: Path) -> str:
    # systemd keeps what a session has open; the session's program says more.
    pid = min(by_pid, key=lambda pid: (pid == 1, pid))
    more = f" and {len(by_pid) - 1} more" if len(by_pid) > 1 else ""
    return f"is used by {describe_process(pid, proc)} through {by_pid[pid]}{more}"
