"""Builds the tree of a host below a directory: good in every way, until a test spoils it."""

import os
from pathlib import Path

from arcsup.places import Places
from arcsup.setup.host import UNLIMITED, Host, rebase

RELEASE = "6.1.0-test"

INTEL = "processor\t: 0\nvendor_id\t: GenuineIntel\nflags\t\t: fpu vme vmx ssse3\n"
AMD = "processor\t: 0\nvendor_id\t: AuthenticAMD\nflags\t\t: fpu vme svm ssse3\n"

INTERRUPTS = """           CPU0       CPU1
  9:          0          0  IR-IO-APIC    9-fasteoi   acpi
120:          0          0  DMAR-MSI    0-edge      dmar0
121:       1234          0  IR-PCI-MSI-0000:00:1f.2    0-edge      ahci[0000:00:1f.2]
"""

MODULES_DEP = """kernel/drivers/vfio/mdev/mdev.ko.xz:
kernel/drivers/vfio/pci/vfio-pci.ko: kernel/drivers/vfio/vfio.ko
kernel/drivers/vfio/vfio.ko:
kernel/drivers/vfio/vfio_iommu_type1.ko.zst: kernel/drivers/vfio/vfio.ko
"""


def write(root: Path, path: str, text: str = "", mode: int = 0o644) -> Path:
    """Write a file of the tree, its folders too."""
    file = root / path.lstrip("/")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    file.chmod(mode)
    return file


def host_of(root: Path, memlock: int = UNLIMITED) -> Host:
    """Return the host below ``root``, owned by whoever runs the tests."""
    places = rebase(Places.default(system=True), root)
    return Host(places, root=root, uid=os.geteuid(), memlock=memlock)


def create_host(root: Path) -> Host:
    """Make a host on which everything is as it should be."""
    write(root, "/etc/os-release", 'ID=debian\nVERSION_ID="12"\n')
    write(root, "/proc/cpuinfo", INTEL)
    write(root, "/proc/interrupts", INTERRUPTS)
    write(root, "/proc/cmdline", "BOOT_IMAGE=/vmlinuz root=/dev/sda1 ro quiet intel_iommu=on\n")
    write(root, "/proc/sys/kernel/osrelease", f"{RELEASE}\n")
    write(root, "/proc/1/comm", "systemd\n")
    write(root, "/dev/kvm")
    write(root, "/dev/iommu")
    write(root, "/proc/devices", "Character devices:\n 10 misc\n235 vfio-dev\n236 vfio\n")
    write(root, f"/lib/modules/{RELEASE}/modules.dep", MODULES_DEP)
    write(root, f"/lib/modules/{RELEASE}/modules.builtin", "kernel/drivers/iommu/iommufd.ko\n")
    for module in ("vfio", "vfio_pci", "vfio_iommu_type1", "mdev"):
        (root / "sys/module" / module).mkdir(parents=True)
    for group in range(3):
        (root / f"sys/kernel/iommu_groups/{group}/devices").mkdir(parents=True)
    (root / "sys/class/iommu/dmar0").mkdir(parents=True)
    write(root, "/sys/firmware/acpi/tables/DMAR", "DMAR")
    pool = "/sys/kernel/mm/hugepages/hugepages-2048kB"
    write(root, f"{pool}/nr_hugepages", "512\n")
    write(root, f"{pool}/free_hugepages", "500\n")
    for folder in ("etc/arcsup/vms", "var/lib/arcsup/images", "var/log/arcsup", "run/arcsup"):
        (root / folder).mkdir(parents=True)
    return host_of(root)


def read_tree(root: Path) -> dict[str, tuple[int, str]]:
    """Return everything below ``root``: mode, and what a file holds or a link points to."""
    found: dict[str, tuple[int, str]] = {}
    for path in sorted(root.rglob("*")):
        if path.is_symlink():
            content = f"-> {path.readlink()}"
        else:
            content = path.read_bytes().hex() if path.is_file() else ""
        found[str(path.relative_to(root))] = (path.lstat().st_mode, content)
    return found
