"""What an operator may ask about single slices: whose they are, what was given up on, and why.

Adopting and releasing change the ownership journal and nothing else; no device is touched.
"""

from collections.abc import Sequence
from pathlib import Path

from attrs import define, evolve

from arcsup.devices import Backend, Inventory, Slice
from arcsup.errors import NoSuchObject, Refused
from arcsup.events.dirty import Dirty
from arcsup.fleet import Fleet
from arcsup.host.slices import prepare_slice
from arcsup.host.sysfs import Sysfs
from arcsup.plan.functions import with_host_use
from arcsup.plan.lifecycle import Phase
from arcsup.plan.survey import TypeVerdict
from arcsup.text_reader import TextReader
from arcsup.vm.managed import ManagedVm
from arcsup.vm.record import Record, Source

SlotVerdicts = Sequence[tuple[int, Sequence[TypeVerdict]]]
"""Each slot of a VM, with what is said of every type of every card for it."""


@define(eq=False)
class GpuOperator:
    """Implements ``control.supervisor.GpuSupervisor`` on a fleet."""

    fleet: Fleet
    dirty: Dirty
    reader: TextReader

    async def inventory(self) -> Inventory:
        """Return the host's GPUs as they are now, with what of the host uses them."""
        look = self.fleet.allocation.look
        seen = await look.observe()
        return with_host_use(seen, await look.find_use(seen))

    def quarantined(self) -> Sequence[str]:
        """Return what is not tried again: slices or PARENT/TYPE that failed, devices lost."""
        allocation = self.fleet.allocation
        return sorted({*allocation.quarantined(), *allocation.losses.lost()})

    async def adopt(self, slice_id: str, name: str) -> None:
        """Take a slice that somebody else has made into the journal, for a VM that is down.

        It stays until the VM has run with it; from then on it is kept and removed like one that was
        made for it.
        """
        vm = self.fleet.find(name)
        inventory = await self.inventory()
        piece = _find_foreign(inventory, slice_id)
        choice = self.fleet.allocation.find_slot(vm, piece, inventory)
        if choice is None:
            raise Refused(
                f"{slice_id} ({_describe(piece)}) is nothing that {name} asks for and has not got",
                f"`arcsup gpu types --for {name}` says what suits it",
            )
        owned = await prepare_slice(choice, Sysfs(self.fleet.workshop.places.sysfs))
        # Meanwhile it may have been started, and is about to have a slice of its own.
        _require_down(vm, f"{name} is {vm.phase}: it takes a slice only when it starts")
        if owner := self.fleet.slice_owners().get(owned.id):
            raise Refused(f"{slice_id} is already {owner}'s")
        owned = evolve(owned, adopted=True)
        await vm.save(self.fleet.workshop, slices=(*vm.record.slices, owned))
        told = f"the operator gave {name} {_describe(piece)} {slice_id}"
        self.fleet.workshop.tell(vm.name, "device-adopted", told, id=owned.id, slot=owned.slot)
        self.dirty.mark("devices")

    async def release(self, slice_id: str) -> None:
        """Strike a slice from the journal and leave it as it is: it is nobody's of ours then."""
        owner = self.fleet.slice_owners().get(slice_id)
        if owner is None:
            raise NoSuchObject(
                f"arcsup has no slice {slice_id}", "`arcsup gpu list --tree` shows whose each is"
            )
        vm = self.fleet.vms[owner]
        _require_down(vm, f"{slice_id} is in use: {owner} is {vm.phase}")
        left = tuple(owned for owned in vm.record.slices if owned.id != slice_id)
        await vm.save(self.fleet.workshop, slices=left)
        told = f"the operator let go of {slice_id}; it is left as it is"
        self.fleet.workshop.tell(owner, "device-released", told, id=slice_id)
        self.dirty.mark("devices")

    def unquarantine(self, name: str) -> Sequence[str]:
        """Try again what failed: a slice, a PARENT/TYPE, or all on a parent; return what it was."""
        lifted = self.fleet.allocation.lift_quarantine(name)
        if not lifted:
            known = ", ".join(self.quarantined()) or "nothing"
            raise NoSuchObject(f"{name} is not quarantined", f"quarantined is: {known}")
        for it in lifted:
            self.fleet.workshop.tell(None, "unquarantined", f"{it} is tried again", id=it)
        self.dirty.mark("devices")
        return lifted

    async def explain(self, name: str) -> SlotVerdicts:
        """Return for each slot of a VM what every type of every card has for and against it."""
        return await self._explain(self.fleet.find(name))

    async def explain_file(self, file: Path, source: str) -> SlotVerdicts:
        """Return the same for a VM as a file asks for it. Raises SpecError."""
        vm = await self.reader.load(source, file)
        known = self.fleet.vms.get(vm.name)
        record = known.record if known else Record(vm.name, Source(str(file), source, ""))
        return await self._explain(ManagedVm(record, vm))

    async def _explain(self, vm: ManagedVm) -> SlotVerdicts:
        allocation = self.fleet.allocation
        inventory = await allocation.look.observe()
        # The passes of the daemon look only while somebody waits for a whole card.
        allocation.used = await allocation.look.find_use(inventory)
        up = self.fleet.look().up
        found = allocation.explain(vm, self.fleet.vms.values(), up, inventory)
        return list(found.items())


def _find_foreign(inventory: Inventory, slice_id: str) -> Slice:
    """Return a slice that is nobody's of ours and in nobody's hands."""
    for card in inventory.cards:
        for piece in card.slices:
            if piece.id == slice_id:
                if piece.ours:
                    raise Refused(f"{slice_id} is already {piece.vm}'s")
                if piece.holders:
                    who = ", ".join(map(str, piece.holders))
                    raise Refused(f"{slice_id} is in use by process {who}", "end that first")
                return piece
    raise NoSuchObject(f"there is no slice {slice_id}", "`arcsup gpu list --tree` shows them")


def _require_down(vm: ManagedVm, why: str) -> None:
    if vm.phase is not Phase.DOWN:
        raise Refused(why, f"arcsup stop {vm.name}")


def _describe(piece: Slice) -> str:
    if piece.type is not None:
        return f"{piece.type} on {piece.parent}"
    return "a virtual function" if piece.backend is Backend.SRIOV else "a whole card"
