"""Settings of the running system that VMs need: huge pages, and what AppArmor forbids helpers.

Sources: sysctl.d(5), Documentation/admin-guide/mm/hugetlbpage.rst, apparmor.d(5) (userns), Ubuntu's
release notes for 24.04 on unprivileged user namespaces.
"""

from arcsup.setup.choices import Choices
from arcsup.setup.host import Host
from arcsup.setup.steps import SetupPlan, create_file

SYSCTL_FILE = "/etc/sysctl.d/60-arcsup.conf"
APPARMOR_FILE = "/etc/apparmor.d/arcsup-virtiofsd"

PAGE_MIB = 2
"""Size of the pages that vm.nr_hugepages counts, in MiB, where the command line chose no other."""

APPARMOR = """\
abi <abi/4.0>,
include <tunables/global>

# A user's VMs share folders through it, which takes a user namespace.
profile arcsup-virtiofsd /usr/{lib/qemu,libexec}/virtiofsd flags=(unconfined) {
  userns,
}
"""


def plan_tuning(host: Host, choices: Choices) -> SetupPlan:
    """Return the settings that are missing."""
    return _plan_hugepages(host, choices) + _plan_apparmor(host)


def _plan_hugepages(host: Host, choices: Choices) -> SetupPlan:
    pages = -(-choices.hugepages // PAGE_MIB)
    if not pages:
        return SetupPlan()
    line = f"vm.nr_hugepages = {pages}\n"
    if host.path(SYSCTL_FILE).exists() and line not in host.read(SYSCTL_FILE):
        return SetupPlan(notes=(f"{SYSCTL_FILE} says something else: remove it first",))
    # It runs each file anew, and so it does when this one is taken back (to no effect until then).
    then = (("systemctl", "try-restart", "systemd-sysctl.service"),)
    running = host.path("/run/systemd/system").is_dir()
    return SetupPlan(create_file(host, SYSCTL_FILE, line, then if running else ()))


def _plan_apparmor(host: Host) -> SetupPlan:
    restricted = host.read("/proc/sys/kernel/apparmor_restrict_unprivileged_userns").strip() == "1"
    if not restricted or not host.path("/etc/apparmor.d").is_dir():
        return SetupPlan()
    running = host.path("/run/systemd/system").is_dir()
    then = (("systemctl", "reload", "apparmor.service"),) if running else ()
    return SetupPlan(create_file(host, APPARMOR_FILE, APPARMOR, then))
