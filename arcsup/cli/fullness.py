"""How full a card is, and the bar that shows it. Pure."""

from typing import NamedTuple

from arcsup.control.shapes import GpuJson

BAR_WIDTH = 10


class Fullness(NamedTuple):
    """``used`` of ``total``, in ``unit``: MiB, VFs, slices or card."""

    used: int
    total: int
    unit: str

    def describe(self) -> str:
        """Return it in words: ``2 of 48 GiB``."""
        if self.unit == "card":
            return "taken" if self.used else "free"
        if self.unit == "MiB" and self.total >= 1024:
            return f"{self.used / 1024:.3g} of {self.total / 1024:.3g} GiB"
        return f"{self.used} of {self.total} {self.unit}"

    def draw(self) -> str:
        """Return a bar; neither a little nor almost everything looks like nothing or everything."""
        filled = round(self.used / self.total * BAR_WIDTH) if self.total else 0
        if 0 < self.used < self.total:
            filled = min(max(filled, 1), BAR_WIDTH - 1)
        return "█" * filled + "░" * (BAR_WIDTH - filled)


def measure_fullness(gpu: GpuJson) -> Fullness | None:
    """Return how full a card is, in what is known of it; None where nothing can be cut from it."""
    if any(piece["kind"] == "passthrough" for piece in gpu["slices"]):
        return Fullness(1, 1, "card")
    vgpus = [piece for piece in gpu["slices"] if piece["kind"] == "vgpu"]
    if "mdev" in gpu["backends"]:
        return _measure_memory(gpu) or _count_slices(gpu, len(vgpus))
    if "vendor-vfio" in gpu["backends"]:
        # Its types do not tell what the card has; a VF holds one vGPU.
        return Fullness(len(vgpus), gpu["vfs"]["enabled"], "VFs")
    if "sriov" in gpu["backends"]:
        taken = sum(piece["kind"] == "vf" for piece in gpu["slices"])
        return Fullness(taken, max(gpu["vfs"]["total"], gpu["vfs"]["enabled"]), "VFs")
    whole = gpu["usable"] and "passthrough" in gpu["backends"]
    return Fullness(0, 1, "card") if whole else None


def _measure_memory(gpu: GpuJson) -> Fullness | None:
    """Return video memory, the total being what the best mix of one type comes to."""
    taken = [piece.get("vramMiB") for piece in gpu["slices"] if piece["kind"] == "vgpu"]
    used = sum(size for size in taken if size is not None)
    totals = []
    for kind in gpu["types"]:
        size, limit = kind["vramMiB"], kind["max"]
        if size is not None and limit is not None:
            totals.append(size * limit)
        elif size is not None:
            totals.append(used + size * (kind["available"] or 0))
    if None in taken or not totals:
        return None
    return Fullness(used, max(*totals, used), "MiB")


def _count_slices(gpu: GpuJson, used: int) -> Fullness | None:
    room = max((kind["available"] or 0 for kind in gpu["types"]), default=0)
    return Fullness(used, used + room, "slices") if used + room else None
