"""What choosing slices takes and gives, as values: requests, former slices, choices, refusals."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Protocol
from uuid import UUID

from attrs import evolve, field, frozen

from arcsup.devices import Backend, VfQuota
from arcsup.model import GpuKind, GpuRequest, MiB, VmName

Place = tuple[VmName, int]
"""A VM and the number of one of its slots, counted from 0 over its requests (see ``slots_of``)."""


Slots = tuple[tuple[int, GpuRequest], ...]
"""A VM's slots with what each asks for."""


@frozen
class VmRequests:
    """What one VM asks for. ``numa_node`` is where its CPUs or memory are bound, if they are."""

    name: VmName
    uuid: UUID
    requests: tuple[GpuRequest, ...]
    numa_node: int | None = None


def slots_of(vm: VmRequests) -> Slots:
    """Return slot -> request, each ``count`` spread out.

    A ``virtio`` request needs nothing of the host; it has a number and is left out.
    """
    spread = [request for request in vm.requests for _ in range(request.count)]
    return tuple(
        (slot, evolve(request, count=1) if request.count != 1 else request)
        for slot, request in enumerate(spread)
        if request.kind is not GpuKind.VIRTIO
    )


@frozen
class Held:
    """The slice that a slot had, whether it is still there or not. ``in_use``: a QEMU has it."""

    backend: Backend
    card: str
    parent: str
    type: str | None
    id: str
    in_use: bool = False


class CardPolicy(Protocol):
    """An entry of ``gpus:`` in arcsup.yaml."""

    @property
    def match(self) -> str:
        """An address, VENDOR[:DEVICE] or ``*``."""

    @property
    def exclude(self) -> bool:
        """Never touch them."""

    @property
    def vfs(self) -> int | None:
        """How many virtual functions they are to have; None leaves them as they are."""

    @property
    def mixed_sizes(self) -> bool:
        """vGPU types of several sizes may share a card."""

    @property
    def vf_quota(self) -> VfQuota | None:
        """What each of their virtual functions may use; None leaves that as it is."""


@frozen
class Policy:
    """What the operator lets be done. The first of ``cards`` that matches a card counts for it.

    ``quarantined`` holds what failed: a slice's id, a parent's or card's address, or
    ``PARENT/TYPE``. ``busy`` says of cards, in a sentence, why nothing of them can be given now;
    ``uniform`` are those that could not be put in mixed mode. ``lost`` says of a card or a VF,
    by address, why it is of no use although it is there. ``owed`` are functions, by address, that
    a VM is to give back first: its record names them, whether they are anything of it now or not.
    ``used`` says of cards and what goes along with them, by address, what of the host uses it.
    """

    cards: tuple[CardPolicy, ...] = ()
    spread: bool = False
    quarantined: frozenset[str] = frozenset()
    busy: Mapping[str, str] = field(factory=dict)
    uniform: frozenset[str] = frozenset()
    lost: Mapping[str, str] = field(factory=dict)
    owed: Mapping[str, VmName] = field(factory=dict)
    used: Mapping[str, str] = field(factory=dict)


class WaitFor(StrEnum):
    """What may happen to the host that would let a refused request be met."""

    CAPACITY = "capacity freed"
    VFS = "virtual functions enabled"
    DRIVER = "a driver loaded"
    CARD = "a card that is not there"


@frozen
class Reason:
    """Why some types, on some cards, were not taken: one sentence for all that share it.

    ``types`` and ``cards`` are the first few of ``type_count`` and ``card_count``; no types at
    all means the cards as a whole.
    """

    because: str
    types: tuple[str, ...] = ()
    type_count: int = 0
    cards: tuple[str, ...] = ()
    card_count: int = 0

    def __str__(self) -> str:
        types, cards = _some(self.types, self.type_count), _some(self.cards, self.card_count)
        where = " on ".join(part for part in (types, cards) if part)
        return f"{where}: {self.because}" if where else self.because


def _some(names: tuple[str, ...], count: int) -> str:
    more = count - len(names)
    return ", ".join(names) + (f" and {more} more" if more > 0 else "")


@frozen
class Choice:
    """The slice that a slot gets. ``id`` is an mdev's uuid, else the function's PCI address.

    ``exists`` says that it is there already; else it is to be made of ``type`` on ``parent``.
    ``because`` says what spoke for it. With a whole card go its ``companions``; ``forced`` says
    that it is the host's display, and that the operator named it all the same. ``force`` takes what
    the host uses, too.
    """

    backend: Backend
    card: str
    parent: str
    type: str | None
    type_name: str
    vram_mib: MiB | None
    id: str
    exists: bool
    numa_node: int | None
    because: str
    companions: tuple[str, ...] = ()
    forced: bool = False
    force: bool = False


@frozen
class Refusal:
    """A slot gets nothing, and why. ``waiting_for`` is empty where waiting cannot help."""

    reasons: tuple[Reason, ...]
    waiting_for: tuple[WaitFor, ...]
    optional: bool = False

    def __str__(self) -> str:
        return "; ".join(map(str, self.reasons))


@frozen
class Assignment:
    """What each slot of each VM gets. ``virtio`` requests have no entry."""

    outcomes: Mapping[Place, Choice | Refusal] = field(factory=dict)

    def choices_of(self, vm: VmName) -> dict[int, Choice]:
        """Return slot -> choice of one VM, in order."""
        return {
            slot: outcome
            for (name, slot), outcome in self.outcomes.items()
            if name == vm and isinstance(outcome, Choice)
        }

    def obstacles_of(self, vm: VmName) -> dict[int, Refusal]:
        """Return slot -> refusal of those requests without which the VM does not start."""
        return {
            slot: outcome
            for (name, slot), outcome in self.outcomes.items()
            if name == vm and isinstance(outcome, Refusal) and not outcome.optional
        }
