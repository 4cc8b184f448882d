"""Whether anything of a card can be handed out, and in words why not. Pure."""

from collections.abc import Iterable, Sequence

from attrs import evolve

from arcsup.devices import Backend, Card
from arcsup.plan.screens import describe_screen

VFIO_PCI = "vfio-pci"
"""The only kind of mediated device that QEMU gives a guest as a PCI device."""


def judge(card: Card, unsettled: Sequence[str], faults: Sequence[str]) -> Card:
    """Return the card with ``usable`` and ``why``; ``unsettled`` is what its driver still makes."""
    usable = _offers_types(card) or _offers_vfs(card)
    obstacles = list(_passthrough_obstacles(card))
    whole = Backend.PASSTHROUGH in card.backends and not obstacles
    reasons = [*_oddities(card, unsettled, faults)]
    if whole and not usable and card.group is not None and card.group.mates:
        mates = ", ".join(card.group.mates)
        reasons.append(f"it goes only together with {mates} (IOMMU group {card.group.number})")
    if not usable and not whole:
        reasons += obstacles or ["it offers nothing that could be handed out"]
    return evolve(card, usable=usable or whole, why="; ".join(reasons))


def _offers_types(card: Card) -> bool:
    """Tell whether there are types, used up or not: a full card is not an unsupported one."""
    has_slices = any(piece.type is not None for piece in card.slices)
    return has_slices or any(kind.device_api == VFIO_PCI for kind in card.types)


def _offers_vfs(card: Card) -> bool:
    return Backend.SRIOV in card.backends and card.group is not None


def _oddities(card: Card, unsettled: Sequence[str], faults: Sequence[str]) -> Iterable[str]:
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        yield f"{faults[0]}{more}"
    if (screen := describe_screen(card.vendor, card.device)) and not card.slices:
        yield f"it is {screen}: only a request that names it gets it"
    if unsettled:
        yield f"its driver is still making {', '.join(unsettled[:3])}"
    others = sorted({kind.device_api or "unknown" for kind in card.types} - {VFIO_PCI})
    if others:
        yield f"types that are no PCI devices to a guest ({', '.join(others)})"
    if card.types and not card.slices and all(kind.available == 0 for kind in card.types):
        yield "it has types, but none of them can be made now"
    if card.driver == "nvidia" and card.vfs_total and not card.vfs:
        tool = f"/usr/lib/nvidia/sriov-manage -e {card.address}"
        yield f"its VFs are not there: `vfs` in arcsup.yaml makes them, or {tool}"
    if card.driver == "nvidia" and card.vfs and not card.types and not _offers_types(card):
        yield "its VFs offer no vGPU types"


def _passthrough_obstacles(card: Card) -> Iterable[str]:
    if Backend.PASSTHROUGH not in card.backends:
        return
    if card.group is None:
        yield "it has no IOMMU group: switch the IOMMU on (intel_iommu=on, amd_iommu=on, firmware)"
    elif card.group.blockers and not card.group.mates:
        yield f"IOMMU group {card.group.number}: {', '.join(card.group.blockers)}"
    if card.in_use_by_host:
        yield f"the host shows its picture on it ({card.in_use_by_host})"
    elif card.boot_vga:
        yield "it is the host's boot display"
