"""One card from the device tree: what it is, what it offers, and what is already cut from it."""

import re
from collections.abc import Iterable, Mapping, Sequence

from attrs import define, evolve, field, frozen

from arcsup.devices import Backend, Card, Function, IommuGroup, Slice, SliceType
from arcsup.host.display import find_console, is_boot_display, observe_display
from arcsup.host.gim import GimVf, observe_gim_vfs
from arcsup.host.iommu import IommuGroups, is_vfio_driver
from arcsup.host.mdev_types import Mdev, Offer, observe_mdevs, observe_offer
from arcsup.host.surroundings import Surroundings
from arcsup.host.sysfs import Sysfs
from arcsup.host.usability import judge
from arcsup.host.vendor_vgpu import VendorVf, observe_vendor_vf
from arcsup.host.vgpu_types import find_rule
from arcsup.model import MiB

PCI = "bus/pci/devices"

_GPU_CLASSES = ("03", "12")
"""Display controllers and processing accelerators (PCI Code and ID Assignment, base classes)."""

_COMPANION_CLASSES = ("0403", "0c03", "0c80")
"""What a graphics card has beside its picture: HD audio, USB, the USB-C controller."""

_VIRTFN = re.compile(r"virtfn(\d{1,5})")


@define(eq=False)
class Look:
    """One look at the device tree, and what its cards share."""

    sysfs: Sysfs
    around: Surroundings
    groups: IommuGroups = field(init=False)
    console: str | None = field(init=False)
    mdevs: dict[str, list[Mdev]] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.groups = IommuGroups(self.sysfs)
        self.console = find_console(self.sysfs)
        self.mdevs = {}
        for mdev in observe_mdevs(self.sysfs):
            self.mdevs.setdefault(mdev.parent, []).append(mdev)


@frozen
class _Parent:
    """A device that slices can be made on: the card itself, a VF, or no PCI at all."""

    address: str
    path: str
    real: str
    offer: Offer
    vendor: VendorVf | None

    @property
    def types(self) -> tuple[SliceType, ...]:
        return self.offer.types + (self.vendor.types if self.vendor else ())


def is_gpu_class(pci_class: str) -> bool:
    """Tell whether six hexadecimal digits are the class of a GPU or an accelerator."""
    return pci_class.startswith(_GPU_CLASSES)


def offers_vgpus(sysfs: Sysfs, path: str) -> bool:
    """Tell whether a function has mediated device types or NVIDIA's vendor files."""
    folders = (f"{path}/mdev_supported_types", f"{path}/nvidia")
    return any(sysfs.is_folder(folder) for folder in folders)


def observe_device(look: Look, real: str) -> Card:
    """Return the card of a parent that is no PCI function; ``real`` is its resolved path."""
    name = real.rpartition("/")[2]
    faults_before = len(look.sysfs.faults)
    parent = _observe_parent(look, real, name)
    slices = tuple(_observe_slices(look, [parent], "", name, {}))
    card = Card(
        address=name,
        path=look.sysfs.full(real),
        name=name,
        driver=look.sysfs.link_name(f"{real}/driver"),
        backends=(Backend.MDEV,),
        types=parent.types,
        slices=slices,
        rule=find_rule(parent.types, slices, ""),
    )
    return judge(card, parent.offer.unsettled, look.sysfs.faults[faults_before:])


def observe_function(look: Look, address: str) -> Card:
    """Return the card of a PCI physical function, with what its virtual functions offer."""
    sysfs, path = look.sysfs, f"{PCI}/{address}"
    faults_before = len(sysfs.faults)
    vf_addresses = _find_vfs(sysfs, path)
    gim = observe_gim_vfs(sysfs, path)
    shares = _observe_quotas(sysfs, path) | {vf.address: vf.vram_mib for vf in gim}
    parents = [_observe_parent(look, path, address)]
    parents += [_observe_parent(look, f"{PCI}/{vf}", vf) for vf in vf_addresses]
    types = tuple(kind for parent in parents for kind in parent.types)
    companions, staying = _find_companions(look, address)
    along = {address, *(companion.address for companion in companions)}
    group = _observe_group(look, path, along)
    ids = _Ids.observe(sysfs, path)
    driver = sysfs.link_name(f"{path}/driver")
    slices = tuple(_observe_slices(look, parents, driver or "", ids.model, shares))
    total = sysfs.count(f"{path}/sriov_totalvfs") or 0
    pci_class = sysfs.hex_digits(f"{path}/class", 6)
    backends = _find_backends(parents, driver, total, is_gpu=is_gpu_class(pci_class))
    going_whole = [*sorted(along)] if Backend.PASSTHROUGH in backends else []
    going_whole += vf_addresses if Backend.SRIOV in backends else []
    card = Card(
        address=address,
        path=sysfs.full(path),
        name=ids.name(look.around),
        subsystem_name=look.around.ids.subsystem(ids.vendor, ids.device, ids.subsystem),
        vendor=ids.vendor,
        device=ids.device,
        subsystem=ids.subsystem,
        pci_class=pci_class,
        driver=driver,
        numa_node=observe_numa_node(sysfs, path),
        local_cpus=sysfs.cpus(f"{path}/local_cpulist"),
        group=group,
        backends=backends,
        vfs_total=total,
        vfs=tuple(_observe_vf(look, vf, shares.get(vf)) for vf in vf_addresses),
        vf_type=_common_type(gim),
        companions=tuple(companions),
        staying=tuple(staying),
        without_reset=tuple(it for it in going_whole if not _can_be_reset(sysfs, it)),
        reset_methods=tuple((sysfs.text(f"{path}/reset_method") or "").split()),
        boot_vga=is_boot_display(sysfs, path),
        in_use_by_host=observe_display(sysfs, path, parents[0].real, look.console),
        types=types,
        slices=slices,
        rule=find_rule(types, slices, sysfs.text(f"{path}/driver/module/version") or ""),
    )
    unsettled = [name for parent in parents for name in _unsettled(parent)]
    return judge(card, unsettled, sysfs.faults[faults_before:])


@frozen
class _Ids:
    vendor: str
    device: str
    subsystem: str

    @classmethod
    def observe(cls, sysfs: Sysfs, path: str) -> "_Ids":
        vendor = sysfs.hex_digits(f"{path}/subsystem_vendor", 4)
        device = sysfs.hex_digits(f"{path}/subsystem_device", 4)
        return cls(
            sysfs.hex_digits(f"{path}/vendor", 4),
            sysfs.hex_digits(f"{path}/device", 4),
            f"{vendor}:{device}" if vendor and device else "",
        )

    @property
    def model(self) -> str:
        return f"{self.vendor}:{self.device} {self.subsystem}"

    def name(self, around: Surroundings) -> str:
        vendor = around.ids.vendor(self.vendor)
        device = around.ids.device(self.vendor, self.device)
        words = [vendor or self.vendor, device or f"device {self.device or 'unknown'}"]
        return " ".join(word for word in words if word)


def _observe_parent(look: Look, path: str, address: str) -> _Parent:
    return _Parent(
        address=address,
        path=path,
        real=look.sysfs.real(path) or path,
        offer=observe_offer(look.sysfs, path, address),
        vendor=observe_vendor_vf(look.sysfs, path, address),
    )


def _unsettled(parent: _Parent) -> Iterable[str]:
    yield from parent.offer.unsettled
    if parent.vendor and not parent.vendor.settled:
        yield f"the vGPU files of {parent.address}"


def _find_vfs(sysfs: Sysfs, path: str) -> list[str]:
    """Return the VFs by their links, in order.

    ``sriov_numvfs`` is not read: its read waits for the lock that a stuck write to it holds.
    """
    found = [(int(m[1]), m[0]) for m in map(_VIRTFN.fullmatch, sysfs.names(path)) if m]
    vfs = []
    for _, name in sorted(found):
        address = sysfs.link_name(f"{path}/{name}")
        if address is not None and sysfs.is_folder(f"{PCI}/{address}"):
            vfs.append(address)
        elif address is not None:
            sysfs.fault(f"{path}/{name}", f"leads to {address}, which is not there")
    return vfs


def _common_type(vfs: Iterable[GimVf]) -> str:
    types = {vf.type for vf in vfs}
    return types.pop() if len(types) == 1 else ""


def _observe_quotas(sysfs: Sysfs, path: str) -> dict[str, MiB | None]:
    """Return the video memory of VFs by address, where Intel's xe tells it.

    Source: Documentation/ABI/testing/sysfs-driver-intel-xe-sriov, vram_quota in bytes; its VFs are
    numbered from 1.
    """
    shares: dict[str, MiB | None] = {}
    if not sysfs.is_folder(f"{path}/sriov_admin"):
        return shares
    for match in map(_VIRTFN.fullmatch, sysfs.names(path)):
        address = sysfs.link_name(f"{path}/{match[0]}") if match else None
        if match and address:
            quota = f"{path}/sriov_admin/vf{int(match[1]) + 1}/profile/vram_quota"
            if sysfs.has(quota) and (size := sysfs.count(quota)):
                shares[address] = MiB(size >> 20)
    return shares


def _observe_vf(look: Look, address: str, vram_mib: MiB | None) -> Function:
    group = look.groups.number_of(f"{PCI}/{address}")
    return evolve(_observe_other(look, address, group), vram_mib=vram_mib)


def _observe_other(look: Look, address: str, group: int | None) -> Function:
    path = f"{PCI}/{address}"
    return Function(
        address=address,
        driver=look.sysfs.link_name(f"{path}/driver"),
        group=group,
        path=look.sysfs.full(path),
        blockers=look.groups.blockers(group, {address}),
        pci_class=look.sysfs.hex_digits(f"{path}/class", 6),
    )


def _find_companions(look: Look, address: str) -> tuple[list[Function], list[Function]]:
    """Return the other functions of the card that go with it, and those that would but cannot.

    What is in another IOMMU group goes along, too, where that holds nothing else: a reset of the
    card's slot or bus resets it as well, under whoever has it then. Not what has another vendor:
    a processor's graphics has audio and USB of the host in the same slot.
    """
    slot = address.rpartition(".")[0]
    path = f"{PCI}/{address}"
    group, vendor = look.groups.number_of(path), look.sysfs.hex_digits(f"{path}/vendor", 4)
    going: list[Function] = []
    staying: list[Function] = []
    for number in range(8):
        path = f"{PCI}/{slot}.{number}"
        if path.endswith(address) or not _is_companion(look.sysfs, path):
            continue
        own = look.groups.number_of(path)
        found = _observe_other(look, f"{slot}.{number}", own)
        if own == group:
            going.append(evolve(found, blockers=()))
        elif look.sysfs.hex_digits(f"{path}/vendor", 4) == vendor:
            blockers = _why_not_along(look, found, slot)
            (staying if blockers else going).append(evolve(found, blockers=blockers))
    return going, staying


def _is_companion(sysfs: Sysfs, path: str) -> bool:
    if not sysfs.is_folder(path) or sysfs.has(f"{path}/physfn"):
        return False
    return sysfs.hex_digits(f"{path}/class", 6).startswith(_COMPANION_CLASSES)


def _why_not_along(look: Look, function: Function, slot: str) -> tuple[str, ...]:
    """Return why a function in a group of its own cannot go along with its card."""
    if function.group is None:
        return ("it has no IOMMU group",)
    if function.blockers:
        return tuple(f"IOMMU group {function.group}: {why}" for why in function.blockers)
    members = look.groups.members(function.group)
    others = [it for it in members if not it.startswith(f"{slot}.")]
    others = [it for it in others if not look.groups.is_bridge(function.group, it)]
    if not others:
        return ()
    return (f"IOMMU group {function.group} has {', '.join(others)} beside it",)


def _can_be_reset(sysfs: Sysfs, address: str) -> bool:
    """Tell whether the kernel has a way to reset a function between two guests.

    An empty ``reset_method`` is one that the operator, or a quirk, has emptied. Before Linux 5.15
    there was only ``reset``, as long as there was a way (Documentation/ABI/testing/sysfs-bus-pci).
    """
    methods = sysfs.text(f"{PCI}/{address}/reset_method")
    return sysfs.has(f"{PCI}/{address}/reset") if methods is None else bool(methods)


def _observe_group(look: Look, path: str, along: set[str]) -> IommuGroup | None:
    number = look.groups.number_of(path)
    if number is None:
        return None
    group = look.groups.observe(number, along)
    return evolve(group, mates=_find_mates(look, group, along))


def _find_mates(look: Look, group: IommuGroup, along: set[str]) -> tuple[str, ...]:
    """Return the cards to whom all that blocks a group belongs; () where anything is none's."""
    blocking = look.groups.blocking(group.number, along)
    if len(blocking) < len(group.blockers):
        return ()  # Something is wrong with the group itself.
    cards = {_card_of(look, member, group) for member in blocking}
    mates = sorted(card for card in cards if card is not None)
    return tuple(mates) if len(mates) == len(cards) else ()


def _card_of(look: Look, member: str, group: IommuGroup) -> str | None:
    """Return the card that takes a member of a group along, or that it is itself."""
    if _is_card(look.sysfs, member):
        return member
    if not _is_companion(look.sysfs, f"{PCI}/{member}"):
        return None
    slot = member.rpartition(".")[0]
    beside = (f"{slot}.{number}" for number in range(8))
    cards = (it for it in beside if it in group.members and _is_card(look.sysfs, it))
    return next(cards, None)


def _is_card(sysfs: Sysfs, address: str) -> bool:
    path = f"{PCI}/{address}"
    return is_gpu_class(sysfs.hex_digits(f"{path}/class", 6)) and not sysfs.has(f"{path}/physfn")


def observe_numa_node(sysfs: Sysfs, path: str) -> int | None:
    """Return the NUMA node of a PCI function; None where the host has one or does not tell."""
    if sysfs.text(f"{path}/numa_node") == "-1":
        return None
    return sysfs.count(f"{path}/numa_node")


def _find_backends(
    parents: Sequence[_Parent], driver: str | None, vfs_total: int, *, is_gpu: bool
) -> tuple[Backend, ...]:
    found = []
    if any(parent.offer.types or parent.offer.unsettled for parent in parents):
        found.append(Backend.MDEV)
    if any(parent.vendor for parent in parents):
        found.append(Backend.VENDOR_VFIO)
    # A VF of NVIDIA's is nothing to a guest until a vGPU was made on it.
    if vfs_total and not found and driver != "nvidia":
        found.append(Backend.SRIOV)
    if is_gpu:
        found.append(Backend.PASSTHROUGH)
    return tuple(found)


def _observe_slices(
    look: Look,
    parents: Sequence[_Parent],
    driver: str,
    model: str,
    shares: Mapping[str, MiB | None],
) -> Iterable[Slice]:
    sizes = look.around.sizes
    for parent in parents:
        for kind in parent.types:
            if kind.vram_mib is not None:
                sizes[model, kind.id] = kind.vram_mib
    for number, parent in enumerate(parents):
        for mdev in look.mdevs.get(parent.real, ()):
            size = sizes.get((model, mdev.type)) if mdev.type else None
            yield _slice(look, Backend.MDEV, mdev.uuid, mdev.path, parent, mdev.type, size)
        current = parent.vendor.current if parent.vendor else None
        if current is not None:
            size, backend = sizes.get((model, current)), Backend.VENDOR_VFIO
            yield _slice(look, backend, parent.address, parent.path, parent, current, size)
        elif parent.vendor is None and parent.path.startswith(PCI):
            bound = driver if number == 0 else look.sysfs.link_name(f"{parent.path}/driver")
            if is_vfio_driver(look.sysfs, parent.path, bound or None):
                backend = Backend.SRIOV if number else Backend.PASSTHROUGH
                size = shares.get(parent.address)
                yield _slice(look, backend, parent.address, parent.path, parent, None, size)


def _slice(
    look: Look,
    backend: Backend,
    slice_id: str,
    path: str,
    parent: _Parent,
    slice_type: str | None,
    vram_mib: MiB | None,
) -> Slice:
    around, group = look.around, look.groups.number_of(path)
    devices = look.sysfs.names(f"{path}/vfio-dev")
    vm = around.owners.get(slice_id)
    foreign = "mdevctl" if vm is None and slice_id in around.mdevctl else ""
    return Slice(
        backend=backend,
        id=slice_id,
        type=slice_type,
        parent=parent.address,
        path=look.sysfs.full(path),
        vm=vm,
        ours=vm is not None,
        holders=around.holders.of(group, devices[0] if devices else None),
        group=group,
        vram_mib=vram_mib,
        owner=foreign,
    )
