"""A vendor's driver package that the user has put into STATE/vendor, installed by its own means.

arcsup ships, downloads and patches no vendor driver. Sources: `--advanced-options` of NVIDIA's
installer (--silent, --dkms), apt-get(8), dnf(8), pacman(8).
"""

import re
import stat
from collections.abc import Iterator
from pathlib import Path

from attrs import frozen

from arcsup.setup.actions import Action, Command, InstallPackages, RunCommand
from arcsup.setup.checks.kernel import ModuleState, find_module
from arcsup.setup.commands import ask_command
from arcsup.setup.host import Host
from arcsup.setup.packages import find_manager, list_packages
from arcsup.setup.secure_boot import plan_signing
from arcsup.setup.steps import SetupPlan

_RUN = re.compile(r"NVIDIA-Linux-.*vgpu-kvm.*\.run")
_PACKAGE = re.compile(r".*\.(deb|rpm|pkg\.tar\.zst)")

OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH

INSTALLERS: dict[str, tuple[Command, Command, Command]] = {
    "deb": (
        ("dpkg-deb", "--field"),
        (
            *("apt-get", "-qq", "-o", "DPkg::Lock::Timeout=300", "install", "--yes"),
            *("--no-install-recommends", "--no-remove"),
        ),
        ("dpkg", "--remove"),
    ),
    "rpm": (
        ("rpm", "--query", "--queryformat", "%{NAME}", "--package"),
        ("dnf", "--assumeyes", "install"),
        ("rpm", "--erase"),
    ),
    "zst": (
        ("pacman", "--query", "--file", "--quiet"),
        ("pacman", "--upgrade", "--noconfirm"),
        ("pacman", "--remove", "--noconfirm"),
    ),
}
"""By suffix: what tells a package's name, what installs its file, what removes it by name."""

BUILD_PACKAGES = {
    "apt-get": ("dkms", "linux-headers-{release}"),
    "dnf": ("dkms", "kernel-devel"),
    "pacman": ("dkms", "linux-headers"),
}
"""What DKMS needs to build modules, by package manager."""


@frozen
class VendorPackage:
    """A file in the vendor folder; ``path`` is where it is on the host itself."""

    file: Path
    path: str

    @property
    def is_nvidia(self) -> bool:
        """Whether it brings NVIDIA's driver."""
        return "nvidia" in self.file.name.lower()

    @property
    def is_installer(self) -> bool:
        """Whether it is NVIDIA's own installer rather than a package."""
        return bool(_RUN.fullmatch(self.file.name))


def vendor_folder(host: Host) -> Path:
    """Return where the user puts drivers."""
    return host.places.state / "vendor"


def find_packages(host: Host) -> tuple[VendorPackage, ...]:
    """Return the packages that nobody but their user could have put there, in their order."""
    return tuple(package for package in _list_packages(host) if not _find_danger(host, package))


def _list_packages(host: Host) -> Iterator[VendorPackage]:
    folder = vendor_folder(host)
    files = sorted(folder.iterdir()) if folder.is_dir() else ()
    for file in files:
        if _RUN.fullmatch(file.name) or _PACKAGE.fullmatch(file.name):
            yield VendorPackage(file, host.tell(file))


def _find_danger(host: Host, package: VendorPackage) -> str:
    """Return why a package is not run as root, "" when nothing speaks against it."""
    for path in (package.file, package.file.parent):
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode):
            return f"{host.tell(path)} is a link"
        if status.st_uid != host.uid or status.st_mode & OTHERS_WRITE:
            return f"others than root can write to {host.tell(path)}"
    return ""


def plan_vendor(host: Host, *, reboot_first: bool) -> SetupPlan:
    """Return what installs the packages; after the reboot where another driver is in the way."""
    refused = [(package, _find_danger(host, package)) for package in _list_packages(host)]
    notes = tuple(f"{package.path} is not installed: {why}" for package, why in refused if why)
    waiting = [package for package in find_packages(host) if not _is_installed(host, package)]
    if not waiting:
        return SetupPlan(notes=notes)
    if reboot_first:
        names = ", ".join(package.file.name for package in waiting)
        return SetupPlan(notes=(*notes, f"after the reboot, setup installs {names}"))
    actions = (*_plan_build_packages(host), *(_install(host, package) for package in waiting))
    # The key comes first: what is built without one is not signed.
    return plan_signing(host) + SetupPlan(actions, notes)


def _is_installed(host: Host, package: VendorPackage) -> bool:
    if package.is_installer:
        return find_module(host, "nvidia_vgpu_vfio") is not ModuleState.MISSING
    manager = find_manager(host)
    return manager is not None and _find_name(host, package) in list_packages(host, manager)


def _find_name(host: Host, package: VendorPackage) -> str:
    ask, _, _ = INSTALLERS[package.file.name.rpartition(".")[2]]
    field = ("Package",) if ask[0] == "dpkg-deb" else ()
    answer = ask_command(host, (*ask, package.path, *field)) or ""
    return (answer.split() or [""])[0]


def _plan_build_packages(host: Host) -> Iterator[Action]:
    manager = find_manager(host)
    if manager is None:
        return
    names = [name.format(release=host.release) for name in BUILD_PACKAGES[manager.name]]
    present = list_packages(host, manager)
    missing = tuple(name for name in names if name not in present)
    if missing:
        yield InstallPackages(manager.name, missing)


def _install(host: Host, package: VendorPackage) -> Action:
    if package.is_installer:
        return RunCommand(
            ("sh", package.path, "--silent", "--dkms"), ("nvidia-uninstall", "--silent")
        )
    _, install, remove = INSTALLERS[package.file.name.rpartition(".")[2]]
    return RunCommand((*install, package.path), (*remove, _find_name(host, package)))
