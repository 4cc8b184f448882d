"""The lab's machine: build its command line, start it, pass its output on, end it when it hangs.

Run by tests/lab/run, which has prepared everything that is needed.
"""

import argparse
import contextlib
import fcntl
import os
import re
import selectors
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from attrs import frozen

LAB = Path(__file__).resolve().parent
TOP = LAB.parent.parent

PYTEST = "tests/lab/inside_pytest.py"
"""What runs in the guest when no other program is named."""

DEADLINE_EXIT = 124
"""What timeout(1) returns too."""

BOOT_SECONDS = 300.0
"""A guest that has not come to its first program by then hangs: QEMU 7.2 under TCG stood still once
in some fifty boots, its main loop too."""


STUCK_SECONDS = 90
"""A kernel that says so of its CPUs does not get on any more. Under TCG, QEMU 7.2 can go on with a
translation of code that the kernel has changed since (an int3 that was there for a moment, when a
static key was turned; seen once in some hundred runs)."""

ENDED_BY_ITSELF = (b"Kernel panic", b"reboot: ")
"""What the kernel says when it ends the guest. virtme-run tells the same of a QEMU that died."""

LOOK_SECONDS = 10.0
"""How often the console is looked at."""


class EmulationFailed(Exception):
    """The guest did not boot or its CPUs go round in circles, or its QEMU was at fault and died.

    The last, too, was seen once in some hundred runs: SIGSEGV while a card was plugged.
    """


KERNEL_OPTIONS = [
    "intel_iommu=on",
    "hugepages=64",  # of 2 MiB, half of them on each node
    "mitigations=off",  # costly under TCG, and nothing secret is in here
    # TCG's CPUs share their time stamp counter. The HPET, which the kernel takes otherwise, costs
    # a device access for each look at the clock and doubles the time of everything.
    "tsc=reliable",
    # On a busy host its first ticks come late, and the kernel panics: "timer doesn't work through
    # Interrupt-remapped IO-APIC". A guest of KVM's does not look for them either.
    "no_timer_check",
    # Each udev worker is a fork, and forks are dear under TCG; the default is 26 of them.
    "udev.children_max=3",
    # Loading kvm takes three seconds that few tests need: the fixture inner_kvm loads it.
    "modprobe.blacklist=kvm_amd,kvm_intel",
    "loglevel=5",
    # The sample drivers and vgpu_sim are not part of Debian's signed kernel.
    "module.sig_enforce=0",
]

TCG_CPU = "max,la57=off,pku=off,pks=off,smap=off,smep=off,umip=off,mpx=off"
"""Everything that can be emulated (an inner KVM works), but what each memory access pays for."""

FOUR_VFS = "sriov_max_vfs=4,sriov_vq_flexible=8,sriov_vi_flexible=4,max_ioqpairs=16,msix_qsize=16"
IGB = [
    "-device", "pcie-root-port,id=igb-port,bus=pcie.0,chassis=5,slot=5",
    "-device", "igb,bus=igb-port",
]  # fmt: skip
ROOM_FOR_A_DISPLAY = "mem-reserve=64M,pref64-reserve=256M"


@frozen
class System:
    """The system that the guest runs: this host's own (root is /), or that of a Debian suite."""

    root: Path
    qemu: Path
    python: Path

    @property
    def is_host(self) -> bool:
        """Whether the guest sees the host's files."""
        return self.root == Path("/")


def find_system(sysroot: str, cache: Path) -> System:
    """The suite's system in the cache, or with an empty sysroot the host's."""
    if sysroot:
        return System(Path(sysroot), cache / "qemu-system-x86_64", Path("/usr/bin/python3"))
    qemu = shutil.which("qemu-system-x86_64")
    if qemu is None:
        raise SystemExit("lab: qemu-system-x86_64 is not installed; run tests/lab/run --prepare")
    return System(Path("/"), Path(qemu), TOP / ".venv/bin/python")


def share_options(identity: str, path: Path) -> list[str]:
    """Show a folder to the guest once more: virtme-ng mounts without a cache, `inside` with."""
    access = "security_model=none,readonly=on,multidevs=remap"
    return [
        "-fsdev", f"local,id={identity},path={path},{access}",
        "-device", f"virtio-9p-pci,fsdev={identity},mount_tag={identity}",
    ]  # fmt: skip


def has_igb(system: System) -> bool:
    """Whether this QEMU (8.0 or later) has a network card with SR-IOV."""
    command = [str(system.qemu), "-device", "igb,help"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return "igb options" in answer


def machine_options(system: System, kvm: bool) -> list[str]:
    """QEMU's options for what a host with cards has and virtme-ng's guest has not.

    The guest finds: an IOMMU with interrupt remapping; two NUMA nodes of a CPU and 1.5 GiB each; on
    node 1 an NVMe PF with four VFs; two unbound display functions (cards for vgpu_sim); an empty
    hot-plug slot with room for a display device's memory; a USB keyboard and a USB stick; this
    QEMU's own QMP behind a port.
    """
    return [
        "-machine", "q35,kernel-irqchip=split",
        *([] if kvm else ["-cpu", TCG_CPU]),
        "-device", "intel-iommu,intremap=on,caching-mode=on",
        *share_options("cached", system.root),
        *([] if system.is_host else share_options("host", Path("/"))),
        # Both ends of one socket are this QEMU's: its monitor listens, its serial port connects.
        "-chardev", "socket,id=qmp,path=qmp,server=on,wait=off",
        "-mon", "chardev=qmp,mode=control",
        "-chardev", "socket,id=qmp-port,path=qmp",
        "-device", "virtio-serial-pci",
        "-device", "virtserialport,chardev=qmp-port,name=outer-qmp",
        "-device", "pxb-pcie,id=node1,bus_nr=64,numa_node=1",
        "-device", "pcie-root-port,id=pf-port,bus=node1,chassis=1,slot=1",
        "-device", "nvme-subsys,id=subsys",
        "-device", f"nvme,id=pf,serial=lab,subsys=subsys,bus=pf-port,{FOUR_VFS}",
        "-device", "pcie-root-port,id=card0-port,bus=pcie.0,chassis=2,slot=2",
        "-device", "bochs-display,id=card0,bus=card0-port",
        "-device", "pcie-root-port,id=card1-port,bus=pcie.0,chassis=3,slot=3",
        "-device", "bochs-display,id=card1,bus=card1-port",
        "-device", f"pcie-root-port,id=empty-port,bus=pcie.0,chassis=4,slot=4,{ROOM_FOR_A_DISPLAY}",
        # Last, so that what is plugged has the same address where there is none.
        *(IGB if has_igb(system) else []),
        "-device", "qemu-xhci,id=usb,bus=pcie.0",
        "-device", "usb-kbd,bus=usb.0,port=1",
        "-blockdev", "null-co,node-name=stick,size=16777216,read-zeroes=on",
        "-device", "usb-storage,bus=usb.0,port=2,drive=stick",
    ]  # fmt: skip


def guest_command(
    system: System, kernel: Path, output: Path, mode: str, program: str, kvm: bool
) -> list[str]:
    """The whole virtme-run command line (virtme-ng's lower half: vng adds nothing we need)."""
    image = next(kernel.glob("boot/vmlinux-*"))
    # A copy in the one folder that is there before `inside` has mounted the others.
    shutil.copy(LAB / "inside", output)
    inside = "/run/lab/inside"
    options = [
        *KERNEL_OPTIONS,
        f"arcsup.checkout={TOP}",
        f"arcsup.program={program}",
        f"arcsup.python={system.python}",
        f"arcsup.prefix={sys.base_prefix if system.is_host else '/usr'}",
    ]
    return [
        "virtme-run",
        "--root", str(system.root), "--qemu-bin", str(system.qemu),
        "--kimg", str(image), "--mods", "auto",
        "--disable-microvm", "--force-9p", "--disable-monitor",
        *([] if kvm else ["--disable-kvm"]),
        "--cpus", "2,sockets=2", "--memory", "3G",
        "--numa", "1536M,cpus=0", "--numa", "1536M,cpus=1",
        "--overlay-rwdir", "/etc", "--overlay-rwdir", "/var",
        "--rwdir", f"/run/lab={output}",
        *(f"--kopt={option}" for option in options),
        *(
            ["--shell", inside]
            if mode == "shell"
            else ["--show-boot-console", "--script-sh", inside]
        ),
        "--qemu-opts", *machine_options(system, kvm),
    ]  # fmt: skip


def find_kvm(system: System, kernel: Path, cache: Path) -> bool:
    """Whether a guest under KVM gets to its end: on some machines /dev/kvm is there and it hangs.

    A kernel without a root panics and, with panic=-1, resets; -no-reboot makes that QEMU's end.
    The answer is kept for this boot of the host.
    """
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    answer = cache / f"kvm-{boot_id}"
    if not answer.exists():
        image = next(kernel.glob("boot/vmlinux-*"))
        command = [
            str(system.qemu), "-accel", "kvm", "-cpu", "host", "-m", "512M", "-nographic",
            "-nodefaults", "-no-reboot", "-kernel", str(image), "-append", "panic=-1 quiet",
        ]  # fmt: skip
        works = False
        with contextlib.suppress(subprocess.TimeoutExpired):
            works = subprocess.run(command, capture_output=True, timeout=15).returncode == 0
        answer.write_text("yes" if works else "no")
    return answer.read_text() == "yes"


def run_guest(command: list[str], output: Path, deadline: float) -> int:
    """Run the guest's pytest; its output goes to stdout as it comes, and to OUTPUT/output.txt.

    Raises EmulationFailed when nothing has begun to run within BOOT_SECONDS, when the guest's
    kernel locked up, and when QEMU died.
    """
    console, begun = output / "console.txt", output / "kernel.log"
    begun.unlink(missing_ok=True)  # of a run that failed
    # Ended by timeout(1) or by CI, the guest ends too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with (
        console.open("wb") as errors,
        (output / "output.txt").open("wb") as copy,
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
        ) as guest,
        selectors.DefaultSelector() as selector,
    ):
        assert guest.stdout is not None
        selector.register(guest.stdout, selectors.EVENT_READ)
        started = time.monotonic()

        def time_left() -> float:
            limit = deadline if begun.exists() else min(deadline, BOOT_SECONDS)
            return started + limit - time.monotonic()

        try:
            while (left := time_left()) > 0:
                if not selector.select(min(left, LOOK_SECONDS)):
                    if seconds := find_lockup(console):
                        raise EmulationFailed(f"the guest's CPUs stood still for {seconds} s")
                    continue
                data = os.read(guest.stdout.fileno(), 65536)
                if not data:
                    break
                for target in (sys.stdout.buffer, copy):
                    target.write(data)
                    target.flush()
            else:
                if not begun.exists():
                    raise EmulationFailed(f"the guest did not boot within {BOOT_SECONDS:.0f} s")
                show_tail(f"the guest did not end within {deadline:.0f} s", output)
                return DEADLINE_EXIT
            status = guest.wait(timeout=60)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(guest.pid, signal.SIGKILL)
    if not (output / "finished").exists():
        if not any(words in console.read_bytes() for words in ENDED_BY_ITSELF):
            raise EmulationFailed("the guest's QEMU died")
        show_tail("the guest ended before what it runs did", output)
        return status or 1
    return status


def find_lockup(console: Path) -> int:
    """For how many seconds the kernel says that a CPU has been stuck, 0 when it gets on."""
    stuck = re.findall(rb"BUG: soft lockup - CPU#\d+ stuck for (\d+)s!", console.read_bytes())
    longest = max(map(int, stuck), default=0)
    return longest if longest >= STUCK_SECONDS else 0


def show_tail(what: str, output: Path) -> None:
    """Say what happened and show the kernel's last words."""
    sys.stderr.write(f"\nlab: {what}; the last lines of its console and kernel log:\n")
    for name in ("console.txt", "kernel.log"):
        path = output / name
        if path.exists():
            lines = path.read_text(errors="replace").splitlines()[-30:]
            sys.stderr.write("\n".join([f"--- {path}", *lines, ""]))


def main() -> int:
    parser = argparse.ArgumentParser()
    for option in ("--kernel", "--output", "--cache"):
        parser.add_argument(option, type=Path, required=True)
    parser.add_argument("--mode", choices=["pytest", "shell"], required=True)
    parser.add_argument("--program", default="")
    parser.add_argument("--deadline", type=float, required=True)
    parser.add_argument("--sysroot", required=True)
    parser.add_argument("pytest", nargs="*")
    arguments = parser.parse_args()
    output: Path = arguments.output.resolve()
    output.parent.mkdir(parents=True, exist_ok=True)
    lock = output.with_suffix(".lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)  # another run in this folder ends first
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    pytest = [*arguments.pytest, *(["--color=yes"] if sys.stdout.isatty() else [])]
    (output / "arguments").write_text("".join(f"{argument}\0" for argument in pytest))
    system = find_system(arguments.sysroot, arguments.cache)
    kvm = find_kvm(system, arguments.kernel, arguments.cache)
    program = arguments.program or PYTEST
    command = guest_command(system, arguments.kernel, output, arguments.mode, program, kvm)
    (output / "command.txt").write_text(shlex.join(command) + "\n")
    os.chdir(output)  # where the QMP socket is made: its path may have 107 bytes at most
    if arguments.mode == "shell":
        return subprocess.call(command)
    for again in ("it is tried once more", "twice"):
        try:
            return run_guest(command, output, arguments.deadline)
        except EmulationFailed as fault:
            show_tail(f"{fault}; {again}", output)
    return DEADLINE_EXIT


if __name__ == "__main__":
    sys.exit(main())
