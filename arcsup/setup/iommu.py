"""The IOMMU: what the firmware offers, what the kernel made of it, and the parameters to ask with.

Sources: Documentation/admin-guide/kernel-parameters.txt, Documentation/ABI/testing/
sysfs-kernel-iommu_groups and sysfs-class-iommu in the kernel tree.
"""

import re

from attrs import frozen

from arcsup.setup.host import Host

ACPI_TABLES = {"DMAR": "Intel VT-d", "IVRS": "AMD-Vi", "IORT": "Arm SMMU"}
"""The ACPI tables by which the firmware tells of an IOMMU."""

REFUSALS = frozenset({"iommu=off", "intel_iommu=off", "amd_iommu=off"})
"""Parameters that keep the kernel from using it."""

INTEL_PARAMETERS = ("intel_iommu=on", "iommu=pt")
"""Many kernels leave Intel's off until asked; pt: the host's own devices go untranslated."""


@frozen
class Iommu:
    """``groups`` is how many the kernel made; 0 means off. ``offered`` names the firmware's table.

    ``remaps_interrupts`` None means that the kernel does not say.
    """

    units: tuple[str, ...]
    groups: int
    offered: str
    remaps_interrupts: bool | None
    refusals: tuple[str, ...]


def observe_iommu(host: Host) -> Iommu:
    """Return what there is of an IOMMU."""
    tables = host.sysfs / "firmware/acpi/tables"
    offered = [name for name in ACPI_TABLES if (tables / name).exists()]
    interrupts = host.read("/proc/interrupts")
    return Iommu(
        units=_names(host, "class/iommu"),
        # The kernel's mdev groups exist without an IOMMU too, and carry a name.
        groups=sum(
            not (host.sysfs / "kernel/iommu_groups" / group / "name").exists()
            for group in _names(host, "kernel/iommu_groups")
        ),
        offered=offered[0] if offered else "",
        # The irq chips of remapped interrupts are called IR-IO-APIC and IR-PCI-MSI.
        remaps_interrupts=(
            bool(re.search(r"\bIR-(IO-APIC|PCI-MSI)", interrupts)) if interrupts else None
        ),
        refusals=tuple(word for word in host.command_line if word in REFUSALS),
    )


def find_parameters(host: Host) -> tuple[str, ...]:
    """Return what the kernel's command line needs for an IOMMU; () where nothing would help."""
    iommu = observe_iommu(host)
    if iommu.groups or iommu.offered != "DMAR" or "intel_iommu=on" in host.command_line:
        return ()
    return INTEL_PARAMETERS


def _names(host: Host, folder: str) -> tuple[str, ...]:
    try:
        return tuple(sorted(entry.name for entry in (host.sysfs / folder).iterdir()))
    except OSError:
        return ()
