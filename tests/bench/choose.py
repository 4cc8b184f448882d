"""How long planning takes: many cards with many types, and many requests, in growing numbers."""

import time
from uuid import UUID

from arcsup.devices import Backend, CapacityRule, Card, Function, Inventory, IommuGroup, SliceType
from arcsup.model import GpuKind, GpuRequest, MiB, VmName
from arcsup.plan.assignment import Choice, Policy, VmRequests
from arcsup.plan.choose import assign
from tests.bench.measurement import Measurement

SIZES = ((250, 2_500), (500, 5_000), (1_000, 10_000))
VFS = 16
GIB = 1024


def run() -> list[Measurement]:
    """Plan growing worlds, packed and spread; the largest is what has to be done in 2 s."""
    figures = []
    for spread in (False, True):
        times = [_measure(cards, requests, spread=spread) for cards, requests in SIZES]
        how = "spread" if spread else "packed"
        for (cards, requests), took in zip(SIZES, times, strict=True):
            name = f"choose: {cards} cards, {requests} requests, {how}"
            aim = 2000.0 if (cards, requests) == SIZES[-1] else None
            figures.append(Measurement(name, took * 1000, "ms", aim))
        # Twice as many of both take twice as long and a little more (n log n: 2.2); a machine
        # with others on it is allowed some noise.
        growth = times[-1] / times[-2]
        figures.append(Measurement(f"choose: growth when both double, {how}", growth, "times", 2.8))
    return figures


def _measure(cards: int, requests: int, *, spread: bool) -> float:
    inventory = Inventory(cards=tuple(_make_card(number) for number in range(cards)))
    vms = [_make_vm(number) for number in range(requests)]
    began = time.process_time()
    assignment = assign(vms, inventory, Policy(spread=spread), {})
    took = time.process_time() - began
    met = sum(isinstance(outcome, Choice) for outcome in assignment.outcomes.values())
    assert len(assignment.outcomes) == requests
    assert met > requests // 2
    return took


def _make_card(number: int) -> Card:
    """Return a card of one of five models: three cut on their VFs, one by itself, one by VFs."""
    address = f"{number // 256:04x}:{number % 256:02x}:00.0"
    model, node = number % 5, number % 4
    base = Card(
        address=address,
        path=f"devices/pci/{address}",
        name=f"model {model}",
        vendor="10de",
        device=f"{0x2200 + model:04x}",
        driver="nvidia",
        numa_node=node,
        group=IommuGroup(number, (address,)),
        backends=(Backend.MDEV, Backend.PASSTHROUGH),
        rule=CapacityRule.SAME_SIZE,
        types=_make_types(address, address, model, (1, 2, 4, 8)),
    )
    if model == 4:
        return _with_vfs(base, number, Backend.SRIOV, types=False)
    return _with_vfs(base, number, Backend.MDEV, types=True) if model < 3 else base


def _with_vfs(card: Card, number: int, backend: Backend, *, types: bool) -> Card:
    names = [
        card.address[:-1].replace(":00.", f":{1 + vf // 8:02x}.") + str(vf % 8) for vf in range(VFS)
    ]
    vfs = tuple(
        Function(name, None, 10_000 + number * VFS + at, f"devices/pci/{name}")
        for at, name in enumerate(names)
    )
    offered = [_make_types(name, card.address, number % 5, (1, 2, 4)) for name in names]
    return Card(
        address=card.address,
        path=card.path,
        name=card.name,
        vendor=card.vendor,
        device=card.device,
        driver=card.driver,
        numa_node=card.numa_node,
        group=card.group,
        backends=(backend,),
        rule=card.rule,
        vfs_total=VFS,
        vfs=vfs,
        types=tuple(kind for kinds in offered for kind in kinds) if types else (),
    )


def _make_types(
    parent: str, card: str, model: int, sizes: tuple[int, ...]
) -> tuple[SliceType, ...]:
    return tuple(
        SliceType(
            id=f"nvidia-{model * 100 + at}",
            name=f"NVIDIA M{model}-{gib}{series}",
            vram_mib=MiB(gib * GIB),
            available=1 if parent != card else 16 // gib,
            maximum=16 // gib,
            device_api="vfio-pci",
            parent=parent,
            backend=Backend.MDEV,
        )
        for at, (gib, series) in enumerate((gib, series) for gib in sizes for series in "QBA")
    )


def _make_vm(number: int) -> VmRequests:
    """Return a VM with one request; one in five hundred shapes, some of which nothing meets."""
    low = (number % 5) * 512
    request = GpuRequest(
        kind=GpuKind.VF if number % 11 == 0 else GpuKind.VGPU,
        min_vram_mib=MiB(low),
        max_vram_mib=MiB(low + 1024 * (1 + number % 4)),
        suffix=("", "Q", "B", "1Q")[number % 4],
        device="" if number % 3 else f"{0x2200 + number % 5:04x}",
    )
    node = None if number % 2 else number % 4
    return VmRequests(VmName(f"vm{number}"), UUID(int=number), (request,), node)
