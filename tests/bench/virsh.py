"""The same small VM through libvirt, where it is installed: ``virsh create`` beside a file dropped.

The domain is what tests/qemu/daemon.py's TINY asks for. libvirt returns from create when the guest
runs, so its figure is one command; ours is the file's, as in vms.py.
"""

import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from tests.bench.measurement import Measurement
from tests.bench.vms import ROUNDS, daemon_in, time_since

URI = ("-c", "qemu:///system")

DOMAIN = """<domain type='qemu'>
  <name>{name}</name>
  <memory unit='MiB'>64</memory>
  <vcpu>2</vcpu>
  <os><type arch='x86_64' machine='q35'>hvm</type></os>
  <features><acpi/></features>
  <devices>
    <emulator>{emulator}</emulator>
    <controller type='usb' model='none'/>
    <serial type='pty'/>
    <rng model='virtio'><backend model='builtin'/></rng>
    <memballoon model='none'/>
    <panic model='isa'/>
  </devices>
</domain>
"""


def run() -> list[Measurement]:
    """Measure both, one after the other in each round; nothing where there is no libvirt."""
    if not _answers():
        return []
    top = Path(tempfile.mkdtemp(prefix="arcb", dir="/tmp"))
    ours, theirs = [], []
    try:
        with daemon_in(top) as daemon:
            daemon.drop("warm")
            daemon.wait_for("warm", "running")
            for number in range(ROUNDS):
                theirs.append(_create_and_destroy(top, f"arcsup-bench-{number}"))
                began = time.time()
                file = daemon.drop(f"vm{number}")
                daemon.wait_for(f"vm{number}", "running")
                ours.append(time_since(began, daemon, f"vm{number}", "running"))
                daemon.call("kill", f"vm{number}", wait="10")
                file.unlink()
    finally:
        shutil.rmtree(top)
    libvirt = statistics.median(theirs) * 1000
    return [
        Measurement("virsh create -> running", libvirt, "ms"),
        Measurement(
            "the same by a file dropped", statistics.median(ours) * 1000, "ms", baseline=libvirt
        ),
    ]


def _answers() -> bool:
    if shutil.which("virsh") is None:
        return False
    return subprocess.run(["virsh", *URI, "version"], capture_output=True).returncode == 0


def _create_and_destroy(top: Path, name: str) -> float:
    emulator = shutil.which("qemu-system-x86_64")
    file = top / f"{name}.xml"
    file.write_text(DOMAIN.format(name=name, emulator=emulator))
    began = time.time()
    subprocess.run(["virsh", *URI, "create", str(file)], check=True, capture_output=True)
    took = time.time() - began
    subprocess.run(["virsh", *URI, "destroy", name], check=True, capture_output=True)
    return took
