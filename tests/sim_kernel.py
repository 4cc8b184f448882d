"""A kernel in memory: cards, mediated devices, who holds them, and the QEMUs that run.

It does what arcsup asks of it as the real one would, remembers whose each thing is, and fails the
test at once when something is asked for that must never be. ``point`` is where a daemon may die.
"""

from collections.abc import Callable, Iterable
from functools import partial

from attrs import define, field

from arcsup.devices import Backend, Inventory
from arcsup.errors import Refused, Transient
from arcsup.host.owned import OwnedSlice, SliceChoice
from arcsup.host.sysfs import Sysfs
from tests.slow_driver import Made, SlowDriver


class DaemonKilled(BaseException):
    """The daemon dies here; no handler of its own may know."""


@define(eq=False)
class Qemu:
    """A QEMU. ``begun`` is False while it waits behind its gate."""

    pid: int
    vm: str
    slices: tuple[str, ...]
    begun: bool = False


@define(eq=False)
class SimKernel:
    """``drivers`` are all cards there can be, by address; ``plugged`` those that are there.

    ``holders`` is who has a device open (0: somebody else), ``going`` what vanishes once nobody
    has it any more. ``owned`` tells which ids the journal on disk names.
    """

    drivers: dict[str, SlowDriver]
    owned: Callable[[], set[str]]
    plugged: set[str] = field(factory=set)
    holders: dict[str, int] = field(factory=dict)
    going: set[str] = field(factory=set)
    foreign: set[str] = field(factory=set)
    qemus: dict[int, Qemu] = field(factory=dict)
    points_left: int | None = None
    dead: bool = False
    """Whether the daemon has died: what of it still runs gets no further than the next point."""
    next_pid: int = 1000

    # --- what arcsup sees and does ----------------------------------------------------------

    def point(self) -> None:
        """Pass a point; the daemon dies at the one that was chosen."""
        if self.points_left is not None:
            self.points_left -= 1
            self.dead = self.dead or self.points_left < 0
        if self.dead:
            raise DaemonKilled

    def inventory(self) -> Inventory:
        """Return what a look at the device tree shows, nobody's slices among it."""
        return Inventory(cards=tuple(self.drivers[it].card() for it in sorted(self.plugged)))

    async def prepare(self, choice: SliceChoice, _sysfs: Sysfs) -> OwnedSlice:
        return OwnedSlice(
            backend=choice.backend,
            slot=choice.slot,
            id=choice.id,
            card=choice.card,
            parent=choice.parent,
            type=choice.type,
            path=f"/sys/bus/mdev/devices/{choice.id}",
            vram_mib=choice.vram_mib,
        )

    async def create(
        self, owned: OwnedSlice, _sysfs: Sysfs, *, beside: Iterable[OwnedSlice] = ()
    ) -> None:
        assert owned in beside, "all that the VM gets are judged together"
        assert owned.backend is Backend.MDEV
        assert owned.id in self.owned(), "made before the journal named it"
        self.point()
        if owned.id in self.going:
            raise Transient("an earlier device of this uuid is still being removed")
        if (found := self.find(owned.id)) is not None:
            driver, made = found
            if (made.parent, made.kind.id) != (owned.parent, owned.type):
                raise Refused(f"{owned.id} is another device")
            return
        driver = self.drivers[owned.card]
        kind = driver.kind(owned.type)
        if owned.card not in self.plugged:
            raise Transient(f"{owned.parent} is not there")
        if not driver.can_make(kind, owned.parent):
            raise Transient("no room is left on the card")
        driver.make(Made(owned.id, kind, owned.parent, None, ours=False))
        self.point()

    async def remove(self, owned: OwnedSlice, _sysfs: Sysfs) -> str:
        self.point()
        found = self.find(owned.id)
        if found and (found[1].parent, found[1].kind.id) != (owned.parent, owned.type):
            raise Refused(f"{owned.id} is another device")
        assert owned.id not in self.foreign, f"touched {owned.id}, which is somebody else's"
        assert self.holders.get(owned.id, 0) == 0, f"took {owned.id} from under a running VM"
        if owned.id in self.holders:
            raise Refused(f"{owned.id} is in use by process 1")
        if owned.id in self.going:
            raise Transient(f"{owned.id} is still being removed")
        self._vanish(owned.id)
        self.point()
        return ""

    def is_ready(
        self, owned: OwnedSlice, _sysfs: Sysfs, *, iommufd: bool = False, in_use: bool = False
    ) -> str:
        if owned.id in self.going or self.find(owned.id) is None:
            return f"{owned.id} is not there"
        return ""

    def spawn(self, vm: str, slices: tuple[str, ...]) -> int:
        """Start a program behind its gate."""
        self.point()
        self.next_pid += 1
        self.qemus[self.next_pid] = Qemu(self.next_pid, vm, slices)
        return self.next_pid

    def open_gate(self, pid: int) -> bool:
        """Let it begin; tell whether it got its devices."""
        self.point()
        qemu = self.qemus[pid]
        others = [it.pid for it in self.qemus.values() if it.vm == qemu.vm and it is not qemu]
        assert not others, f"a second QEMU for {qemu.vm}"
        for name in qemu.slices:
            if name in self.holders or name in self.going or self.find(name) is None:
                self.end(pid)
                return False
            self.holders[name] = pid
        qemu.begun = True
        return True

    def end(self, pid: int) -> None:
        """End a QEMU and what was waiting for it."""
        del self.qemus[pid]
        for name in [name for name, holder in self.holders.items() if holder == pid]:
            self.let_go(name)

    # --- what happens to it -----------------------------------------------------------------

    def find(self, name: str) -> tuple[SlowDriver, Made] | None:
        """Return a device and its card, also of a card that is being pulled."""
        for driver in self.drivers.values():
            for made in driver.made:
                if made.id == name:
                    return driver, made
        return None

    def ids(self) -> set[str]:
        """Return all devices that there are."""
        return {made.id for driver in self.drivers.values() for made in driver.made}

    def let_go(self, name: str) -> None:
        """Let whoever has a device close it."""
        del self.holders[name]
        if name in self.going:
            self._vanish(name)

    def pull(self, address: str) -> None:
        """Pull a card: what nobody has open is gone at once, the rest when it is closed."""
        self.plugged.remove(address)
        for made in list(self.drivers[address].made):
            if made.id in self.holders:
                self.going.add(made.id)
            else:
                self._vanish(made.id)

    def close_gates(self) -> None:
        """End what a daemon that died had not let begin."""
        for qemu in list(self.qemus.values()):
            if not qemu.begun:
                self.end(qemu.pid)

    def _vanish(self, name: str) -> None:
        found = self.find(name)
        if found is not None:
            found[0].made.remove(found[1])
        self.going.discard(name)
        self.foreign.discard(name)


def patches(kernel: SimKernel) -> dict[str, Callable[..., object]]:
    """Return what stands for the kernel's side of arcsup.vm.slices, by name."""
    return {
        "prepare_slice": kernel.prepare,
        "create_slice": kernel.create,
        "remove_slice": kernel.remove,
        "is_ready": partial(kernel.is_ready),
    }
