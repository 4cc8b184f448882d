"""What is added to a guest's CPU model, each with its reason and where that is written.

What guests with a GPU of the host want is mostly here. Two things are not because they need no
switch: no VM has a memory balloon (a device's DMA pins all guest memory, so QEMU refuses to give
any of it back: qemu's hw/virtio/virtio-balloon.c, docs/devel/vfio), and ``host`` and ``max`` have
the host's number of address bits, without which large BARs would not fit.
"""

from collections.abc import Iterator

from attrs import frozen

from arcsup.model import Vm
from arcsup.vm.options import AccelName


@frozen
class Feature:
    """One property of QEMU's CPU, such as ``hv-time=on``.

    ``why`` is for people who ask what it is for, ``source`` says where that is from, ``needs``
    are the features that it cannot do without.
    """

    name: str
    value: str
    why: str
    source: str
    needs: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The property as it stands on the command line."""
        return f"{self.name}={self.value}"


_HYPERV = "qemu docs/system/i386/hyperv.rst"

ENLIGHTENMENTS = (
    Feature("hv-relaxed", "on", "Windows does not take a delayed virtual CPU for a hang", _HYPERV),
    Feature("hv-vapic", "on", "interrupts end without leaving the guest", _HYPERV),
    Feature(
        "hv-spinlocks",
        "0x1fff",
        "Windows gives the CPU up after so many spins on a lock whose holder does not run",
        _HYPERV,
    ),
    Feature("hv-time", "on", "Windows reads the time from memory, not from a device", _HYPERV),
    Feature("hv-vpindex", "on", "Windows knows its virtual CPUs by number", _HYPERV),
    Feature("hv-runtime", "on", "Windows sees how long a virtual CPU really ran", _HYPERV),
    Feature(
        "hv-synic",
        "on",
        "events reach the guest as messages; what hv-stimer tells is one",
        _HYPERV,
        needs=("hv-vpindex",),
    ),
    Feature(
        "hv-stimer",
        "on",
        "Windows sets timers of the hypervisor; without them it polls",
        _HYPERV,
        needs=("hv-vpindex", "hv-synic", "hv-time"),
    ),
    Feature(
        "hv-tlbflush",
        "on",
        "one call flushes the TLBs of all virtual CPUs, also of those that do not run",
        _HYPERV,
        needs=("hv-vpindex",),
    ),
    Feature(
        "hv-ipi", "on", "one call interrupts many virtual CPUs", _HYPERV, needs=("hv-vpindex",)
    ),
    Feature(
        "hv-frequencies", "on", "Windows asks for the clock's frequency, not measures it", _HYPERV
    ),
)
"""What Windows asks a hypervisor for; Linux prefers KVM's own and leaves them alone."""

HIDING = (
    Feature(
        "kvm",
        "off",
        "no KVM signature: NVIDIA's GeForce drivers before 465 stop with code 43 when they see it",
        "NVIDIA support 5173, GeForce GPU passthrough; qemu target/i386/cpu.c, property kvm",
    ),
    Feature(
        "hypervisor",
        "off",
        "the CPUID bit that says virtual, by which other software looks for it; Windows then uses"
        " no enlightenment, so there are none",
        "Intel SDM volume 2, CPUID leaf 1, ECX bit 31",
    ),
)
"""What ``hideHypervisor`` does."""

SIBLINGS = Feature(
    "topoext",
    "on",
    "without it an AMD guest takes its threads for cores, whatever -smp says",
    "AMD APM volume 3, CPUID 8000_001E; qemu target/i386/cpu.c warns of it",
)


def cpu_features(vm: Vm, accel: AccelName, host_flags: frozenset[str]) -> Iterator[Feature]:
    """Yield what is added to the VM's CPU model; ``host_flags`` are those of /proc/cpuinfo."""
    if vm.hide_hypervisor:
        yield from HIDING
    elif accel == "kvm":
        yield from ENLIGHTENMENTS
    # Models by name have it where it belongs; the host's own leaves it out unless told.
    named = vm.cpus.model.partition(",")[0] != "host"
    if accel == "kvm" and vm.cpus.threads > 1 and "topoext" in host_flags and not named:
        yield SIBLINGS
