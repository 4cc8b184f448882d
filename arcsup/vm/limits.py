"""What the programs of a VM may take of the host together: memory and tasks. Pure.

A limit is there for a QEMU that goes wild. What a guest can make a sound one take must fit, since
the kernel kills at the limit: libvirt once guessed these amounts tightly, and took that back
because it killed sound guests. Swap is not limited, nor is what huge pages hold.
"""

from arcsup.host.cgroups import Limits
from arcsup.model import Argv, MiB, Vm
from arcsup.vm.commandline import Resources

BASE = MiB(1024)
"""QEMU itself with its consoles, sound and monitors, swtpm, its private /tmp, and page cache that
lets images be read ahead."""

SHARE_OF_MEMORY = 16
"""One of so many parts of the guest's memory, for what grows with it. Page tables of QEMU, KVM and
the IOMMU take a 512th each, KVM's reverse map and its log of dirty pages less; the rest is for page
cache."""

PER_CPU = MiB(32)
"""Its thread's stacks, what malloc keeps for it, KVM's state of it."""

PER_DISK = MiB(64)
"""Twice what QEMU caches of a qcow2 image's tables (docs/qcow2-cache.txt: 32 MiB)."""

PER_SHARE = MiB(512)
"""virtiofsd knows every file that the guest knows, and copies what is read and written."""

PER_GPU = MiB(1024)
"""Host devices: what VFIO and vendors' drivers keep for one. An emulated card: its video memory,
and copies of what the guest draws (virtio-gpu: up to 256 MiB)."""

FOR_LATER_GPUS = PER_GPU
"""One can come while the VM runs."""

FOR_GL = MiB(4096)
"""What is drawn through GL: textures, where the host's GPU has no memory of its own."""

FOR_TCG = MiB(2048)
"""QEMU's translated code (accel/tcg/region.c: 1 GiB) and what it knows of it."""

TASKS = 1024
"""Threads of QEMU's pools (64 for each that does I/O), SPICE, GL drivers, and of its helpers."""

TASKS_PER_CPU = 4
"""The thread of the virtual CPU, and those that vhost and KVM make for it."""

_MEMORY_WORDS = ("memory-backend", "maxmem", "tb-size")


def limits_of(vm: Vm, host: Resources) -> Limits:
    """Return what a VM's programs may take.

    There is no limit of memory where ``qemu.args`` give QEMU memory that nobody else knows of.
    """
    overhead = (
        BASE
        + vm.memory_mib // SHARE_OF_MEMORY
        + vm.cpus.total * PER_CPU
        + len(vm.disks) * PER_DISK
        + len(vm.shares) * PER_SHARE
        + sum(gpu.count for gpu in vm.gpus) * PER_GPU
        + FOR_LATER_GPUS
        + (FOR_GL if host.render_node is not None else 0)
        + (FOR_TCG if host.accel == "tcg" else 0)
        + sum(piece.size_mib for piece in host.shared_memory)
    )
    memory = None if _adds_memory(vm.qemu.args) else (vm.memory_mib + overhead) * 2**20
    return Limits(memory, TASKS + vm.cpus.total * TASKS_PER_CPU)


def _adds_memory(args: Argv) -> bool:
    return "-m" in args or any(word in arg for arg in args for word in _MEMORY_WORDS)
