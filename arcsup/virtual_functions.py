"""Gives cards the virtual functions that arcsup.yaml asks for, and their quotas; and NVIDIA's the
mixed-size mode.

One task per card, so that a kernel that does not answer holds up that card alone. What was enabled
is in a journal, written before the deed: only what arcsup enabled is ever taken away. It stays when
the daemon ends (VMs run on with it) and when the configuration says nothing of the card any more.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import trio
from attrs import define, evolve, field

from arcsup.devices import Inventory, VfQuota
from arcsup.errors import ArcsupError, Stuck, Terminal, Transient, is_shortage
from arcsup.host.mixed_sizes import enable_mixed_sizes
from arcsup.host.sriov import enable_vfs, find_vfs
from arcsup.host.sysfs import Sysfs
from arcsup.host.vf_quotas import observe_vf_quotas, set_vf_quotas
from arcsup.plan.assignment import CardPolicy
from arcsup.plan.obstacles import PolicyTable, make_policy_table
from arcsup.plan.vfs import LeaveVfs, SetMixed, SetQuota, SetVfs, VfStep, plan_vfs
from arcsup.vf_journal import KeptQuota, VfJournal

RETRY_SECONDS = 10.0
"""Seconds after which a card that did not get its virtual functions is tried again."""


class _Overtaken(Transient):
    """A card is not as it was when it was looked at; the next look says what is to be done."""


@define(eq=False)
class VfKeeper:
    """``tell`` tells people, ``changed`` wakes the daemon; tasks run in ``nursery``."""

    sysfs: Path
    journal: VfJournal
    tell: Callable[[str, str], None]
    changed: Callable[[], None]
    nursery: trio.Nursery
    mixed: set[str] = field(factory=set)
    """Cards whose mixed-size mode is known to be set."""
    uniform: set[str] = field(factory=set)
    """Cards that cannot be put in it."""
    busy: dict[str, str] = field(factory=dict)
    """Why nothing of a card can be given to anybody now, by card."""
    _working: set[str] = field(factory=set)
    _given_up: dict[str, VfStep] = field(factory=dict)
    _said: dict[str, str] = field(factory=dict)

    def tend(
        self, inventory: Inventory, entries: Sequence[CardPolicy], users: Mapping[str, str]
    ) -> None:
        """Start what is to be done; ``users`` tells by card who uses it."""
        if inventory.stale:
            return  # What is not in it may be there all the same, and would be forgotten.
        self._forget_what_is_gone(inventory)
        table = make_policy_table(entries)
        steps = plan_vfs(
            inventory,
            table,
            self.journal.counts,
            users,
            frozenset(self.mixed),
            self._quotas_set(table),
        )
        lacking = {step.address for step in steps} | self._working
        for address in {*self._said, *self.busy} - lacking:
            self._said.pop(address, None)
            self.busy.pop(address, None)
        for step in steps:
            if step.address in self._working or self._given_up.get(step.address) == step:
                continue
            if isinstance(step, LeaveVfs):
                self._say(step.address, step.because)
                continue
            self._working.add(step.address)
            self.busy[step.address] = str(step)
            self.nursery.start_soon(self._carry_out, step)

    def _quotas_set(self, table: PolicyTable) -> dict[str, VfQuota | None]:
        """Return the quotas of cards; None where a function that may be touched has none yet."""
        sysfs = Sysfs(self.sysfs)
        found: dict[str, VfQuota | None] = {}
        for address, kept in self.journal.quotas.items():
            vfs = find_vfs(sysfs, address)
            lacking = {number for number in vfs if number not in kept.former}
            is_set = all(table.excludes(vfs[number]) for number in lacking)
            found[address] = kept.wanted if is_set else None
        return found

    def _forget_what_is_gone(self, inventory: Inventory) -> None:
        with_vfs = {card.address for card in inventory.cards if card.vfs}
        with_vfs |= {card.address for card in inventory.network_cards if card.vfs}
        noted = self.journal.counts.keys() | self.journal.quotas.keys()
        for address in noted - with_vfs - self._working:
            if not self._count(address):  # None were made after the look either.
                # Whoever makes some now, it is not arcsup; and the driver has released their quotas
                # (sysfs-driver-intel-xe-sriov).
                self.journal.counts.pop(address, None)
                self.journal.quotas.pop(address, None)
        for address in self._given_up.keys() - with_vfs:
            if isinstance(self._given_up[address], SetQuota):
                del self._given_up[address]
        for card in inventory.cards:
            if not card.types and not card.slices:
                # Its virtual functions, or its driver, are gone, and the mode with them.
                self.mixed.discard(card.address)
                self.uniform.discard(card.address)
                if isinstance(self._given_up.get(card.address), SetMixed):
                    del self._given_up[card.address]

    def retry(self) -> None:
        """Try again what was given up: the operator may have changed what was in the way."""
        self._given_up.clear()
        self.uniform.clear()

    def findings(self) -> list[str]:
        """Return, one sentence each, which cards have not got what was configured."""
        return [f"{address}: {what}" for address, what in sorted(self._said.items())]

    async def _carry_out(self, step: SetVfs | SetMixed | SetQuota) -> None:
        try:
            await self._try(step)
        except Exception as error:
            if not is_shortage(error):
                raise
            # One card's trouble, and one that passes: the next look says what is still to be done.
            self._say(step.address, f"the host has run out of something: {error}")
            await trio.sleep(RETRY_SECONDS)
        finally:
            self._working.discard(step.address)
            self.changed()

    async def _try(self, step: SetVfs | SetMixed | SetQuota) -> None:
        address = step.address
        try:
            if isinstance(step, SetVfs):
                await self._set_vfs(step)
            elif isinstance(step, SetQuota):
                await self._set_quota(step)
            else:
                await enable_mixed_sizes(address)
                self.mixed.add(address)
                self.uniform.discard(address)
            self._said.pop(address, None)
            self.busy.pop(address, None)
        except ArcsupError as error:
            await self._note_failure(step, error)

    async def _set_vfs(self, step: SetVfs) -> None:
        address = step.address
        if address in self.journal.quotas:
            # With them the driver releases their memory; of their turns it promises nothing.
            await self._put_back_quota(address, memory=False)
        self._require_as_seen(step)
        # NVIDIA's tool makes as many as the card can have.
        await self.journal.note(address, *sorted({step.have, step.count, step.total} - {0}))
        self.mixed.discard(address)
        try:
            await enable_vfs(address, step.count, Sysfs(self.sysfs))
        except Stuck:
            raise  # The kernel may still do it, so all that it may have become stays ours.
        except ArcsupError:
            await self.journal.note(address, self._count(address))
            raise
        have = self._count(address)
        await self.journal.note(address, have)
        self.tell("vfs-set", f"{address} has {have} virtual functions now")

    def _require_as_seen(self, step: SetVfs) -> None:
        """Refuse to take for ours what somebody else, a boot service say, has just enabled."""
        if (have := self._count(step.address)) != step.have:
            raise _Overtaken(
                f"it had {step.have} virtual functions when it was looked at, and has {have} now"
            )

    async def _set_quota(self, step: SetQuota) -> None:
        address, sysfs = step.address, Sysfs(self.sysfs)
        if step.quota is None:
            await self._put_back_quota(address, excluded=step.excluded)
            self.tell("vf-quota-set", f"{address}: its virtual functions have their former quotas")
            return
        kept = self.journal.quotas.get(address)
        vfs = find_vfs(sysfs, address)
        seen = await observe_vf_quotas(sysfs, address)
        now = {n: quota for n, quota in seen.items() if vfs.get(n) not in step.excluded}
        # Of a function that was made since, what it has now is what it had before.
        former = now | dict(kept.former if kept else {})
        await self.journal.note_quota(address, KeptQuota(None, former))
        wanted = {number: _merge(step.quota, former[number]) for number in now}
        await set_vf_quotas(sysfs, address, wanted)
        await self.journal.note_quota(address, KeptQuota(step.quota, former))
        self.tell("vf-quota-set", f"{address}: its virtual functions have the quotas asked for")

    async def _put_back_quota(
        self, address: str, *, memory: bool = True, excluded: frozenset[str] = frozenset()
    ) -> None:
        sysfs, former = Sysfs(self.sysfs), self.journal.quotas[address].former
        there = find_vfs(sysfs, address)
        quotas = {
            number: quota if memory else evolve(quota, vram_mib=None)
            for number, quota in former.items()
            if number in there and there[number] not in excluded
        }
        await set_vf_quotas(sysfs, address, quotas)
        await self.journal.note_quota(address, None)

    def _count(self, address: str) -> int:
        return len(find_vfs(Sysfs(self.sysfs), address))

    async def _note_failure(self, step: SetVfs | SetMixed | SetQuota, error: ArcsupError) -> None:
        address = step.address
        why = f"{error.message}{f' ({error.hint})' if error.hint else ''}"
        self._say(address, why)
        self.busy.pop(address, None)
        hopeless = isinstance(error, Terminal)
        if isinstance(step, SetMixed):
            self.uniform.add(address)
        elif isinstance(step, SetVfs):
            have = self._count(address)
            if have == 0:
                self.busy[address] = f"its virtual functions could not be enabled: {why}"
            if have not in (0, step.have) and not isinstance(error, Stuck | _Overtaken):
                # It made what it could. Again and again it would take that away and make as many.
                step, hopeless = evolve(step, have=have), True
        if hopeless:
            self._given_up[address] = step
            return
        self.changed()
        await trio.sleep(RETRY_SECONDS)

    def _say(self, address: str, what: str) -> None:
        if self._said.get(address) != what:
            self._said[address] = what
            self.tell("vfs-left", f"{address}: {what}")


def _merge(quota: VfQuota, former: VfQuota) -> VfQuota:
    """Return a quota in which what is not asked for is as it was."""
    return VfQuota(
        vram_mib=former.vram_mib if quota.vram_mib is None else quota.vram_mib,
        exec_quantum_ms=(
            former.exec_quantum_ms if quota.exec_quantum_ms is None else quota.exec_quantum_ms
        ),
        preempt_timeout_us=(
            former.preempt_timeout_us
            if quota.preempt_timeout_us is None
            else quota.preempt_timeout_us
        ),
    )
