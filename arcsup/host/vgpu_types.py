"""What vendors write of their vGPU types: video memory, limits, and NVIDIA's lists. Pure."""

import re
from collections.abc import Iterable, Mapping

from arcsup.devices import CapacityRule, Slice, SliceType
from arcsup.model import MiB

_DESCRIBED = (
    re.compile(r"\bframebuffer=(\d{1,9})M\b"),  # NVIDIA: one line of key=value
    re.compile(r"\bhigh_gm_size: (\d{1,9})MB\b"),  # i915/gvt/kvmgt.c: five lines
    re.compile(r"\b(\d{1,9}) MB video memory\b"),  # samples/vfio-mdev/mbochs.c
)

_NVIDIA_NAME = re.compile(r"-(?P<gib>\d{1,6})[QCBA][0-9A-Z]*\Z")
"""How every NVIDIA type name ends: ``L40S-2Q``, ``P4-2B4``, ``A100-1-5CME``, ``DC-1-24Q``."""

_MOST = re.compile(r"\bmax_instance=(\d{1,9})\b")
_SAME_SIZE_SINCE = 470
"""The driver branch of vGPU 13."""

_CREATABLE = re.compile(r"\s*([0-9]{1,9})\s*:(.*)")


def vram_of(type_id: str, name: str, description: str) -> MiB | None:
    """Return a type's video memory from what describes it, else from an NVIDIA name, else None.

    GVT-g has two sizes; the one that counts is high_gm_size, as in LibVF.IO.
    """
    for pattern in _DESCRIBED:
        if match := pattern.search(description):
            return MiB(int(match[1]))
    return vram_of_name(name) if type_id.startswith("nvidia-") else None


def vram_of_name(name: str) -> MiB | None:
    """Return the video memory that NVIDIA's type name tells: GiB, where 0 is half of one."""
    match = _NVIDIA_NAME.search(name)
    return None if match is None else MiB(int(match["gib"]) * 1024 or 512)


def most_of(description: str) -> int | None:
    """Return how many of a type the whole card can have, where NVIDIA's description tells."""
    match = _MOST.search(description)
    return int(match[1]) if match else None


def parse_creatable(text: str) -> Mapping[int, str]:
    """Return number -> name of a VF's ``creatable_vgpu_types``.

    Each type is a line ``1145  : NVIDIA L40S-1B``; a heading may come first and is no type. No
    type at all is what a full card says.
    """
    matches = (_CREATABLE.fullmatch(line) for line in text.splitlines())
    found = {int(match[1]): match[2].strip() for match in matches if match}
    found.pop(0, None)  # 0 is what current_vgpu_type reads when there is none.
    return found


def find_rule(
    types: Iterable[SliceType], slices: Iterable[Slice], driver_version: str
) -> CapacityRule:
    """Return which types the card's driver lets stand beside one another.

    What is still available beside the slices that exist tells it for sure. On an empty card the
    driver's version does: one type until vGPU 12, one size since vGPU 13 (branch 470). The mixed
    mode cannot be seen on an empty card.
    """
    nvidia = [kind for kind in types if kind.id.startswith("nvidia-")]
    slices = list(slices)
    # A full card may list nothing any more.
    if not nvidia and not any((piece.type or "").startswith("nvidia-") for piece in slices):
        return CapacityRule.ANY
    total: dict[str, int] = {}
    for kind in nvidia:
        total[kind.id] = total.get(kind.id, 0) + (kind.available or 0)
    sizes = {kind.id: kind.vram_mib for kind in nvidia}
    taken = {piece.type for piece in slices if piece.type in sizes}
    taken_sizes = {sizes[type_id] for type_id in taken}
    if taken and any(total[each] and sizes[each] not in taken_sizes for each in sizes):
        return CapacityRule.MIXED
    if any(total[type_id] for type_id in taken):
        beside = [total[each] for each in sizes if each not in taken and sizes[each] in taken_sizes]
        if beside:
            return CapacityRule.SAME_SIZE if any(beside) else CapacityRule.SAME_TYPE
    branch = driver_version.partition(".")[0]
    old = branch.isascii() and branch.isdigit() and int(branch[:9]) < _SAME_SIZE_SINCE
    return CapacityRule.SAME_TYPE if old else CapacityRule.SAME_SIZE
