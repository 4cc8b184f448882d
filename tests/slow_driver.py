"""A vendor's driver as slow and plain as can be: it makes one slice after the other, or refuses.

Choosing is held against it; it knows nothing of how choosing reckons.
"""

from attrs import define, field, frozen

from arcsup.devices import Backend, CapacityRule, Card, Function, IommuGroup, Slice, SliceType
from arcsup.model import MiB, VmName


@frozen
class Kind:
    """A type as the driver knows it; ``units`` is what one takes of the card's memory."""

    id: str
    name: str
    vram: int | None
    units: int
    maximum: int | None


@frozen
class Made:
    """A slice that was made."""

    id: str
    kind: Kind
    parent: str
    vm: VmName | None
    ours: bool


@define(eq=False)
class SlowDriver:
    """One card. Slices are made on its ``vfs``, one each, or on the card where it has none.

    ``mute``: nothing tells how many of a type on VFs the card can have.
    """

    address: str
    rule: CapacityRule
    kinds: tuple[Kind, ...]
    units: int
    vfs: tuple[str, ...] = ()
    vendor: str = "10de"
    numa_node: int | None = None
    mute: bool = False
    made: list[Made] = field(factory=list)

    @property
    def parents(self) -> tuple[str, ...]:
        return self.vfs or (self.address,)

    def kind(self, type_id: str | None) -> Kind:
        return next(kind for kind in self.kinds if kind.id == type_id)

    def can_make(self, kind: Kind, parent: str) -> bool:
        if parent not in self.parents:
            return False
        if self.vfs and any(made.parent == parent for made in self.made):
            return False
        if sum(made.kind.units for made in self.made) + kind.units > self.units:
            return False
        equal = sum(made.kind == kind for made in self.made)
        if kind.maximum is not None and equal >= kind.maximum:
            return False
        if self.rule is CapacityRule.SAME_TYPE:
            return all(made.kind == kind for made in self.made)
        if self.rule is CapacityRule.SAME_SIZE:
            return all(made.kind.vram == kind.vram for made in self.made)
        return True

    def make(self, made: Made) -> None:
        assert self.can_make(made.kind, made.parent), f"{made} beside {self.made}"
        self.made.append(made)

    def available(self, kind: Kind, parent: str) -> int:
        before = list(self.made)
        number = 0
        while self.can_make(kind, parent):
            self.made.append(Made(f"trial {number}", kind, parent, None, ours=False))
            number += 1
        self.made = before
        return number

    def card(self) -> Card:
        """Return what the kernel shows of the card now."""
        return Card(
            address=self.address,
            path=f"devices/{self.address}",
            name="a card",
            vendor=self.vendor,
            device="2230",
            driver="nvidia",
            numa_node=self.numa_node,
            group=IommuGroup(1, (self.address,)),
            backends=(Backend.MDEV,),
            vfs_total=len(self.vfs),
            vfs=tuple(Function(vf, "nvidia", None, f"devices/{vf}") for vf in self.vfs),
            types=tuple(
                SliceType(
                    id=kind.id,
                    name=kind.name,
                    vram_mib=None if kind.vram is None else MiB(kind.vram),
                    available=self.available(kind, parent),
                    maximum=kind.maximum if parent == self.address else self.told(kind),
                    device_api="vfio-pci",
                    parent=parent,
                    backend=Backend.MDEV,
                )
                for parent in self.parents
                for kind in self.kinds
            ),
            slices=tuple(
                Slice(
                    backend=Backend.MDEV,
                    id=made.id,
                    type=made.kind.id,
                    parent=made.parent,
                    path=f"devices/{made.parent}/{made.id}",
                    vm=made.vm,
                    ours=made.ours,
                )
                for made in self.made
            ),
            rule=self.rule,
        )

    def told(self, kind: Kind) -> int | None:
        """Return what the card says of its limit for a type on VFs."""
        return None if self.mute else self.most(kind)

    def most(self, kind: Kind) -> int:
        """Return how many the card can have; on VFs nothing else tells."""
        most = self.units // kind.units
        return most if kind.maximum is None else min(most, kind.maximum)
