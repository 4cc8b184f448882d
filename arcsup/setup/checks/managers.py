"""Others on the host that may take the same devices."""

from collections.abc import Iterator

from arcsup.setup.findings import Check, Finding, ok, warning
from arcsup.setup.host import Host, read_text

CLASH = "two managers of the same devices take them from each other"

LIBVIRT = frozenset({"libvirtd", "virtqemud", "virtnodedevd", "virtxend"})
"""Names as /proc/PID/comm has them: cut at 15 bytes (proc_pid_comm(5))."""


def check_libvirt(host: Host) -> Iterator[Finding]:
    """Tell whether a libvirt daemon runs."""
    comms = host.path("/proc").glob("[0-9]*/comm")
    running = sorted({read_text(comm).strip() for comm in comms} & LIBVIRT)
    if running:
        do = "give each GPU to one of them: exclude it in arcsup.yaml, or leave it out of libvirt"
        yield warning(f"{', '.join(running)} runs", CLASH, do)
    else:
        yield ok("no libvirt daemon runs")


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
    else:
        yield ok("this is no Proxmox VE host")


CHECKS = (
    Check("libvirt", "libvirt", check_libvirt),
    Check("mdevctl", "mdevctl", check_mdevctl),
    Check("proxmox", "Proxmox VE", check_proxmox),
)
