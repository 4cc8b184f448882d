"""The kernel: IOMMU, its command line, its modules, memory for guests."""

import os
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path

from arcsup.host.vfio_nodes import DRIVERS, IOMMU, lists_cdevs
from arcsup.setup.findings import Check, Finding, info, ok, warning
from arcsup.setup.host import UNLIMITED, Host
from arcsup.setup.iommu import ACPI_TABLES, find_parameters, observe_iommu

NO_DEVICES = "without it no PCI device or virtual function can be given to a VM"

WANTED_MODULES = {
    "vfio": "gives devices to VMs",
    "vfio_iommu_type1": "keeps devices to their VM's memory",
    "vfio_pci": "gives PCI devices and virtual functions to VMs",
    "mdev": "divides GPUs into mediated devices",
}
"""Module names as /sys/module has them."""

LEAST_MEMLOCK = 2 * 1024**3
"""Bytes: a small guest's memory, all of which VFIO pins, and 1 GiB beside it."""


class ModuleState(StrEnum):
    """Where a module is: LOADED includes those that are part of the kernel."""

    LOADED = "loaded"
    LOADABLE = "loadable"
    MISSING = "missing"


def find_module(host: Host, name: str) -> ModuleState:
    """Return where a module is; ``name`` is written with underscores."""
    if (host.sysfs / "module" / name).exists() or _is_listed(host, name, "modules.builtin"):
        return ModuleState.LOADED
    return ModuleState.LOADABLE if is_loadable(host, name) else ModuleState.MISSING


def is_loadable(host: Host, name: str) -> bool:
    """Tell whether the kernel has this as a module of its own, loaded or not."""
    return _is_listed(host, name, "modules.dep")


def _is_listed(host: Host, name: str, index: str) -> bool:
    # modules.dep and modules.builtin (modprobe(8)) list files, some of them compressed.
    lines = host.read(f"/lib/modules/{host.release}/{index}").splitlines()
    files = (line.partition(":")[0].rpartition("/")[2] for line in lines)
    return name in {file.partition(".")[0].replace("-", "_") for file in files}


def check_iommu(host: Host) -> Iterator[Finding]:
    """Tell whether the IOMMU is on, and if not, who keeps it off."""
    iommu = observe_iommu(host)
    if iommu.groups:
        yield ok(f"the IOMMU is on: {len(iommu.units)} units, {iommu.groups} groups")
    elif iommu.refusals:
        do = f"take {' '.join(iommu.refusals)} from the kernel's command line and reboot"
        yield warning(f"the IOMMU was turned off by {' '.join(iommu.refusals)}", NO_DEVICES, do)
    elif parameters := find_parameters(host):
        do = f"run `arcsup setup`, which adds {' '.join(parameters)} to the kernel's command line"
        yield warning("the IOMMU is off, and the firmware has one", NO_DEVICES, do)
    elif iommu.offered:
        do = "look into `dmesg` for DMAR, AMD-Vi or SMMU"
        what = f"the firmware has {ACPI_TABLES[iommu.offered]}, but the kernel does not use it"
        yield warning(what, NO_DEVICES, do)
    else:
        do = "enable VT-d, AMD-Vi or IOMMU in the firmware's setup, if it has that"
        yield warning("the firmware offers no IOMMU", NO_DEVICES, do)


def check_interrupt_remapping(host: Host) -> Iterator[Finding]:
    """Tell whether a device's interrupts can be kept to their VM."""
    iommu = observe_iommu(host)
    unsafe = host.sysfs / "module/vfio_iommu_type1/parameters/allow_unsafe_interrupts"
    if iommu.remaps_interrupts:
        yield ok("interrupts are remapped")
    elif not iommu.groups or iommu.remaps_interrupts is None:
        yield info("interrupt remapping matters once the IOMMU is on")
    elif unsafe.is_file() and unsafe.read_text().strip() == "Y":
        yield warning(
            "interrupts are not remapped, and allow_unsafe_interrupts is on",
            "a guest with a device can send the host any interrupt",
            "give devices only to guests that you trust",
        )
    else:
        yield warning(
            "interrupts are not remapped",
            "VFIO refuses devices then (EPERM)",
            "enable interrupt remapping (x2APIC) in the firmware's setup",
        )


def check_command_line(host: Host) -> Iterator[Finding]:
    """Tell the parameters that matter to VMs with devices."""
    words = host.command_line
    told = ("iommu", "intel_iommu", "amd_iommu", "vfio", "pci", "i915", "xe", "default_hugepagesz")
    shown = [word for word in words if word.split("=")[0].split(".")[0] in told]
    override = [word for word in words if word.startswith("pcie_acs_override")]
    if override:
        yield warning(
            f"{override[0]} is on the kernel's command line",
            "devices that can reach each other's memory look as if they could not",
            "take it away, and put cards into slots that have groups of their own",
        )
    if "nomodule" in words:
        do = "take nomodule from the command line, or use a kernel that has them built in"
        yield warning("the kernel loads no modules (nomodule)", "VFIO may be one", do)
    if not override and "nomodule" not in words:
        yield ok(f"kernel {host.release or 'unknown'}: {' '.join(shown) or 'nothing special'}")


def check_modules(host: Host) -> Iterator[Finding]:
    """Tell which of the modules for devices are there."""
    for module, purpose in WANTED_MODULES.items():
        state = find_module(host, module)
        if state is ModuleState.LOADED:
            yield ok(f"module {module} is loaded")
        elif state is ModuleState.LOADABLE:
            do = f"as root: modprobe {module}; `arcsup setup` has it loaded at boot"
            yield info(f"module {module} is not loaded", f"it {purpose}", do)
        else:
            do = "install the kernel's package with all modules (linux-modules-extra on Ubuntu)"
            yield warning(f"kernel {host.release} has no module {module}", f"it {purpose}", do)


def check_iommufd(host: Host) -> Iterator[Finding]:
    """Tell whether devices go to VMs by nodes of their own, or with their whole IOMMU group."""
    by_groups = "devices go to VMs by their IOMMU groups, which does as well"
    node = host.path(IOMMU)
    if not node.exists():
        yield info("this kernel has no iommufd", by_groups, "it is CONFIG_IOMMUFD of later kernels")
    elif not lists_cdevs(host.read(DRIVERS)):
        do = "modprobe vfio, or take a kernel that has CONFIG_VFIO_DEVICE_CDEV too"
        yield info("VFIO gives devices no nodes of their own for iommufd", by_groups, do)
    elif not os.access(node, os.R_OK | os.W_OK):
        do = f"as root: chgrp USERS_GROUP {host.tell(node)}, and the nodes in /dev/vfio/devices too"
        yield info(f"{host.tell(node)} cannot be opened by this user", by_groups, do)
    else:
        yield ok("the kernel gives devices by iommufd, to every QEMU that has it")


def check_hugepages(host: Host) -> Iterator[Finding]:
    """Tell what there is for VMs with ``hugepages``."""
    found = []
    for pool in sorted((host.sysfs / "kernel/mm/hugepages").glob("hugepages-*kB")):
        total, free = (_number(pool / name) for name in ("nr_hugepages", "free_hugepages"))
        if total:
            size = int(pool.name.removeprefix("hugepages-").removesuffix("kB")) // 1024
            found.append(f"{free} of {total} pages of {size} MiB free")
    if found:
        yield ok("huge pages: " + ", ".join(found))
    else:
        do = "as root: sysctl vm.nr_hugepages=NUMBER (2 MiB each)"
        yield info("no huge pages are set aside", "VMs with `hugepages` need them", do)


def _number(file: Path) -> int:
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return 0


def check_memlock(host: Host) -> Iterator[Finding]:
    """Tell whether VFIO could pin a guest's memory."""
    if host.uid == 0:
        yield ok("root may lock any amount of memory")
    elif host.memlock == UNLIMITED or host.memlock >= LEAST_MEMLOCK:
        limit = "any amount" if host.memlock == UNLIMITED else f"{host.memlock // 1024**2} MiB"
        yield ok(f"this user may lock {limit} of memory")
    else:
        yield warning(
            f"this user may lock only {host.memlock // 1024} KiB of memory",
            "a VM with a device has all of its memory locked",
            "as root, in /etc/security/limits.d/arcsup.conf: USER - memlock unlimited",
        )


CHECKS = (
    Check("iommu", "IOMMU", check_iommu),
    Check("interrupt-remapping", "Interrupt remapping", check_interrupt_remapping),
    Check("command-line", "The kernel's command line", check_command_line),
    Check("modules", "Kernel modules", check_modules),
    Check("iommufd", "Devices by iommufd", check_iommufd),
    Check("hugepages", "Huge pages", check_hugepages),
    Check("memlock", "Locked memory", check_memlock),
)
