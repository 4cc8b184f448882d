"""Whether guests run at the processor's own speed."""

import os
from collections.abc import Iterator

import trio

from arcsup.errors import Terminal
from arcsup.host.identity import boot_id
from arcsup.setup.checks.qemu import find_host_qemu
from arcsup.setup.findings import Check, Finding, error, info, ok, warning
from arcsup.setup.host import Host
from arcsup.vm.accel import try_guest

SLOW = "without KVM a guest runs ten times slower or worse"

_TECHNIQUES = {"vmx": "Intel VT-x", "svm": "AMD-V"}
"""Flags of /proc/cpuinfo."""


def check_flags(host: Host) -> Iterator[Finding]:
    """Tell whether the processor can run guests, and whether it is a guest's itself."""
    found = [name for flag, name in _TECHNIQUES.items() if flag in host.cpu_flags]
    if found:
        yield ok(f"the processor virtualizes ({found[0]})")
    elif "hypervisor" in host.cpu_flags:
        yield warning(
            "the processor shows neither vmx nor svm: this host is itself a virtual machine",
            SLOW,
            "enable nested virtualization for it on its own host",
        )
    else:
        yield error(
            "the processor shows neither vmx nor svm",
            SLOW,
            "enable Intel VT-x or AMD-V (SVM) in the firmware's setup",
        )


def check_kvm_device(host: Host) -> Iterator[Finding]:
    """Tell whether /dev/kvm is there and may be used by who runs the daemon."""
    device = host.path("/dev/kvm")
    if not device.exists():
        module = "kvm_amd" if host.cpu_vendor == "AuthenticAMD" else "kvm_intel"
        yield error("/dev/kvm is not there", SLOW, f"as root: modprobe {module}")
    elif not os.access(device, os.R_OK | os.W_OK):
        do = "as root: usermod -aG kvm USER, then log in again"
        yield error("/dev/kvm cannot be opened by this user", SLOW, do)
    else:
        yield ok("/dev/kvm can be opened")


def check_kvm_guest(host: Host) -> Iterator[Finding]:
    """Tell whether a guest really runs under KVM, by running one (at most some seconds)."""
    qemu = find_host_qemu(host)
    if qemu is None or not os.access(host.path("/dev/kvm"), os.R_OK | os.W_OK):
        yield info("no guest was tried under KVM: it takes a QEMU and /dev/kvm")
        return
    try:
        boot = boot_id()
        why = trio.run(try_guest, qemu, "kvm", boot)
        busy = trio.run(try_guest, qemu, "tcg", boot) if why else ""
    except Terminal as fault:
        yield warning(f"no guest could be tried under KVM: {fault.message}", SLOW, fault.hint)
        return
    if not why:
        yield ok("a guest ran under KVM")
    elif busy:
        do = "run arcsup doctor again when the host is less busy"
        yield warning(f"a guest ran neither under KVM nor without: {why}", SLOW, do)
    else:
        do = "look into `dmesg`; on a virtual machine, into its nested virtualization"
        yield error(f"KVM does not work although /dev/kvm is there: {why}", SLOW, do)


CHECKS = (
    Check("cpu-flags", "Virtualization by the processor", check_flags),
    Check("kvm-device", "The KVM device", check_kvm_device),
    Check("kvm-guest", "A guest under KVM", check_kvm_guest),
)
