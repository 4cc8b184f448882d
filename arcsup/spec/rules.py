"""What must hold between the keys of one VM file. Every check yields (path, message)."""

import re
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from itertools import combinations
from posixpath import normpath

from arcsup.model import (
    Audio,
    Cpus,
    Disk,
    DiskFormat,
    Display,
    DisplayType,
    Firmware,
    Forward,
    GpuKind,
    GpuRequest,
    Hooks,
    Network,
    NetworkType,
    QemuOptions,
    Restart,
    Vm,
)
from arcsup.spec.struct import Rule

Findings = Iterator[tuple[str, str]]

MOST_VCPUS = 4096
"""Virtual CPUs of QEMU's largest machine (q35 since QEMU 9.1, hw/i386/pc_q35.c)."""

SMALLEST_HUGE_PAGE = 2
"""MiB; x86 has pages of 2 MiB and 1 GiB."""

HOOK_KEYS = ("preStart", "postStart", "preStop", "postStop")


USB_PORT = r"[1-9][0-9]{0,2}(\.[1-9][0-9]{0,2}){0,6}"


def parse_usb_port(text: str) -> str:
    """Return the path of a USB port, at most seven hubs deep as the USB standard allows."""
    if re.fullmatch(USB_PORT, text) is None:
        raise ValueError("expected a port such as 2 or 1.2")
    return text


def check_cpus(cpus: Cpus) -> Findings:
    """Cores, threads and sockets must multiply to what a machine can have."""
    if cpus.total > MOST_VCPUS:
        yield "cores", f"{cpus.total} virtual CPUs in all, expected at most {MOST_VCPUS}"


def check_disk(disk: Disk) -> Findings:
    """An overlay is qcow2 and written to; nothing is made read-only."""
    if disk.base is not None and disk.format is not DiskFormat.QCOW2:
        yield "base", f"an overlay needs `format: qcow2`, got {disk.format}"
    if disk.base is not None and normpath(disk.base) == normpath(disk.path):
        yield "base", "is the disk itself, expected another image"
    if disk.readonly and (disk.size_mib is not None or disk.base is not None):
        key = "base" if disk.base is not None else "size"
        yield key, "makes an image that nothing can be written to; remove it or `readonly`"
    if disk.readonly and disk.ephemeral:
        yield "ephemeral", "keeps nothing that is written, and `readonly` lets nothing be written"


def _check_gpu_kind(gpu: GpuRequest) -> Findings:
    if gpu.gl and gpu.kind is not GpuKind.VIRTIO:
        yield "gl", f"is for `kind: virtio` only, this is {gpu.kind}"
    if gpu.kind not in (GpuKind.VGPU, GpuKind.VF):
        yield from (
            (key, f"is for `kind: vgpu` and `kind: vf` only, this is {gpu.kind}")
            for key, value in (("minVRam", gpu.min_vram_mib), ("maxVRam", gpu.max_vram_mib))
            if value
        )
    if gpu.kind is not GpuKind.VGPU:
        vgpu_only = {
            "suffix": gpu.suffix,
            "mdevType": gpu.mdev_type,
            "display": gpu.display,
        }
        yield from (
            (key, f"is for `kind: vgpu` only, this is {gpu.kind}")
            for key, value in vgpu_only.items()
            if value
        )
    if gpu.acceptable_types and gpu.kind is not GpuKind.VF:
        yield "acceptableTypes", f"is for `kind: vf` only, this is {gpu.kind}"
    if gpu.kind is GpuKind.VIRTIO:
        host_only = {
            "parent": gpu.parent,
            "address": gpu.address,
            "vendor": gpu.vendor,
            "device": gpu.device,
        }
        yield from (
            (key, "is for GPUs of the host; `kind: virtio` needs none")
            for key, value in host_only.items()
            if value
        )


def _check_vram(gpu: GpuRequest) -> Findings:
    if gpu.min_vram_mib and gpu.max_vram_mib and gpu.min_vram_mib > gpu.max_vram_mib:
        yield "minVRam", f"{gpu.min_vram_mib} MiB is more than maxVRam, {gpu.max_vram_mib} MiB"


def _check_gpu_place(gpu: GpuRequest) -> Findings:
    if gpu.parent and gpu.address:
        yield "parent", "and `address` exclude each other: a card to take from, or the function"
    if gpu.address and gpu.count > 1:
        yield "count", f"is {gpu.count}, but `address` names a single function"
    if gpu.force and not gpu.address:
        yield "force", "is for the very function that `address` names, and there is none"


GPU_RULES = (
    Rule(("kind",), _check_gpu_kind),
    Rule(("minVRam", "maxVRam"), _check_vram),
    Rule(("parent", "address", "count", "force"), _check_gpu_place),
)


def _check_network_keys(network: Network) -> Findings:
    kind = network.type
    for key, value, owner in (
        ("bridge", network.bridge, NetworkType.BRIDGE),
        ("tap", network.tap, NetworkType.TAP),
        ("parent", network.parent, NetworkType.VF),
        ("forwards", network.forwards, NetworkType.USER),
        ("hostLoopback", network.host_loopback, NetworkType.USER),
    ):
        if value and kind is not owner:
            yield key, f"is for `type: {owner}` only, this is {kind}"
    if kind is NetworkType.BRIDGE and not network.bridge:
        yield "bridge", "is missing: name the host's bridge, such as br0"
    if kind is NetworkType.TAP and not network.tap:
        yield "tap", "is missing: name the host's tap device, such as tap0"


_NETWORK_KEYS = ("type", "bridge", "tap", "parent", "forwards", "hostLoopback")

NETWORK_RULES = (Rule(_NETWORK_KEYS, _check_network_keys),)


def check_display(display: Display) -> Findings:
    """Only SPICE and VNC listen, and only on TCP they ask for a password."""
    if display.password_file is not None and display.listen is None and display.port is None:
        yield "passwordFile", "is for TCP only: set listen or port, or leave it out"
    if display.type in {DisplayType.SPICE, DisplayType.VNC}:
        return
    if display.listen is not None:
        yield "listen", f"is for spice and vnc only, this is {display.type}"
    if display.port is not None:
        yield "port", f"is for spice and vnc only, this is {display.type}"


def check_restart(restart: Restart) -> Findings:
    """The delay grows from ``delay`` to ``maxDelay``."""
    if restart.delay > restart.max_delay:
        yield "delay", f"{restart.delay:g} s is more than maxDelay, {restart.max_delay:g} s"


def check_argv_of(key: str) -> Callable[[Hooks], Findings]:
    """Return the check of one hook: programs are named by absolute path, no PATH is searched."""
    attribute = {
        "preStart": "pre_start",
        "postStart": "post_start",
        "preStop": "pre_stop",
        "postStop": "post_stop",
    }[key]

    def check(hooks: Hooks) -> Findings:
        argvs: tuple[tuple[str, ...], ...] = getattr(hooks, attribute)
        for number, argv in enumerate(argvs):
            if not argv[0].startswith("/"):
                yield f"{key}[{number}][0]", f"expected an absolute path, got {argv[0]!r}"

    return check


def check_binary(qemu: QemuOptions) -> Findings:
    """A QEMU is a program's name, or an absolute path."""
    if qemu.binary and "/" in qemu.binary and not qemu.binary.startswith("/"):
        yield "binary", f"expected a program's name or an absolute path, got {qemu.binary!r}"


def _check_after(vm: Vm) -> Findings:
    for number, name in enumerate(vm.after):
        if name == vm.name:
            yield f"after[{number}]", "names the VM itself, expected other VMs"
        elif name in vm.after[:number]:
            yield f"after[{number}]", f"{name} is named twice, remove one"


def _check_hugepages(vm: Vm) -> Findings:
    if not _is_page_size(vm.hugepages):
        yield "hugepages", f"{vm.hugepages} MiB is no page size, expected one such as 2MiB or 1GiB"


def _check_memory(vm: Vm) -> Findings:
    page = vm.hugepages
    if not isinstance(page, bool) and _is_page_size(page) and vm.memory_mib % page:
        yield "memory", f"{vm.memory_mib} MiB is no multiple of the huge page, {page} MiB"


def _is_page_size(size: bool | int) -> bool:
    return isinstance(size, bool) or (size >= SMALLEST_HUGE_PAGE and not size & (size - 1))


def _check_images(vm: Vm) -> Findings:
    """No image is opened twice, but one that is only read may be the base of several disks."""
    opened: dict[str, str] = {}
    uses = [(f"disks[{number}].path", disk.path) for number, disk in enumerate(vm.disks)]
    uses += [(f"cdroms[{number}]", path) for number, path in enumerate(vm.cdroms)]
    for place, path in uses:
        if (first := opened.setdefault(normpath(path), place)) != place:
            yield place, f"{path!r} is {first} already, remove one"
    for number, disk in enumerate(vm.disks):
        user = opened.get(normpath(disk.base)) if disk.base is not None else None
        if user is not None and user != f"disks[{number}].path":
            yield f"disks[{number}].base", f"{disk.base!r} is {user} too, expected another image"


def _check_secure_boot(vm: Vm) -> Findings:
    if vm.firmware is Firmware.UEFI_SECURE and "q35" not in vm.machine:
        yield "firmware", f"uefi-secure needs `machine: q35` (it uses SMM), got {vm.machine}"


def _check_audio(vm: Vm) -> Findings:
    if vm.audio is Audio.SPICE and vm.display.type is not DisplayType.SPICE:
        yield "audio", f"spice needs `display: spice`, the display is {vm.display.type}"


def _check_tags(vm: Vm) -> Findings:
    tags: dict[str, int] = {}
    for number, share in enumerate(vm.shares):
        if (first := tags.setdefault(share.tag, number)) != number:
            yield f"shares[{number}].tag", f"{share.tag!r} is the tag of shares[{first}] already"


def _check_macs(vm: Vm) -> Findings:
    macs: dict[str, int] = {}
    for number, network in enumerate(vm.networks):
        if network.mac and (first := macs.setdefault(network.mac, number)) != number:
            yield f"networks[{number}].mac", f"{network.mac} is that of networks[{first}] already"


def _check_ports(vm: Vm) -> Findings:
    for (first, one), (second, other) in combinations(list_ports(vm), 2):
        if overlap(one, other):
            yield second, f"port {other.host_port} is taken by {first} already"


def list_ports(vm: Vm) -> list[tuple[str, Forward]]:
    """Return every host port that a VM listens on, with its path; a display's as a forward."""
    ports = [
        (f"networks[{number}].forwards[{position}]", forward)
        for number, network in enumerate(vm.networks)
        for position, forward in enumerate(network.forwards)
    ]
    if vm.display.port is not None:
        address = vm.display.listen or "127.0.0.1"
        ports.append(("display.port", Forward("tcp", address, vm.display.port, 0)))
    return ports


def overlap(one: Forward, other: Forward) -> bool:
    """Tell whether two listeners cannot both have their port. "" and :: are every address."""
    if (one.protocol, one.host_port) != (other.protocol, other.host_port):
        return False
    if one.address == other.address or not one.address or not other.address:
        return True
    first, second = ip_address(one.address), ip_address(other.address)
    # A listener on :: has the IPv4 port too unless bindv6only is set (ipv6(7)).
    if "::" in {one.address, other.address}:
        return True
    same_family = first.version == second.version
    return same_family and (first.is_unspecified or second.is_unspecified)


VM_RULES = (
    Rule(("name", "after"), _check_after),
    Rule(("hugepages",), _check_hugepages),
    Rule(("hugepages", "memory"), _check_memory),
    Rule(("disks", "cdroms"), _check_images),
    Rule(("machine", "firmware"), _check_secure_boot),
    Rule(("display", "audio"), _check_audio),
    Rule(("shares",), _check_tags),
    Rule(("networks",), _check_macs),
    Rule(("networks", "display"), _check_ports),
)
