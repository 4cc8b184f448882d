"""vgpu_sim plays the vendors' drivers as they were observed (tests/lab/README.md)."""

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab.inner import StartQemu
from tests.lab.kernel import (
    PARENTS,
    Uevents,
    create,
    driver_of,
    errno_of,
    open_device,
    read,
    remove,
    types_of,
    write,
)

Nvidia = Callable[..., Path]
VendorVfs = Callable[..., list[Path]]

UUIDS = [f"00000000-0000-4000-8000-{number:012}" for number in range(9)]


def type_file(parent: Path, type_: str, name: str) -> Path:
    return parent / "mdev_supported_types" / type_ / name


def fitting(parent: Path) -> set[str]:
    return {name for name, available in types_of(parent).items() if available}


# ---- mediated devices ----


def test_an_nvidia_card_describes_its_types_on_one_line(nvidia: Nvidia) -> None:
    card = nvidia(card="p4")
    assert driver_of(card) == "nvidia"
    assert (PARENTS / card.name).resolve() == card.resolve()
    assert read(type_file(card, "nvidia-64", "name")) == "GRID P4-2Q"
    assert read(type_file(card, "nvidia-64", "device_api")) == "vfio-pci"
    assert read(type_file(card, "nvidia-64", "description")) == (
        "num_heads=4, frl_config=60, framebuffer=2048M, max_resolution=7680x4320, max_instance=4"
    )


def test_a_new_card_is_announced_by_its_parent(nvidia: Nvidia, uevents: Uevents) -> None:
    card = nvidia()
    event = uevents.wait_for("change", card.name)
    assert event.properties["MDEV_STATE"] == "registered"


@pytest.mark.parametrize(
    ("rule", "still_fitting"),
    [
        ("same-type", {"nvidia-64"}),
        ("same-size", {"nvidia-64", "nvidia-68", "nvidia-157"}),
        (
            "mixed",
            {
                "nvidia-63",
                "nvidia-64",
                "nvidia-65",
                "nvidia-67",
                "nvidia-68",
                "nvidia-71",
                "nvidia-157",
            },
        ),
    ],
)
def test_the_first_vgpu_decides_what_fits_beside_it(
    nvidia: Nvidia, rule: str, still_fitting: set[str]
) -> None:
    card = nvidia(rule=rule)
    assert len(fitting(card)) == len(types_of(card)) == 8
    create(card, "nvidia-64", UUIDS[0])
    assert fitting(card) == still_fitting
    assert types_of(card)["nvidia-64"] == 3
    assert errno_of(type_file(card, "nvidia-66", "create"), UUIDS[1]) == errno.EIO
    remove(Path("/sys/bus/mdev/devices") / UUIDS[0])
    assert len(fitting(card)) == 8


def test_a_full_nvidia_card_is_eio(nvidia: Nvidia) -> None:
    card = nvidia(card="p4", rule="same-size")
    for number in range(4):
        create(card, "nvidia-64", UUIDS[number])
    assert fitting(card) == set()
    assert errno_of(type_file(card, "nvidia-64", "create"), UUIDS[4]) == errno.EIO


def test_a_gvtg_card_describes_its_types_on_five_lines(gvtg: Path) -> None:
    assert types_of(gvtg) == {"i915-GVTg_V5_4": 1, "i915-GVTg_V5_8": 2}
    assert type_file(gvtg, "i915-GVTg_V5_4", "description").read_text() == (
        "low_gm_size: 128MB\nhigh_gm_size: 512MB\nfence: 4\nresolution: 1920x1200\nweight: 4\n"
    )


def test_a_full_gvtg_card_is_enospc(gvtg: Path) -> None:
    create(gvtg, "i915-GVTg_V5_8", UUIDS[0])
    assert types_of(gvtg) == {"i915-GVTg_V5_4": 0, "i915-GVTg_V5_8": 1}
    assert errno_of(type_file(gvtg, "i915-GVTg_V5_4", "create"), UUIDS[1]) == errno.ENOSPC


def test_both_vendors_mdevs_open_in_one_qemu(
    nvidia: Nvidia, gvtg: Path, inner_qemu: StartQemu
) -> None:
    mdevs = [
        create(nvidia(), "nvidia-64", UUIDS[0]),
        create(gvtg, "i915-GVTg_V5_4", UUIDS[1]),
    ]
    qemu = inner_qemu([f"vfio-pci,sysfsdev={mdev}" for mdev in mdevs])
    assert qemu.classes().count(0x0302) == 2


def test_types_of_an_old_kernels_vfs_are_one_vgpu_each(vendor_vfs: VendorVfs) -> None:
    vfs = vendor_vfs(vf_interface="mdev")
    assert all(types_of(vf)["nvidia-1148"] == 1 for vf in vfs)
    create(vfs[0], "nvidia-1148", UUIDS[0])
    assert types_of(vfs[0])["nvidia-1148"] == 0
    assert fitting(vfs[1]) == {"nvidia-1146", "nvidia-1148", "nvidia-1158"}, "one card, one size"


# ---- NVIDIA's vendor-specific VFIO ----


def creatable(vf: Path) -> list[int]:
    header, *lines = read(vf / "nvidia/creatable_vgpu_types").splitlines()
    assert header == "ID    : vGPU Name"
    return [int(line.split(":")[0]) for line in lines]


def current(vf: Path) -> Path:
    return vf / "nvidia/current_vgpu_type"


def test_a_vf_lists_what_can_be_created(vendor_vfs: VendorVfs, pf: Path) -> None:
    vf = vendor_vfs()[0]
    assert driver_of(vf) == "nvidia"
    assert read(vf / "nvidia/creatable_vgpu_types").splitlines()[:2] == [
        "ID    : vGPU Name",
        "1145  : NVIDIA L40S-1B",
    ]
    assert read(current(vf)) == "0"
    assert not (pf / "nvidia").exists()
    assert not (vf / "mdev_supported_types").exists()


def test_writing_a_type_follows_the_table(vendor_vfs: VendorVfs) -> None:
    vf, other, *_ = vendor_vfs()
    assert errno_of(current(vf), "0") == errno.EPERM, "nothing to clear"
    assert errno_of(current(vf), "0x47c") == errno.EINVAL
    assert errno_of(current(vf), "L40S-2Q") == errno.EINVAL
    assert errno_of(current(vf), "9") == errno.EIO, "no such type"
    write(current(vf), "1148")
    assert read(current(vf)) == "1148"
    assert errno_of(current(vf), "1148") == errno.EPERM, "clear it first"
    assert creatable(vf) == []
    assert creatable(other) == [1146, 1148, 1158], "the same framebuffer size"
    assert errno_of(current(other), "1156") == errno.EIO
    write(current(other), "1158")
    write(current(vf), "0")
    write(current(other), "0")
    assert len(creatable(vf)) == 11


def test_a_full_card_lists_a_header_only(vendor_vfs: VendorVfs) -> None:
    vf, other, *_ = vendor_vfs()
    write(current(vf), "1156")
    assert creatable(other) == []
    write(current(vf), "0")


def test_opening_a_vf_without_a_type_is_enodev(vendor_vfs: VendorVfs) -> None:
    vf = vendor_vfs()[0]
    with pytest.raises(OSError, match="No such device") as caught, open_device(vf):
        pass
    assert caught.value.errno == errno.ENODEV


def test_a_type_in_use_cannot_be_cleared(vendor_vfs: VendorVfs) -> None:
    vf = vendor_vfs()[0]
    write(current(vf), "1148")
    with open_device(vf):
        assert errno_of(current(vf), "0") == errno.EPERM
    write(current(vf), "0")


def test_a_type_lingers_after_its_vm_if_told_so(vendor_vfs: VendorVfs) -> None:
    vf = vendor_vfs(linger_ms="60000")[0]
    write(current(vf), "1148")
    with open_device(vf):
        pass
    assert errno_of(current(vf), "0") == errno.EBUSY


def test_neither_write_sends_an_event(vendor_vfs: VendorVfs, uevents: Uevents) -> None:
    vf = vendor_vfs()[0]
    uevents.forget()
    write(current(vf), "1148")
    write(current(vf), "0")
    assert uevents.seen() == []


def test_a_wedged_vf_is_dead_until_sriov_is_cycled(vendor_vfs: VendorVfs, pf: Path) -> None:
    vf = vendor_vfs()[0]
    write(current(vf), "1148")
    write(vf / "vgpu_sim/wedge", "1")
    with pytest.raises(OSError, match="Input/output") as caught, open_device(vf):
        pass
    assert caught.value.errno == errno.EIO
    assert errno_of(current(vf), "0") == errno.EIO
    assert errno_of(vf / "vgpu_sim/wedge", "0") == errno.EPERM
    write(pf / "sriov_numvfs", "0")
    vf = vendor_vfs()[0]
    write(current(vf), "1148")
    with open_device(vf):
        pass


def test_a_vf_taken_from_its_driver_is_wedged(vendor_vfs: VendorVfs) -> None:
    vf = vendor_vfs()[0]
    write(vf / "driver/unbind", vf.name)
    write(Path("/sys/bus/pci/drivers_probe"), vf.name)
    assert driver_of(vf) == "nvidia"
    assert read(vf / "vgpu_sim/wedge") == "1"


def test_a_vf_with_a_type_opens_in_qemu_and_without_does_not(
    vendor_vfs: VendorVfs, inner_qemu: StartQemu
) -> None:
    vf, other, *_ = vendor_vfs()
    write(current(vf), "1148")
    qemu = inner_qemu([f"vfio-pci,sysfsdev={vf}"])
    assert 0x0108 in qemu.classes()
    assert "No such device" in inner_qemu([f"vfio-pci,sysfsdev={other}"]).error()
