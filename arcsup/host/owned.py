"""What arcsup has made of the host's devices, or is about to: enough to undo it after a crash."""

from attrs import frozen

from arcsup.devices import Backend
from arcsup.model import MiB


@frozen
class SliceChoice:
    """A slice that was chosen for a VM's slot; ``id`` is an mdev's uuid or a PCI address.

    ``type`` may be the kernel's id or the vendor's name. ``companions`` are the functions that go
    along with a whole card. ``forced`` takes even the host's own display. ``mac`` is for a VF of a
    network card, whose ``slot`` is its number in ``networks``. ``force`` takes what the host's
    programs use, too.
    """

    backend: Backend
    slot: int
    card: str
    parent: str
    type: str | None
    id: str
    companions: tuple[str, ...] = ()
    vram_mib: MiB | None = None
    forced: bool = False
    mac: str | None = None
    force: bool = False

    @property
    def asked_by(self) -> str:
        """Return the entry of the VM's file that it is for."""
        return _entry(self.slot, self.mac)


@frozen
class Identity:
    """What device is at a PCI address: ``vendor:device``, the board's same, and its serial number.

    Each is "" where nothing tells, and then says nothing against any device.
    """

    model: str = ""
    board: str = ""
    serial: str = ""

    def may_be(self, other: "Identity") -> bool:
        """Tell whether nothing shows that the two are different devices."""
        mine, others = (
            (self.model, self.board, self.serial),
            (other.model, other.board, other.serial),
        )
        return all(
            one == another or not (one and another)
            for one, another in zip(mine, others, strict=True)
        )

    def __str__(self) -> str:
        serial = f"serial number {self.serial}" if self.serial else ""
        return ", ".join(word for word in (self.model, self.board, serial) if word)


@frozen
class Rebinding:
    """A function that goes to vfio-pci, and what it had before (None: nothing).

    ``identity`` is the device that it was then: an address is given to another one when a card is
    plugged in, or taken out.
    """

    address: str
    former_driver: str | None
    former_override: str | None
    identity: Identity = Identity()


@frozen
class OwnedSlice:
    """A slice of ours, as the ownership journal keeps it: written before a device is touched.

    ``type`` is the kernel's id. ``path`` is the device's folder, for QEMU's ``sysfsdev``.
    ``rebindings`` begin with the function itself. ``former_mac`` is what a network VF had.
    ``left_over``: its VM went on with another, but it could not be given back yet. ``adopted``: the
    operator gave it to the VM, which has not run with it yet; it stays even while that is stopped.
    ``boot`` is the host's boot in which it was written (boot id): what was done to a device ends
    with it. "" in journals that are older than this entry. ``force`` is its choice's.
    """

    backend: Backend
    slot: int
    id: str
    card: str
    parent: str
    type: str | None
    path: str
    rebindings: tuple[Rebinding, ...] = ()
    vram_mib: MiB | None = None
    mac: str | None = None
    former_mac: str | None = None
    left_over: bool = False
    adopted: bool = False
    boot: str = ""
    force: bool = False

    @property
    def asked_by(self) -> str:
        """Return the entry of the VM's file that it is for."""
        return _entry(self.slot, self.mac)

    @property
    def device(self) -> str:
        """Return its folder relative to the device tree's root."""
        return device_path(self.backend, self.id)

    @property
    def devices(self) -> tuple[str, ...]:
        """Return the same of every function that goes along, its own first."""
        companions = (it.address for it in self.rebindings if it.address != self.id)
        return (self.device, *(device_path(self.backend, address) for address in companions))


def _entry(slot: int, mac: str | None) -> str:
    return f"gpus[{slot}]" if mac is None else f"networks[{slot}]"


def device_path(backend: Backend, slice_id: str) -> str:
    """Return where a slice is in the device tree, relative to its root."""
    return f"bus/{'mdev' if backend is Backend.MDEV else 'pci'}/devices/{slice_id}"
