"""What each GPU can do for VMs here, and the one thing that keeps it from more."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from attrs import frozen

from arcsup.devices import Backend, Card, Inventory
from arcsup.errors import SpecError
from arcsup.host.inventory import observe_host
from arcsup.plan.pci_classes import describe_missing_reset
from arcsup.plan.screens import describe_screen
from arcsup.setup.checks.kernel import ModuleState, find_module
from arcsup.setup.findings import Check, Finding, info, ok, warning
from arcsup.setup.gpu_kinds import (
    AMD,
    INTEL,
    NVIDIA,
    has_gvtg,
    is_mig_backed,
    read_parameter,
    tell_card,
)
from arcsup.setup.host import Host
from arcsup.spec.config import load_config
from arcsup.void_entries import find_void_gpus, find_void_usb

SETUP = "run `arcsup setup`"

VFS = "under gpus in {config}: {{match: '{address}', vfs: {total}}}; then arcsup reload"


@frozen
class Obstacle:
    """What keeps a card from more.

    ``do`` may name {address}, {total} (VFs), {group}, {mates}, {config}.
    """

    stands: Callable[[Host, Card], bool]
    what: str
    why: str
    do: str


def _lacks_types(card: Card, vendor: str, driver: str) -> bool:
    has = any(piece.type is not None for piece in card.slices)
    return (card.vendor, card.driver) == (vendor, driver) and not card.types and not has


def _lacks_nvidia_types(card: Card) -> bool:
    return _lacks_types(card, NVIDIA, "nvidia")


def _has_vgpu_manager(host: Host) -> bool:
    return find_module(host, "nvidia_vgpu_vfio") is ModuleState.LOADED


def _lacks_gvtg(card: Card) -> bool:
    return _lacks_types(card, INTEL, "i915") and has_gvtg(card)


def _lacks_vfs(card: Card, *drivers: str) -> bool:
    return card.vfs_total > 0 and not card.vfs and card.driver in drivers


OBSTACLES: tuple[Obstacle, ...] = (
    Obstacle(
        lambda _, card: card.driver == "nouveau",
        "nouveau drives it, which offers no vGPUs",
        "NVIDIA's host driver cannot take a card that nouveau holds",
        "for vGPUs: put NVIDIA's host driver into STATE/vendor and run `arcsup setup`",
    ),
    Obstacle(
        lambda host, card: _lacks_nvidia_types(card) and not _has_vgpu_manager(host),
        "its driver is not NVIDIA's vGPU host driver (no module nvidia_vgpu_vfio)",
        "the driver for desktops offers no vGPUs",
        "put NVIDIA's host driver into STATE/vendor and run `arcsup setup`",
    ),
    Obstacle(
        lambda _, card: _lacks_nvidia_types(card) and _lacks_vfs(card, "nvidia"),
        "its virtual functions are not enabled",
        "its vGPUs are made on them",
        VFS + ", or now: /usr/lib/nvidia/sriov-manage -e {address}",
    ),
    Obstacle(
        lambda _, card: _lacks_nvidia_types(card),
        "it offers no vGPU types",
        "nvidia-vgpud tells the driver which there are, and may have come too early",
        "systemctl restart nvidia-vgpud nvidia-vgpu-mgr; `nvidia-smi vgpu -s` lists them",
    ),
    Obstacle(
        lambda _, card: (
            card.vendor == NVIDIA
            and bool(card.types)
            and not card.slices
            and all(kind.available == 0 for kind in card.types)
        ),
        "none of its vGPU types can be made, although there is no vGPU on it",
        "ECC on an older card, MIG without GPU instances, or the display mode takes them away",
        "nvidia-smi -q -i {address} | grep -iE 'ecc|mig|mode'",
    ),
    Obstacle(
        lambda host, card: (
            _lacks_gvtg(card) and read_parameter(host, "i915", "enable_gvt") not in {"Y", "1"}
        ),
        "i915 was loaded without GVT-g (enable_gvt)",
        "without it the driver makes no mediated devices",
        f"{SETUP} --gpu-sharing gvt-g",
    ),
    Obstacle(
        lambda host, card: (
            _lacks_gvtg(card) and find_module(host, "kvmgt") is not ModuleState.LOADED
        ),
        "module kvmgt is not loaded",
        "it makes i915's mediated devices",
        "as root: modprobe kvmgt",
    ),
    Obstacle(
        lambda _, card: _lacks_gvtg(card),
        "GVT-g is switched on, but there are no types",
        "i915 refuses it while the GuC submits (enable_guc), and without aperture to share",
        "add i915.enable_guc=0 to the kernel's command line; look into `dmesg` for gvt",
    ),
    Obstacle(
        lambda host, card: _lacks_vfs(card, "i915") and not read_parameter(host, "i915", "max_vfs"),
        "this i915 cannot make virtual functions, although the card can",
        "the kernel's own i915 has no SR-IOV for it",
        "use driver xe (kernel 6.17 or later) or the i915-sriov-dkms module",
    ),
    Obstacle(
        lambda _, card: card.vendor == AMD and _lacks_vfs(card, "amdgpu"),
        "amdgpu drives it, which makes no virtual functions",
        "AMD's host driver GIM does (MI300X and its kin, Radeon Pro V series)",
        "put AMD's GIM package into STATE/vendor and run `arcsup setup`",
    ),
    Obstacle(
        lambda _, card: Backend.SRIOV in card.backends and card.group is not None and not card.vfs,
        "none of its {total} virtual functions is enabled",
        "VMs with kind vf need them",
        VFS,
    ),
    Obstacle(
        lambda _, card: Backend.PASSTHROUGH in card.backends and card.group is None,
        "it has no IOMMU group",
        "without the IOMMU no PCI device can be given to a VM",
        SETUP + ", which switches the IOMMU on",
    ),
    Obstacle(
        lambda _, card: bool(card.group and card.group.mates),
        "it shares IOMMU group {group} with {mates}",
        "the kernel gives a group to a VM only as a whole",
        "let one VM ask for all of them, or put the card into another slot",
    ),
    Obstacle(
        lambda _, card: bool(card.group and card.group.blockers),
        "it shares IOMMU group {group} with devices of the host",
        "the kernel gives a group to a VM only as a whole",
        "bind the others to vfio-pci too, or put the card into another slot",
    ),
)
"""In the order of mending: the first that stands in the way of a card is the one to tell."""


def find_obstacle(host: Host, card: Card) -> Obstacle | None:
    """Return what is to be mended first, None when nothing is known to be."""
    return next((obstacle for obstacle in OBSTACLES if obstacle.stands(host, card)), None)


def list_abilities(host: Host, card: Card) -> Iterator[str]:
    """Yield what VMs can have of a card now."""
    offered = {kind.backend for kind in card.types} | {piece.backend for piece in card.slices}
    if Backend.MDEV in offered:
        yield "GVT-g (mdev)" if card.driver == "i915" else "mdev"
    if Backend.VENDOR_VFIO in offered:
        yield "vendor VFIO"
    if any(is_mig_backed(kind) for kind in card.types):
        yield "MIG-backed vGPUs"
    if Backend.SRIOV in card.backends and card.group is not None:
        yield f"SR-IOV ({len(card.vfs)} of {card.vfs_total} functions enabled)"
    group = card.group
    whole = (
        Backend.PASSTHROUGH in card.backends
        and group is not None
        and (group.mates or not group.blockers)
    )
    is_screen = describe_screen(card.vendor, card.device)
    if whole and not card.in_use_by_host and not card.boot_vga and not is_screen:
        mates = group.mates if group else ()
        yield f"passthrough together with {', '.join(mates)}" if mates else "passthrough"
    if (Path(card.path) / "drm").is_dir() and has_render_node(host):
        yield "VirGL"


def has_render_node(host: Host) -> bool:
    """Tell whether the host has a GPU that QEMU could draw with (VirGL)."""
    return any(host.path("/dev/dri").glob("renderD*"))


def check_cards(host: Host) -> Iterator[Finding]:
    """Tell of each card what VMs can have of it, and what keeps them from more."""
    inventory = observe_host(host.sysfs)
    for card in inventory.cards:
        yield from _check_card(host, card)
    if not inventory.cards:
        why = "VMs can have emulated screens and `gpus: [{kind: virtio}]`"
        yield info("there is no GPU, and nothing that offers mediated devices", why)
    yield from _tell_faults(inventory)


def _check_card(host: Host, card: Card) -> Iterator[Finding]:
    yield from _tell_abilities(host, card)
    is_blocked = card.group is None or bool(card.group.blockers and not card.group.mates)
    if card.without_reset and not is_blocked:
        yield warning(
            f"{card.address}: {describe_missing_reset(card.without_reset)}",
            "the kernel knows no way to reset it, or reset_method was emptied",
            "where it was emptied: echo default > /sys/bus/pci/devices/ADDRESS/reset_method; else "
            "give it to VMs of one owner only",
        )


def _tell_abilities(host: Host, card: Card) -> Iterator[Finding]:
    abilities = list(list_abilities(host, card))
    told = tell_card(card)
    if abilities == ["VirGL"]:
        yield info(f"{told}: VirGL only", card.why)
    elif abilities:
        yield ok(f"{told}: {', '.join(abilities)}")
    else:
        yield info(f"{told}: nothing for VMs as it is", card.why)
    obstacle = find_obstacle(host, card)
    if obstacle is None:
        return
    names = {
        "address": card.address,
        "total": card.vfs_total,
        "group": card.group.number if card.group else "",
        "mates": ", ".join(card.group.mates) if card.group else "",
        "config": host.tell(host.places.config),
    }
    do = obstacle.do.replace("STATE", host.tell(host.places.state)).format(**names)
    what = f"{card.address}: {obstacle.what.format(**names)}"
    # What it already does is no reason to worry about what it could do as well.
    useful = any(ability != "VirGL" for ability in abilities)
    yield info(what, obstacle.why, do) if useful else warning(what, obstacle.why, do)


def _tell_faults(inventory: Inventory) -> Iterator[Finding]:
    for fault in inventory.faults:
        yield warning(fault, "the device tree is odd there", "look into `dmesg`")


def check_device_files(host: Host) -> Iterator[Finding]:
    """Tell whether who runs the daemon may open what GPUs are used through."""
    files = [host.path("/dev/vfio/vfio"), *sorted(host.path("/dev/dri").glob("renderD*"))]
    present = [file for file in files if file.exists()]
    for file in present:
        name = host.tell(file)
        if os.access(file, os.R_OK | os.W_OK):
            yield ok(f"{name} can be opened")
        elif file.name == "vfio":
            yield warning(
                f"{name} cannot be opened by this user",
                "devices are given to VMs through it",
                f"as root: chmod 0666 {name} (it gives nothing away by itself)",
            )
        else:
            yield warning(
                f"{name} cannot be opened by this user",
                "VirGL draws through it",
                "as root: usermod -aG render USER, then log in again",
            )
    if not present:
        yield info("there is neither /dev/vfio/vfio nor /dev/dri", "GPUs are used through them")


def check_entries(host: Host) -> Iterator[Finding]:
    """Tell which entries of arcsup.yaml are of no effect on this host."""
    file = host.places.config
    try:
        config = load_config(file)
    except SpecError:
        yield info(f"{host.tell(file)} cannot be read: its entries are not compared with the GPUs")
        return
    told = host.tell(file)
    found = find_void_gpus(config, file, host.sysfs)
    for fault in found:
        yield warning(
            f"{told}:{fault.line}:{fault.column}: {fault.path}: {fault.message}",
            "what it is to exclude or to change is left as if it were not there",
            "compare it with `arcsup gpu list -o wide`, mend or remove it, then `arcsup reload`",
        )
    for fault in find_void_usb(config, file, host.sysfs):
        yield info(f"{told}:{fault.line}:{fault.column}: {fault.path}: {fault.message}")
    if not found:
        yield ok(f"every entry of `gpus` in {told} counts for something here ({len(config.gpus)})")


CHECKS = (
    Check("gpus", "GPUs", check_cards),
    Check("gpu-entries", "Entries of arcsup.yaml", check_entries),
    Check("device-files", "Device files of GPUs", check_device_files),
)
