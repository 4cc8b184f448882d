"""Others on the host that may take the same devices."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from arcsup.setup.findings import Check, Finding, info, ok, warning
from arcsup.setup.host import Host, read_text

CLASH = "two managers of the same devices take them from each other"

LIBVIRT = frozenset({"libvirtd", "virtqemud", "virtnodedevd", "virtxend"})
"""Names as /proc/PID/comm has them: cut at 15 bytes (proc_pid_comm(5))."""


LIBVIRT_VMS = "/etc/libvirt/qemu"
PROXMOX_VMS = "/etc/pve/qemu-server"
"""Where the two keep a file for each VM."""


def check_libvirt(host: Host) -> Iterator[Finding]:
    """Tell whether a libvirt daemon runs, and which of its VMs have devices of the host."""
    comms = host.path("/proc").glob("[0-9]*/comm")
    running = sorted({read_text(comm).strip() for comm in comms} & LIBVIRT)
    if running:
        do = "give each GPU to one of them: exclude it in arcsup.yaml, or leave it out of libvirt"
        yield warning(f"{', '.join(running)} runs", CLASH, do)
    else:
        yield ok("no libvirt daemon runs")
    files = host.path(LIBVIRT_VMS).glob("*.xml")
    yield from _tell_vms("libvirt", (file for file in files if "<hostdev" in read_text(file)))


def _tell_vms(manager: str, files: Iterable[Path]) -> Iterator[Finding]:
    """Tell the VMs of another manager that ask for devices."""
    names = sorted(file.stem for file in files)
    if names:
        why = "only one of both can have a device at a time"
        do = "give those devices to one: `arcsup import FILE` takes a VM over"
        yield info(f"VMs of {manager} with devices of the host: {', '.join(names)}", why, do)


def check_mdevctl(host: Host) -> Iterator[Finding]:
    """Tell the mediated devices that mdevctl makes at boot."""
    folder = host.path("/etc/mdevctl.d")
    # A folder for each parent, in it a file for each device; the rest are scripts.
    found = [file for file in folder.glob("*:*/*") if file.is_file()]
    started = [file for file in found if '"start": "auto"' in read_text(file)]
    if started:
        do = "mdevctl modify --manual -u UUID, for those that arcsup is to make"
        yield warning(f"mdevctl makes {len(started)} mediated devices at boot", CLASH, do)
    else:
        yield ok(f"mdevctl makes no devices at boot ({len(found)} defined)")


def check_proxmox(host: Host) -> Iterator[Finding]:
    """Tell whether this is a Proxmox VE host."""
    if host.path("/usr/bin/pvesh").exists():
        do = "keep the GPUs of arcsup's VMs out of Proxmox's hardware mappings"
        yield warning("this is a Proxmox VE host", CLASH, do)
        files = host.path(PROXMOX_VMS).glob("*.conf")
        yield from _tell_vms(
            "Proxmox VE", (file for file in files if "\nhostpci" in f"\n{read_text(file)}")
        )
    else:
        yield ok("this is no Proxmox VE host")


CHECKS = (
    Check("libvirt", "libvirt", check_libvirt),
    Check("mdevctl", "mdevctl", check_mdevctl),
    Check("proxmox", "Proxmox VE", check_proxmox),
)
