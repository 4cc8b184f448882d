"""The programs: QEMU and what it was built with, firmware, TPM, shared folders."""

import os
from collections.abc import Iterator
from pathlib import Path

import trio

from arcsup.errors import ArcsupError, Terminal
from arcsup.model import Firmware
from arcsup.setup.findings import Check, Finding, error, info, ok, warning
from arcsup.setup.host import Host
from arcsup.vm import firmware, tpm
from arcsup.vm.capabilities import INSTALL_HINT, QEMU_BINARIES, Capabilities, ask_binary
from arcsup.vm.shares import VIRTIOFSD_BINARIES, find_virtiofsd

OLDEST = (7, 2, 0)
"""The oldest QEMU that arcsup is made for: Debian 12's."""


def find_host_qemu(host: Host) -> Path | None:
    """Return the host's QEMU, None when it has none."""
    candidates = host.paths(QEMU_BINARIES)
    return next((path for path in candidates if os.access(path, os.X_OK)), None)


def check_qemu(host: Host) -> Iterator[Finding]:
    """Tell QEMU's version, and which of the parts are there that some builds leave out."""
    binary = find_host_qemu(host)
    if binary is None:
        yield error("no QEMU is installed", "it is what runs VMs", INSTALL_HINT)
        return
    try:
        capabilities = trio.run(ask_binary, binary)
    except ArcsupError as fault:
        yield error(fault.message, "it is what runs VMs", fault.hint)
        return
    if capabilities.version < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        what = f"QEMU {capabilities.version_text} is older than {oldest}"
        yield warning(what, "some options of VM files do not work", "use a later distribution")
    else:
        yield ok(f"QEMU {capabilities.version_text} ({host.tell(binary)})")
    yield from _check_features(capabilities)


def _check_features(capabilities: Capabilities) -> Iterator[Finding]:
    features = {
        "SPICE": (capabilities.spice, "display: spice", "qemu-system-modules-spice"),
        "GTK": ("gtk" in capabilities.displays, "display: gtk", "qemu-system-gui"),
        "VirGL": (
            "virtio-vga-gl" in capabilities.devices,
            "gpus: kind virtio with gl",
            "qemu-system-modules-opengl",
        ),
        "virtiofs": ("vhost-user-fs-pci" in capabilities.devices, "fast shares", "a later QEMU"),
        "VFIO": ("vfio-pci" in capabilities.devices, "all host GPUs", "another build of QEMU"),
        "iommufd": ("iommufd" in capabilities.objects, "devices by iommufd", "QEMU 9.0 or later"),
    }
    present = [name for name, (has, _, _) in features.items() if has]
    if present:
        yield ok(f"QEMU has {', '.join(present)}")
    for name, (has, purpose, package) in features.items():
        if not has:
            yield info(f"QEMU has no {name}", f"needed for {purpose}", f"install {package}")


def check_firmware(host: Host) -> Iterator[Finding]:
    """Tell whether there is UEFI firmware, with and without Secure Boot."""
    folders = host.paths(firmware.DESCRIPTOR_FOLDERS)
    for kind, name in ((Firmware.UEFI, "UEFI"), (Firmware.UEFI_SECURE, "UEFI with Secure Boot")):
        try:
            found = (
                firmware.find_firmware(kind)
                if host.is_this
                else firmware.find_firmware(kind, folders, ())
            )
        except Terminal as fault:
            yield warning(f"{name}: {fault.message}", f"needed for firmware: {kind}", fault.hint)
        else:
            yield ok(f"{name}: {found.code if found else 'built in'}")


def check_swtpm(host: Host) -> Iterator[Finding]:
    """Tell whether VMs can have a TPM."""
    found = host.find_program("swtpm")
    if found is None:
        yield warning("no swtpm is installed", "needed for tpm: true", tpm.INSTALL_HINT)
    else:
        yield ok(f"TPM: {host.tell(found)}")


def check_virtiofsd(host: Host) -> Iterator[Finding]:
    """Tell whether shares are fast."""
    binaries = host.paths(VIRTIOFSD_BINARIES)

    async def find() -> Finding:
        found = await find_virtiofsd(binaries, root=host.uid == 0)
        if found is not None:
            return ok(f"shares: {host.tell(found.binary)} ({found.flavour})")
        why = "shares use 9p then, which is slower and not there in Windows"
        return info("no virtiofsd can run here", why, "install virtiofsd (Debian 13, Ubuntu 24.04)")

    yield trio.run(find)


CHECKS = (
    Check("qemu", "QEMU", check_qemu),
    Check("firmware", "UEFI firmware", check_firmware),
    Check("swtpm", "TPM", check_swtpm),
    Check("virtiofsd", "Shared folders", check_virtiofsd),
)
