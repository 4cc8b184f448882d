"""GPUs and what is cut from them, as values. Read by host/, chosen from by plan/, never changed.

Words: a *card* is one physical function with what hangs off it (its virtual functions are not
cards of their own). A *parent* is the device that a slice is made on: the card, one of its VFs, or
a device that is no PCI at all. A *slice* is what one GPU request gets.
"""

from enum import StrEnum

from attrs import field, frozen

from arcsup.model import CpuSet, MiB, VmName


class Backend(StrEnum):
    """How a card's slices are made."""

    MDEV = "mdev"
    VENDOR_VFIO = "vendor-vfio"
    SRIOV = "sriov"
    PASSTHROUGH = "passthrough"


class CapacityRule(StrEnum):
    """What the first slice of a card forbids to the next ones (facts of the vendor's driver).

    ANY: the driver counts units (memory, ports) and mixes freely. SAME_TYPE: NVIDIA up to vGPU 12.
    SAME_SIZE: NVIDIA since vGPU 13. MIXED: NVIDIA's heterogeneous mode.
    """

    ANY = "any"
    SAME_TYPE = "same-type"
    SAME_SIZE = "same-size"
    MIXED = "mixed"


@frozen
class SliceType:
    """A type that one parent offers.

    ``id`` is the kernel's name (``nvidia-256``, ``i915-GVTg_V5_4``; for vendor vGPUs ``nvidia-``
    and the number), ``available`` how many more can be made on this parent now (None: unknown),
    ``maximum`` the most of the card. ``vram_mib`` is None where nothing tells.
    """

    id: str
    name: str
    vram_mib: MiB | None
    available: int | None
    maximum: int | None
    device_api: str
    parent: str
    backend: Backend


@frozen
class Slice:
    """A slice that exists. ``id`` is the mdev's uuid, else the function's PCI address.

    ``path`` is its folder in the device tree; ``holders`` the pids that have it open; ``group``
    its IOMMU group; ``vm`` whose it is by our journal, with ``ours`` False for everybody else's;
    ``owner`` who else is known to have made it ("mdevctl"), "" where nobody is.
    """

    backend: Backend
    id: str
    type: str | None
    parent: str
    path: str
    vm: VmName | None = None
    ours: bool = False
    holders: tuple[int, ...] = ()
    group: int | None = None
    vram_mib: MiB | None = None
    owner: str = ""


@frozen
class Function:
    """A PCI function that can be handed out: a VF of a card, or a companion of it.

    ``blockers`` say, one sentence each, which other members keep its group from being viable.
    ``vram_mib`` is a VF's own share of the card's video memory, None where nothing tells;
    ``pci_class`` six hex digits, "" where it was not told.
    """

    address: str
    driver: str | None
    group: int | None
    path: str
    blockers: tuple[str, ...] = ()
    vram_mib: MiB | None = None
    pci_class: str = ""


@frozen
class VfQuota:
    """What each VF of an Intel card may use; None leaves the driver's own number."""

    vram_mib: MiB | None = None
    exec_quantum_ms: int | None = None
    preempt_timeout_us: int | None = None


@frozen
class IommuGroup:
    """A group is viable when every member is unbound, a bridge, or on a vfio driver.

    ``blockers`` say, one sentence each, what is not. The device itself and its companions are no
    blockers: they are taken along. ``mates`` are other cards of the host, by address, without which
    no blocker would be left: who gets them all, gets the group; () where something else blocks.
    """

    number: int
    members: tuple[str, ...]
    blockers: tuple[str, ...] = ()
    mates: tuple[str, ...] = ()


@frozen
class Card:
    """One GPU (or accelerator, or other parent of mediated devices) of the host.

    ``address`` is a PCI address, or the device's name where it is no PCI. ``vendor``, ``device``
    and ``subsystem`` are four lower-case hex digits ("" for no PCI; ``subsystem`` is
    ``vendor:device``), ``pci_class`` six. ``subsystem_name`` tells boards with one chip apart.
    ``vfs_total`` is 0 for a card without SR-IOV; ``vf_type`` is what its driver calls its VFs, ""
    where it has no name for them. ``why`` says why a card is not ``usable``, or
    what is odd about one that is ("" when nothing is). ``boot_vga``: the firmware showed the host's
    start on it. ``companions`` go along with the whole card; ``staying`` are such functions of it
    that cannot, and their ``blockers`` say why. ``without_reset`` are the addresses of those that a
    VM would get whole and the kernel cannot reset. ``host_use`` says what of the host uses it, a
    sentence for each function, where that was looked for.
    """

    address: str
    path: str
    name: str
    vendor: str = ""
    device: str = ""
    subsystem: str = ""
    pci_class: str = ""
    driver: str | None = None
    numa_node: int | None = None
    local_cpus: CpuSet = CpuSet(frozenset())
    group: IommuGroup | None = None
    backends: tuple[Backend, ...] = ()
    vfs_total: int = 0
    vfs: tuple[Function, ...] = ()
    vf_type: str = ""
    companions: tuple[Function, ...] = ()
    reset_methods: tuple[str, ...] = ()
    boot_vga: bool = False
    in_use_by_host: str = ""
    types: tuple[SliceType, ...] = ()
    slices: tuple[Slice, ...] = ()
    rule: CapacityRule = CapacityRule.ANY
    usable: bool = True
    why: str = ""
    subsystem_name: str = ""
    staying: tuple[Function, ...] = ()
    without_reset: tuple[str, ...] = ()
    host_use: tuple[str, ...] = ()


@frozen
class NetworkVf:
    """A virtual function of a network card. ``vm`` is whose it is by our journal.

    ``obstacle`` says in a sentence why it can be handed to nobody, whoever asks ("": it can), and
    ``reserved`` why only to who names its address ("": to everybody).
    """

    address: str
    group: int | None
    vm: VmName | None = None
    obstacle: str = ""
    reserved: str = ""


@frozen
class NetworkCard:
    """A network card that can have virtual functions: for ``networks``, never for ``gpus``."""

    address: str
    vendor: str = ""
    device: str = ""
    driver: str | None = None
    numa_node: int | None = None
    vfs_total: int = 0
    vfs: tuple[NetworkVf, ...] = ()


@frozen
class NumaNodeSeen:
    """One NUMA node of an inventory: what ``plan --inventory`` needs of it."""

    id: int
    cpus: CpuSet
    memory_mib: MiB


@frozen
class Inventory:
    """Everything that choosing needs to know of a host, here or in a file of another host's.

    ``faults`` are entries of the device tree that could not be read, one sentence each. ``stale``:
    the kernel does not answer, and this is how it was before, or nothing where it never has.
    """

    hostname: str = ""
    kernel: str = ""
    cards: tuple[Card, ...] = ()
    iommu: bool = False
    numa: tuple[NumaNodeSeen, ...] = ()
    faults: tuple[str, ...] = field(default=())
    network_cards: tuple[NetworkCard, ...] = ()
    stale: bool = False
