"""Writes to a VM's disks as its guest would, without one; and reads images back."""

import subprocess
from pathlib import Path

from arcsup.control.client import vm_path
from tests.qemu.daemon import Daemon


def write_as_guest(daemon: Daemon, vm: str, node: str, pattern: int) -> None:
    """Have QEMU write 64 KiB of a byte to the beginning of a disk, through all its layers."""
    line = f'qemu-io -d {node}/virtio-backend "write -P {pattern} 0 64k"'
    body = {"execute": "human-monitor-command", "arguments": {"command-line": line}}
    answer = daemon.client.post(vm_path(vm, "qmp"), body)["return"]
    assert answer == "", answer


def holds(image: Path, pattern: int) -> bool:
    """Tell whether an image begins with 64 KiB of a byte."""
    argv = ["qemu-io", "-r", "-f", "qcow2", "-c", f"read -P {pattern} 0 64k", str(image)]
    result = subprocess.run(argv, capture_output=True, text=True, check=True)
    return "verification failed" not in result.stdout
