"""How a program loses what the daemon may: as a prefix of its command line.

setpriv(1) of util-linux becomes the program, so the pid that the journal names stays the same.
With no_new_privs neither a setuid program nor a file capability gives anything back
(prctl(2), PR_SET_NO_NEW_PRIVS).
"""

import os
from collections.abc import Mapping

from arcsup.host.accounts import Account
from arcsup.model import Argv, MiB, Vm

_OWN_VARIABLES = frozenset(
    {
        *("HOME", "LOGNAME", "USER", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "XAUTHORITY"),
        *("DBUS_SESSION_BUS_ADDRESS", "PULSE_COOKIE"),
    }
)
"""What is true of root and not of another user."""


def dropping_to(account: Account | None) -> Argv:
    """Return the command that runs what follows as ``account``, None for who runs it now."""
    if account is None:
        return ()
    groups = ",".join(map(str, account.groups))
    return (
        "setpriv",
        f"--reuid={account.uid}", f"--regid={account.gid}",
        f"--groups={groups}" if groups else "--clear-groups",
        "--inh-caps=-all", "--bounding-set=-all", "--no-new-privs", "--",
    )  # fmt: skip


LOCKED_BESIDE_MEMORY = MiB(1024)
"""What VFIO maps beside a guest's memory: video memory and registers of devices, firmware. libvirt
allows as much (qemuDomainGetMemLockLimitBytes)."""


def lockable_bytes(vm: Vm, *, charged_together: bool) -> int:
    """Return how much memory the QEMU of a VM with host devices must be able to lock.

    VFIO pins the guest's whole memory, once however many devices there are, and charges it to who
    maps it (drivers/vfio/vfio_iommu_type1.c, vfio_lock_acct). iommufd charges it to the user
    (drivers/iommu/iommufd/pages.c, IOPT_PAGES_ACCOUNT_USER), ``charged_together`` with the other
    VMs of that user; then the limit of each is all the memory that the host has.
    """
    if charged_together:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return (vm.memory_mib + LOCKED_BESIDE_MEMORY) * 2**20


def environment_of(account: Account | None, inherited: Mapping[str, str]) -> dict[str, str]:
    """Return the environment that a program of ``account`` may have."""
    gone = frozenset() if account is None else _OWN_VARIABLES
    return {key: value for key, value in inherited.items() if key not in gone}
