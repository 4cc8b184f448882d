"""The daemon's look at the host's devices: in a thread, because the kernel may keep us waiting."""

from collections.abc import Callable, Mapping
from pathlib import Path

import trio
from attrs import define, evolve, field

from arcsup.card_state import mark_cards
from arcsup.devices import Backend, Card, Inventory
from arcsup.host.host_use import find_card_use
from arcsup.host.inventory import observe_inventory
from arcsup.host.pci_ids import PciIds
from arcsup.host.surroundings import TypeSizes, look_around
from arcsup.host.sysfs import Sysfs
from arcsup.host.writer import unanswered_writes
from arcsup.model import VmName

PATIENCE = 5.0
"""Seconds that a look may take; thousands of cards take one."""


@define(eq=False)
class DeviceLook:
    """Looks at one device tree; ``owners`` tells by slice id which VM of ours has it.

    ``also`` tells the PCI functions to look at that are no GPUs by their class, ``lost`` which
    are of no use any more although they are there, ``homes`` the card of each slice in the journal.
    ``last`` is the last look that came to its end.
    """

    sysfs: Path
    owners: Callable[[], Mapping[str, VmName]] = dict
    also: Callable[[], frozenset[str]] = frozenset
    lost: Callable[[], Mapping[str, str]] = dict
    homes: Callable[[], Mapping[str, str]] = dict
    last: Inventory = field(factory=Inventory)
    _ids: PciIds = field(factory=PciIds)
    _sizes: TypeSizes = field(factory=dict)
    # One at a time: a look that a stuck driver holds must not be joined by one more each second.
    _one: trio.CapacityLimiter = field(factory=lambda: trio.CapacityLimiter(1))
    _turn: trio.Lock = field(factory=trio.Lock)
    _begun: int = 0
    _ended: int = 0
    _answer: Inventory = field(factory=Inventory)

    async def observe(self) -> Inventory:
        """Return what is there now; when the kernel does not answer, what was, with a fault.

        A hundred who ask at once share one look, and it begins after they have asked: so nobody
        waits for more than the look that is under way and the next.
        """
        asked = self._begun
        async with self._turn:
            if self._ended <= asked:
                self._begun += 1
                self._answer = await self._look()
                self._ended = self._begun
        return self._mark(self._answer)

    async def _look(self) -> Inventory:
        with trio.move_on_after(PATIENCE):
            self.last = await trio.to_thread.run_sync(
                self._observe, self.owners(), self.also(), abandon_on_cancel=True, limiter=self._one
            )
            return self.last
        stuck = f"{self.sysfs}: no answer for {PATIENCE:g} s; this is how it was before"
        return evolve(self.last, stale=True, faults=(*self.last.faults, stuck))

    async def find_use(self, inventory: Inventory) -> Mapping[str, str]:
        """Return what of the host uses the functions of cards that can be handed out whole.

        Nothing where the kernel does not answer: who takes a card looks again.
        """
        cards = [card for card in inventory.cards if Backend.PASSTHROUGH in card.backends]
        with trio.move_on_after(PATIENCE):
            return await trio.to_thread.run_sync(
                self._find_use, cards, abandon_on_cancel=True, limiter=self._one
            )
        return {}

    def _find_use(self, cards: list[Card]) -> dict[str, str]:
        return find_card_use(self.sysfs, cards)

    def _mark(self, inventory: Inventory) -> Inventory:
        return mark_cards(
            inventory, lost=self.lost(), stuck=unanswered_writes(), homes=self.homes()
        )

    def _observe(self, owners: Mapping[str, VmName], also: frozenset[str]) -> Inventory:
        around = look_around(self.sysfs, owners=owners, ids=self._ids, sizes=self._sizes, also=also)
        return observe_inventory(Sysfs(self.sysfs), around)
