"""Which PCI devices of the host are lost: there to see, and of no use until something brings them
back.

What is gone altogether shows in the device tree. This is about what does not: a card that has
fallen off its bus, that its driver has given up, or that a PCI error has ended. Such words come
once, so they are kept until the device is there anew, its driver has taken it again, its driver
says that it has recovered, or the operator says so.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from attrs import define, evolve, field, frozen

from arcsup.host.cards import PCI
from arcsup.host.kmsg import LogRecord
from arcsup.host.loss_events import read_loss_event
from arcsup.host.owned import OwnedSlice
from arcsup.host.sysfs import Sysfs
from arcsup.host.xids import find_xid, judge_xid


@frozen
class Loss:
    """Why a device is lost, and when that was heard last, on the monotonic clock."""

    because: str
    at: float


@define(eq=False)
class Losses:
    """The lost devices by PCI address. ``changed`` is called when another is, or is no more.

    ``root`` is the device tree's. ``tell`` is told what was heard: an address and a sentence.
    """

    root: Path
    changed: Callable[[], None] = lambda: None
    tell: Callable[[str, str], None] = lambda _address, _sentence: None
    since: float = field(factory=time.monotonic)
    """What the log told before is over, unless a VM that still runs has lived through it."""
    _lost: dict[str, Loss] = field(factory=dict)
    _told: set[str] = field(factory=set)

    def hear_uevent(self, properties: Mapping[str, str]) -> None:
        """Take note of a uevent that tells of a loss, or of a return."""
        event = read_loss_event(properties)
        if event is None or not (event.because or self._lost):
            return
        # What is below a bridge that has failed is out of reach too.
        for address in self._find_below(event.path):
            self._note(address, event.because, time.monotonic())

    def hear_log(self, record: LogRecord) -> None:
        """Take note of a line of the kernel log that tells of a loss, or of a recovery."""
        line = find_xid(record.text)
        if line is None:
            return
        verdict = judge_xid(line)
        for address in self._find_functions(line.slot):
            if verdict.lost is None:
                self._tell_once(address, verdict.because)
            else:
                self._note(address, verdict.because if verdict.lost else "", record.at)

    def lost(self) -> dict[str, str]:
        """Return why each device is lost that must not be given to anybody."""
        return {name: it.because for name, it in self._lost.items() if it.at >= self.since}

    def find(self, slices: Iterable[OwnedSlice], started_at: float) -> str:
        """Return why a VM with these slices since ``started_at`` must end; "" if it need not."""
        for owned in slices:
            for address in (owned.id, owned.parent, owned.card):
                loss = self._lost.get(address)
                if loss is not None and loss.at >= started_at:
                    self._confirm(address, loss)
                    return f"{address} is lost: {loss.because}"
        return ""

    def forget(self, name: str) -> bool:
        """Believe that a device can be used again; tell whether it was lost."""
        if self._lost.pop(name, None) is None:
            return False
        self.changed()
        return True

    def _note(self, address: str, because: str, at: float) -> None:
        if not because:
            if self.forget(address):
                self.tell(address, "it may be used again")
            return
        known = self._lost.get(address)
        if known is None or known.at < self.since:
            self._lost[address] = Loss(because, at)
            if at >= self.since:
                self.tell(address, f"it is lost: {because}")
            self.changed()
        elif at > known.at:
            # What a card says first is the cause; what follows comes of it.
            self._lost[address] = evolve(known, at=at)

    def _confirm(self, address: str, loss: Loss) -> None:
        """A loss of before this daemon that has just ended a VM is none of the past."""
        if loss.at < self.since:
            self._lost[address] = Loss(loss.because, self.since)

    def _tell_once(self, address: str, because: str) -> None:
        # A guest can cause these by the thousand.
        if (told := f"{address} {because}") not in self._told:
            self._told.add(told)
            self.tell(address, because)

    def _find_functions(self, slot: str) -> Iterator[str]:
        return (name for name in Sysfs(self.root).names(PCI) if name.rpartition(".")[0] == slot)

    def _find_below(self, path: str) -> Iterator[str]:
        yield path.rpartition("/")[2]
        sysfs = Sysfs(self.root)
        for name in sysfs.names(PCI):
            if f"/{sysfs.real(f'{PCI}/{name}')}".startswith(f"{path}/"):
                yield name
