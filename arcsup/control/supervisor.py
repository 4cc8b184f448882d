"""What the control socket asks of the daemon. The daemon implements it; tests put in a fake.

Reading is immediate and never blocks. Commands record the operator's intent durably before they
return; ``settle`` then waits until the VM is what was asked for.
"""

from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from arcsup.devices import Inventory
from arcsup.model import Event, State, Step, VmName, VmStatus, Why
from arcsup.plan.mode import Mode
from arcsup.plan.survey import TypeVerdict
from arcsup.unattended.store import Answers


class GpuSupervisor(Protocol):
    """The daemon's GPUs and what is cut from them."""

    async def inventory(self) -> Inventory:
        """Return the host's GPUs as they are now; takes milliseconds, seconds when one is stuck."""
        ...

    async def explain(self, name: str) -> Sequence[tuple[int, Sequence[TypeVerdict]]]:
        """Return for each slot of a VM what every type of every card has for and against it."""
        ...

    async def explain_file(
        self, file: Path, source: str
    ) -> Sequence[tuple[int, Sequence[TypeVerdict]]]:
        """Return the same for a VM as a file asks for it. SpecError."""
        ...

    async def adopt(self, slice_id: str, name: str) -> None:
        """Take a slice that somebody else has made into the journal, for a VM that is down.

        Raises NoSuchObject, or Refused: held, ours already, nothing that the VM asks for.
        """
        ...

    async def release(self, slice_id: str) -> None:
        """Strike a slice from the journal and leave it. NoSuchObject, Refused while in use."""
        ...

    def quarantined(self) -> Sequence[str]:
        """Return what failed too often to be tried again: slices, or PARENT/TYPE."""
        ...

    def unquarantine(self, name: str) -> Sequence[str]:
        """Try again what failed, also all on a parent; return what it was. NoSuchObject."""
        ...


class Supervisor(Protocol):
    """The daemon as the operator sees it. Every method raises NoSuchObject for unknown names."""

    @property
    def gpus(self) -> GpuSupervisor:
        """The host's GPUs."""
        ...

    def statuses(self) -> Sequence[VmStatus]:
        """Return all VMs in name order."""
        ...

    def status(self, name: str) -> VmStatus:
        """Return one VM."""
        ...

    def why(self, name: str) -> Why:
        """Return the chain from "not as desired" to its cause."""
        ...

    def definition(self, name: str) -> dict[str, Any]:
        """Return the VM as its file asks for it, defaults filled in, in the file's own keys."""
        ...

    def steps(self) -> Sequence[Step]:
        """Return what the next pass of the planner would do; empty when all is as desired."""
        ...

    def report(self) -> dict[str, Any]:
        """Return the daemon's own state: control.shapes.ReportJson."""
        ...

    async def start(self, name: str, mode: Mode, /) -> None:
        """Want the VM to run, in ``mode``; leaves ``stopped`` and ``failed``."""
        ...

    async def submit(
        self, file: Path, source: str, mode: Mode, answers: Answers | None, /
    ) -> VmName:
        """Run the VM of a file: until it is stopped, if the VM directory has it not. SpecError."""
        ...

    async def stop(self, name: str, *, save: bool = False) -> None:
        """Want the VM to be stopped, durably; the guest is asked first.

        ``save``: what it wrote to its ephemeral disks is kept. Refused where that cannot be.
        """
        ...

    async def kill(self, name: str) -> None:
        """Pull the plug and want the VM to be stopped, durably."""
        ...

    async def adopt(self, name: str) -> None:
        """Go on with a QEMU of it that no record tells of. Refused where there is none."""
        ...

    async def restart(self, name: str) -> None:
        """Stop as ``stop`` does, then start with the file as it is now."""
        ...

    async def reset(self, name: str) -> None:
        """Press the reset button. Refused when not running."""
        ...

    async def pause(self, name: str) -> None:
        """Halt the virtual CPUs. Refused when not running."""
        ...

    async def resume(self, name: str) -> None:
        """Let paused virtual CPUs go on. Refused when not paused."""
        ...

    async def clear(self, name: str) -> None:
        """Leave ``failed`` with a fresh restart budget. Refused in other states."""
        ...

    async def qmp(self, name: str, command: str, arguments: dict[str, Any]) -> Any:
        """Run one QMP command on the daemon's own monitor and return its ``return`` value."""
        ...

    async def screenshot(self, name: str) -> bytes:
        """Return the guest's first display as PNG. Refused when it has none."""
        ...

    async def clone(
        self, name: str, source: Path, target: Path, report: Callable[[float], None], /
    ) -> None:
        """Copy a disk of a VM that runs to a new image; ``report`` is told the percentage.

        Cancelling it leaves nothing behind. Raises Refused, Terminal, Transient.
        """
        ...

    async def reload(self) -> Sequence[str]:
        """Read the configuration and every VM file again.

        Returns the keys of the configuration that only a daemon takes that is started anew.
        """
        ...

    async def settle(self, name: str, verb: str, seconds: float, /) -> VmStatus:
        """Wait until ``verb`` (start, stop, restart, kill, adopt) has had its effect or failed.

        Returns the VM's status then. Raises TimedOut; raises ArcsupError when it ended elsewhere,
        with the reason (``failed``, ``invalid``, or ``waiting`` that cannot resolve itself).
        """
        ...

    async def wait_for(self, name: str, state: State | None, seconds: float, /) -> VmStatus:
        """Wait until the VM is in ``state`` (None: gone). Raises TimedOut."""
        ...

    def events(self, since: int, vm: str | None) -> Sequence[tuple[int, Event]]:
        """Return kept events after number ``since`` (0: all), oldest first, with their number."""
        ...

    def follow(self, since: int, vm: str | None) -> AsyncGenerator[tuple[int, Event], None]:
        """Yield events after ``since`` for ever. A slow reader loses the oldest, never blocks.

        A generator, so that the reader can close it in time (``aclosing``).
        """
        ...

    def metrics(self) -> bytes:
        """Return the Prometheus text exposition."""
        ...
