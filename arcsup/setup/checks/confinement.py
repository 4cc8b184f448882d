"""What keeps a VM from the rest of the host: control groups, a /tmp of its own, no loopback."""

import os
from collections.abc import Iterator

import trio

from arcsup.errors import SpecError
from arcsup.host.cgroups import NEEDED, TREE
from arcsup.host.loopback import find_obstacle as find_obstacle_to_filter
from arcsup.host.scopes import BOOTED, SYSTEM_BUS, find_user_bus
from arcsup.setup.findings import Check, Finding, Level, info, ok, warning
from arcsup.setup.host import Host
from arcsup.spec.config import load_config
from arcsup.vm.private_tmp import find_obstacle

_WITHOUT_LIMITS = "a QEMU that goes wild can take all memory and tasks of the host"


def check_control_groups(host: Host) -> Iterator[Finding]:
    """Tell whether each VM gets a control group with limits, and who makes it."""
    there = host.read(TREE / "cgroup.controllers").split()
    missing = " and ".join(sorted(NEEDED - set(there)))
    if host.path(BOOTED).is_dir():
        address = SYSTEM_BUS if host.uid == 0 else find_user_bus()
        bus = address.removeprefix("unix:path=").partition(",")[0]
        if bus.startswith("/") and not host.path(bus).exists():
            what = f"there is no bus ({bus}) to ask systemd for scopes"
            yield warning(what, _WITHOUT_LIMITS, "install dbus")
        elif missing:
            what = f"VMs get scopes, but control groups have no controller for {missing}"
            do = "boot with systemd.unified_cgroup_hierarchy=1"
            yield warning(what, _WITHOUT_LIMITS, do)
        else:
            yield ok("each VM gets a scope of systemd's, with limits of memory and tasks")
    elif missing:
        yield info(f"VMs have no limits: no control groups for {missing}", _WITHOUT_LIMITS)
    elif not os.access(host.path(TREE / "cgroup.procs"), os.W_OK):
        do = "run the daemon under systemd, or give it a control group of its own"
        yield info("VMs have no limits: control groups cannot be written", _WITHOUT_LIMITS, do)
    else:
        yield ok("each VM gets a control group below the daemon's, if that has one for itself")


def check_private_tmp(host: Host) -> Iterator[Finding]:
    """Tell whether VMs have a /tmp of their own."""
    if host.uid != 0:
        yield ok("VMs of a user's session share that user's /tmp")
        return
    if not (host.is_this and os.geteuid() == 0):
        yield info("whether VMs get a /tmp of their own, only root can see on the host itself")
        return
    try:
        folders = load_config(host.places.config).image_dirs
    except SpecError:
        yield info("whether VMs get a /tmp of their own depends on the configuration")
        return
    if obstacle := trio.run(find_obstacle, host.places, folders):
        why = "QEMU's user sees what others leave there"
        yield info(f"VMs share the host's /tmp: {obstacle}", why)
    else:
        yield ok("each VM has a /tmp of its own")


def check_loopback(host: Host) -> Iterator[Finding]:
    """Tell whether guests are kept from what listens on the host's loopback."""
    what = "guests with `type: user`, the default network, reach the host's loopback"
    why = "what listens there often trusts whoever can connect"
    do = "give VMs `networks: []` or a bridge where that matters"
    if host.uid != 0:
        do = f"{do}; the system's daemon can prevent it"
        yield warning(f"{what}: only root can have that prevented", why, do)
    elif any(finding.level is not Level.OK for finding in check_control_groups(host)):
        yield warning(f"{what}: VMs have no control groups to prevent it", why, do)
    elif not (host.is_this and os.geteuid() == 0):
        yield info("whether guests reach the host's loopback, only root can see on the host itself")
    elif obstacle := find_obstacle_to_filter():
        yield warning(f"{what}: the kernel takes no filter: {obstacle}", why, do)
    else:
        yield ok("guests do not reach the host's loopback, unless hostLoopback: true")


CHECKS = (
    Check("control-groups", "Control groups", check_control_groups),
    Check("private-tmp", "VMs' /tmp", check_private_tmp),
    Check("loopback", "The host's loopback", check_loopback),
)
