"""NVIDIA's host driver: its services, the states of its cards, and nouveau in its way.

Sources: NVIDIA's Virtual GPU Software User Guide (nvidia-vgpud, nvidia-vgpu-mgr, licence states),
`nvidia-smi --help-query-gpu`, Documentation of /proc/driver/nvidia in the driver's README.
"""

import re
from collections.abc import Iterator

from arcsup.errors import Terminal
from arcsup.setup.checks.kernel import ModuleState, find_module
from arcsup.setup.commands import ask_command
from arcsup.setup.findings import Check, Finding, info, ok, warning
from arcsup.setup.gpu_kinds import NVIDIA
from arcsup.setup.host import Host, read_text

SERVICES = {
    "nvidia-vgpud": "it tells the driver which vGPU types there are",
    "nvidia-vgpu-mgr": "it runs the vGPUs: without it no VM with one starts",
}

UNIT_FOLDERS = ("etc", "usr/local/lib", "usr/lib", "lib")

STATES = ("ecc.mode.current", "mig.mode.current")
QUERY = ("nvidia-smi", f"--query-gpu=pci.bus_id,{','.join(STATES)}", "--format=csv,noheader")
LICENCES = ("nvidia-smi", "vgpu", "-q")

PATIENCE = 20.0
"""Seconds for nvidia-smi: it wakes every card that sleeps."""


def check_services(host: Host) -> Iterator[Finding]:
    """Tell whether the services of the vGPU host driver are there and run."""
    if find_module(host, "nvidia_vgpu_vfio") is not ModuleState.LOADED:
        yield ok("NVIDIA's vGPU host driver is not in use: none of its services is needed")
        return
    for name, purpose in SERVICES.items():
        if not any(
            host.path(f"{folder}/systemd/system/{name}.service").exists() for folder in UNIT_FOLDERS
        ):
            do = "install NVIDIA's host driver again: its package has both"
            yield warning(f"service {name} is not installed", purpose, do)
        elif _runs(host, name):
            yield ok(f"{name} runs")
        elif name == "nvidia-vgpud" and _has_types(host):
            # It ends when it has said what it has to.
            yield ok("nvidia-vgpud has done its work: there are vGPU types")
        else:
            do = f"as root: systemctl enable --now {name}; its words: journalctl -u {name}"
            yield warning(f"{name} does not run", purpose, do)


def _runs(host: Host, name: str) -> bool:
    comms = host.path("/proc").glob("[0-9]*/comm")
    return any(read_text(comm).strip() == name for comm in comms)


def _has_types(host: Host) -> bool:
    devices = host.sysfs / "bus/pci/devices"
    patterns = ("*/mdev_supported_types/nvidia-*", "*/nvidia/creatable_vgpu_types")
    return any(any(devices.glob(pattern)) for pattern in patterns)


def check_nouveau(host: Host) -> Iterator[Finding]:
    """Tell whether the free driver holds cards that NVIDIA's is to have."""
    devices = sorted((host.sysfs / "bus/pci/drivers/nouveau").glob("*:*"))
    wanted = find_module(host, "nvidia") is not ModuleState.MISSING
    cards = " ".join(device.name for device in devices)
    if devices and wanted:
        do = "run `arcsup setup`, which keeps nouveau from being loaded, and reboot"
        yield warning(f"nouveau holds {cards}", "NVIDIA's driver is installed, too late", do)
    elif devices:
        why = "it offers no vGPUs; a VM can have the whole card all the same"
        yield info(f"nouveau drives {cards}", why)
    else:
        yield ok("nouveau is in nobody's way")


def check_states(host: Host) -> Iterator[Finding]:
    """Tell ECC, MIG and licences, as far as nvidia-smi tells them."""
    if not _has_driver(host) or host.find_program("nvidia-smi") is None:
        yield ok("no card is driven by NVIDIA's driver: no ECC, MIG or licence to look at")
        return
    try:
        answer = ask_command(host, QUERY, PATIENCE)
        licences = ask_command(host, LICENCES, PATIENCE)
    except Terminal as fault:
        do = "look into `dmesg` for NVRM and Xid"
        yield warning(fault.message, "the driver does not answer", do)
        return
    if answer is None:
        do = "run it yourself, and look into `dmesg` for NVRM"
        yield warning("nvidia-smi does not answer", "ECC and MIG are not known", do)
    for line in (answer or "").splitlines():
        yield from _tell_states([word.strip() for word in line.split(",")])
    yield from _tell_licences(licences or "")


def _has_driver(host: Host) -> bool:
    folder = host.sysfs / "bus/pci/drivers/nvidia"
    devices = folder.glob("*:*")
    return any(read_text(device / "vendor").strip() == f"0x{NVIDIA}" for device in devices)


def _tell_states(words: list[str]) -> Iterator[Finding]:
    if len(words) != 1 + len(STATES):
        return
    address, ecc, mig = words
    yield ok(f"{address}: ECC {ecc}, MIG {mig}")
    if mig == "Enabled":
        why = "time-sliced vGPU types read 0 then; MIG-backed ones need GPU instances"
        do = f"nvidia-smi mig -i {address} -lgi lists them; -cgi PROFILE -C makes one"
        yield info(f"{address} is in MIG mode", why, do)


def _tell_licences(text: str) -> Iterator[Finding]:
    """Tell of running vGPUs whether their guests have got a licence."""
    found = re.findall(r"^\s*License Status\s*:\s*(.+?)\s*$", text, re.MULTILINE)
    lacking = [status for status in found if not status.startswith("Licensed")]
    if lacking:
        why = "a guest without a licence is slowed down after 20 minutes"
        do = "in the guest: nvidia-smi -q | grep -i licen; see gridd.conf or its client token"
        yield warning(f"{len(lacking)} of {len(found)} vGPUs: {lacking[0]}", why, do)
    elif found:
        yield ok(f"all {len(found)} running vGPUs are licensed")


CHECKS = (
    Check("nvidia-services", "Services of NVIDIA's host driver", check_services),
    Check("nouveau", "nouveau", check_nouveau),
    Check("nvidia-states", "ECC, MIG and licences", check_states),
)
