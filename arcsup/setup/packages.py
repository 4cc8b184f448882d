"""The packages that arcsup needs, by distribution, and how their managers are spoken to.

Nothing here upgrades the system, and nothing removes a package to make room for another.
"""

import re

from attrs import frozen

from arcsup.setup.actions import InstallPackages
from arcsup.setup.commands import ask_command, run_command
from arcsup.setup.host import Host


@frozen
class Manager:
    """A package manager and what it is to install.

    ``families`` are ID and ID_LIKE of os-release(5). ``listing`` prints ``installed NAME`` or
    ``NAME`` for each package; ``known`` and a name writes something when there is such a package,
    ``refresh`` fetches the lists that it looks into; both are empty where ``install`` does that.
    ``remove`` refuses when another package needs one that is to go.
    """

    name: str
    families: frozenset[str]
    packages: tuple[str, ...]
    optional: tuple[str, ...]
    listing: tuple[str, ...]
    known: tuple[str, ...]
    refresh: tuple[str, ...]
    install: tuple[str, ...]
    remove: tuple[str, ...]


APT = Manager(
    name="apt-get",
    families=frozenset({"debian", "ubuntu"}),
    packages=("qemu-system-x86", "qemu-utils", "ovmf", "swtpm"),
    # Of Debian 13 and Ubuntu 24.04; before, parts of qemu-system-common and -x86.
    optional=("virtiofsd", "qemu-system-modules-opengl", "qemu-system-modules-spice"),
    listing=("dpkg-query", "--show", "--showformat=${db:Status-Status} ${Package}\\n"),
    known=("apt-cache", "show", "--no-all-versions"),
    refresh=("apt-get", "-qq", "update"),
    install=(
        *("apt-get", "-qq", "-o", "DPkg::Lock::Timeout=300", "install", "--yes"),
        *("--no-install-recommends", "--no-upgrade", "--no-remove"),
    ),
    remove=("dpkg", "--remove"),
)

DNF = Manager(
    name="dnf",
    families=frozenset({"fedora", "rhel", "centos"}),
    packages=("qemu-system-x86", "qemu-img", "edk2-ovmf", "swtpm", "virtiofsd"),
    optional=(),
    listing=("rpm", "--query", "--all", "--queryformat", "installed %{NAME}\\n"),
    known=(),
    refresh=(),
    install=("dnf", "--assumeyes", "--setopt=install_weak_deps=False", "install"),
    remove=("rpm", "--erase"),
)

PACMAN = Manager(
    name="pacman",
    families=frozenset({"arch"}),
    packages=(
        *("qemu-system-x86", "qemu-img", "qemu-audio-spice", "qemu-chardev-spice"),
        *("qemu-ui-spice-core", "qemu-ui-egl-headless", "qemu-hw-display-virtio-gpu-pci"),
        *("qemu-hw-display-virtio-gpu-pci-gl", "qemu-hw-display-virtio-vga"),
        *("qemu-hw-display-virtio-vga-gl", "qemu-hw-usb-host", "qemu-hw-usb-redirect"),
        *("edk2-ovmf", "swtpm", "virtiofsd"),
    ),
    optional=(),
    listing=("pacman", "--query", "--quiet"),
    known=(),
    # Fetching the lists and not upgrading is a partial upgrade, which Arch does not support.
    refresh=(),
    install=("pacman", "--sync", "--needed", "--noconfirm"),
    remove=("pacman", "--remove", "--noconfirm"),
)

MANAGERS = {manager.name: manager for manager in (APT, DNF, PACMAN)}


def find_manager(host: Host) -> Manager | None:
    """Return the host's package manager, None for a distribution that is not known."""
    words = re.findall(r"^ID(?:_LIKE)?=(.*)$", host.read("/etc/os-release"), re.MULTILINE)
    families = {name for word in words for name in word.strip("\"'").split()}
    for manager in MANAGERS.values():
        if families & manager.families and host.find_program(manager.name) is not None:
            return manager
    return None


def list_packages(host: Host, manager: Manager) -> frozenset[str]:
    """Return the names of what is installed."""
    lines = (ask_command(host, manager.listing) or "").splitlines()
    words = (line.split() for line in lines)
    return frozenset(word[-1] for word in words if len(word) == 1 or word[:1] == ["installed"])


def plan_packages(host: Host, manager: Manager) -> InstallPackages | None:
    """Return what is to be installed, None when all is there."""
    installed = list_packages(host, manager)
    missing = tuple(name for name in manager.packages if name not in installed)
    optional = tuple(
        name
        for name in manager.optional
        if name not in installed and (missing or _is_known(host, manager, name))
    )
    return InstallPackages(manager.name, missing, optional) if missing or optional else None


def install_packages(host: Host, action: InstallPackages) -> tuple[str, ...]:
    """Install what is missing; return the names of all that came. Raises Terminal."""
    manager = MANAGERS[action.manager]
    before = list_packages(host, manager)
    missing = [name for name in action.packages if name not in before]
    if manager.refresh and not all(_is_known(host, manager, name) for name in missing):
        run_command(host, manager.refresh)
    optional = [
        name for name in action.optional if name not in before and _is_known(host, manager, name)
    ]
    if missing or optional:
        run_command(host, (*manager.install, *missing, *optional))
    after = list_packages(host, manager)
    # Those named were missing when this was planned: a run that did not end brought them.
    named = after & {*action.packages, *action.optional}
    return tuple(sorted((after - before) | named))


def remove_packages(host: Host, action: InstallPackages, names: tuple[str, ...]) -> None:
    """Remove those of ``names`` that are still there. Raises Terminal where others need them."""
    manager = MANAGERS[action.manager]
    installed = list_packages(host, manager)
    left = [name for name in names if name in installed]
    if left:
        hint = "packages installed since may need them; remove those first, or keep both"
        run_command(host, (*manager.remove, *left), hint)


def _is_known(host: Host, manager: Manager, name: str) -> bool:
    # Of a name that others only mention, apt-cache writes nothing and ends well.
    return not manager.known or bool(ask_command(host, (*manager.known, name)))
