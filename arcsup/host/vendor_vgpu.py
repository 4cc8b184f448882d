"""NVIDIA's vGPUs on virtual functions since kernel 6.8: a number written to a file of the VF.

There is no mediated device and no event; the files are all there is to see. Source: NVIDIA's
vgpu-vfio-pci driver as shipped with vGPU 17, and its Linux KVM user guide.
"""

from attrs import frozen

from arcsup.devices import Backend, SliceType
from arcsup.host.sysfs import Sysfs
from arcsup.host.vgpu_types import parse_creatable, vram_of_name


@frozen
class VendorVf:
    """One VF: what it offers, and what it has (``current``: a type's id, None for none).

    ``settled`` is False while the driver has not made its files.
    """

    types: tuple[SliceType, ...]
    current: str | None
    settled: bool


def observe_vendor_vf(sysfs: Sysfs, path: str, address: str) -> VendorVf | None:
    """Return a VF's vendor vGPU; None where the driver offers no such thing."""
    folder = f"{path}/nvidia"
    if not sysfs.is_folder(folder):
        return None
    creatable = sysfs.text(f"{folder}/creatable_vgpu_types")
    current = sysfs.count(f"{folder}/current_vgpu_type")
    # A VF has one vGPU at most, whatever it lists beside it.
    available = None if current is None else int(current == 0)
    types = tuple(
        SliceType(
            id=type_id_of(number),
            name=name or type_id_of(number),
            vram_mib=vram_of_name(name),
            available=available,
            maximum=None,
            device_api="vfio-pci",
            parent=address,
            backend=Backend.VENDOR_VFIO,
        )
        for number, name in sorted(parse_creatable(creatable or "").items())
    )
    return VendorVf(
        types,
        type_id_of(current) if current else None,
        settled=creatable is not None and current is not None,
    )


def type_id_of(number: int) -> str:
    """Return the id that arcsup gives a vendor type: as an mdev type of NVIDIA's is called."""
    return f"nvidia-{number}"
