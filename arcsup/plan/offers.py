"""What cards offer, each kind of slice once however many cards have it, and whom it suits."""

import re

from attrs import field, frozen

from arcsup.devices import Backend, Card, SliceType
from arcsup.model import GpuKind, GpuRequest, MiB

BACKENDS = {
    GpuKind.VGPU: (Backend.MDEV, Backend.VENDOR_VFIO),
    GpuKind.VF: (Backend.SRIOV,),
    GpuKind.PASSTHROUGH: (Backend.PASSTHROUGH,),
    GpuKind.VIRTIO: (),
}

VF = "vf"
WHOLE = "whole"
"""Ids of what is no type of the kernel's: a virtual function, and a card as a whole."""

_MIG = re.compile(r"-(\d+)-\d+[A-Z]+[0-9]*\Z")
"""How NVIDIA names types backed by a GPU instance: ``A100-1-5C``, ``A100-1-5CME``, ``DC-1-24Q``."""

_NVIDIA = "10de"
_SERIES = "QCBA"
"""NVIDIA's series, best first: the later ones of one size have fewer or smaller displays."""


@frozen(cache_hash=True)
class Offer:
    """One kind of slice that cards of one vendor and device have.

    ``share`` names what it is cut from: MIG's GPU instances of one width share their memory among
    themselves and with nobody else, everything else ("") shares the card. ``size`` makes two
    slices equally large: their video memory, else their type. ``series`` tells NVIDIA's series of
    one size apart, the one that suits most guests first.
    """

    backend: Backend
    vendor: str
    device: str
    id: str
    name: str
    vram_mib: MiB | None
    device_api: str
    share: str = ""
    size: str = field(init=False)
    series: int = field(init=False)

    @size.default
    def _size(self) -> str:
        return size_of(self.id, self.vram_mib)

    @series.default
    def _series(self) -> int:
        letter = self.name.rstrip("0123456789")[-1:]
        return max(0, _SERIES.find(letter)) if self.vendor == _NVIDIA else 0


def size_of(type_id: str | None, vram_mib: MiB | None) -> str:
    """Return the name of a size; "" where nothing tells."""
    return f"{vram_mib} MiB" if vram_mib is not None else type_id or ""


def offer_of(card: Card, kind: SliceType) -> Offer:
    """Return the offer that a type of a card is."""
    mig = _MIG.search(kind.name)
    return Offer(
        backend=kind.backend,
        vendor=card.vendor,
        device=card.device,
        id=kind.id,
        name=kind.name,
        vram_mib=kind.vram_mib,
        device_api=kind.device_api,
        share=f"MIG {mig[1]}" if mig else "",
    )


def vram_of_vfs(card: Card) -> MiB | None:
    """Return the video memory that each VF of a card has; None where they differ or none tells."""
    sizes = {vf.vram_mib for vf in card.vfs}
    return sizes.pop() if len(sizes) == 1 else None


def function_offer(card: Card, backend: Backend) -> Offer:
    """Return the offer that a card's VFs are, or the card itself."""
    is_vf = backend is Backend.SRIOV
    known = (VF, card.vf_type or "a virtual function") if is_vf else (WHOLE, "the whole card")
    vram = vram_of_vfs(card) if is_vf else None
    return Offer(backend, card.vendor, card.device, *known, vram, "vfio-pci", share=known[0])


def mismatch(request: GpuRequest, offer: Offer) -> str:
    """Return why an offer of the request's kind does not suit it, whatever is free; "" if it does.

    The rules are LibVF.IO's: a type given by id or name is all that counts; else video memory
    within the limits, and the end of the name. What is not known is within no limits.
    """
    if request.kind not in (GpuKind.VGPU, GpuKind.VF):
        return ""
    if offer.device_api != "vfio-pci":
        return f"it is no PCI device (device_api {offer.device_api or 'unknown'})"
    if request.mdev_type:
        if request.mdev_type in (offer.id, offer.name):
            return ""
        return f"not the type asked for (mdevType {request.mdev_type})"
    if request.acceptable_types and offer.name not in request.acceptable_types:
        return f"of no type asked for (acceptableTypes {', '.join(request.acceptable_types)})"
    low, high = request.min_vram_mib, request.max_vram_mib
    if offer.vram_mib is None:
        if low is not None or high is not None:
            return "its video memory is not known"
    elif low is not None and offer.vram_mib < low:
        return f"less video memory than minVRam {low} MiB"
    elif high is not None and offer.vram_mib > high:
        return f"more video memory than maxVRam {high} MiB"
    if not offer.name.endswith(request.suffix):
        return f"its name does not end in {request.suffix}"
    return ""
