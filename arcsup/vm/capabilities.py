"""What a QEMU binary can do, asked from the binary itself and remembered until it changes.

Version numbers lie: distributions leave out devices and split others into packages. So the lists
that QEMU prints of itself decide. They cost five short processes, once per binary; the answer is
kept on disk under the binary's path, time of change and size.
"""

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Set as AbstractSet
from contextlib import suppress
from pathlib import Path

import cattrs
import trio
from attrs import field, frozen

from arcsup.errors import ArcsupError, Terminal
from arcsup.host.trust import find_distrust
from arcsup.model import Vm
from arcsup.vm.programs import last_words, run_program

SECONDS_PER_QUESTION = 60.0
"""One list takes 0.04 to 0.12 s; a cold disk or a hundred siblings make it slower."""

QEMU_BINARIES = (
    Path("/usr/bin/qemu-system-x86_64"),
    Path("/usr/local/bin/qemu-system-x86_64"),
    Path("/usr/libexec/qemu-kvm"),  # RHEL and its kin
)
INSTALL_HINT = "install QEMU: qemu-system-x86 (Debian, Ubuntu, Fedora), qemu-kvm (RHEL)"

_VERSION = re.compile(r"QEMU emulator version (\d+)\.(\d+)\.(\d+)")

OPTIONS = frozenset({"action", "msg", "no-hpet", "run-with", "runas", "sandbox"})
NETDEVS = frozenset({"bridge", "tap", "user"})
OBJECTS = frozenset({"iommufd", "memory-backend-memfd", "rng-builtin", "thread-context"})
DISPLAYS = frozenset({"egl-headless", "gtk"})
AUDIODEVS = frozenset({"pa", "pipewire", "spice"})
DEVICES = frozenset(
    {
        "VGA",
        "e1000e",
        "hda-duplex",
        "ich9-intel-hda",
        "ivshmem-plain",
        "nvme",
        "pvpanic",
        "pvpanic-pci",
        "rtl8139",
        "tpm-crb",
        "usb-host",
        "usb-redir",
        "vfio-pci",
        "vfio-pci-nohotplug",
        "vhost-user-fs-pci",
        "virtio-9p-pci",
        "virtio-gpu-gl-pci",
        "virtio-gpu-pci",
        "virtio-vga",
        "virtio-vga-gl",
    }
)
"""What is asked about; everything else that arcsup uses is in every QEMU since 7.2."""


@frozen
class Capabilities:
    """What one QEMU binary has, of the things that differ between QEMUs."""

    version: tuple[int, int, int]
    options: frozenset[str] = field(factory=frozenset)
    netdevs: frozenset[str] = field(factory=frozenset)
    devices: frozenset[str] = field(factory=frozenset)
    objects: frozenset[str] = field(factory=frozenset)
    displays: frozenset[str] = field(factory=frozenset)
    audiodevs: frozenset[str] = field(factory=frozenset)

    @property
    def spice(self) -> bool:
        """Whether SPICE was built in; its sound driver is the one part that is always listed."""
        return "spice" in self.audiodevs

    def require_device(self, name: str, hint: str = "") -> None:
        """Raise Terminal when the binary has no device of that name."""
        if name not in self.devices:
            raise Terminal(
                f"this QEMU ({self.version_text}) has no device {name}",
                hint=hint or "install the QEMU package that has it, or set qemu.binary",
            )

    @property
    def version_text(self) -> str:
        """The version as people write it."""
        return ".".join(str(part) for part in self.version)


@frozen
class _Remembered:
    """A cached answer and the binary that gave it."""

    binary: str
    mtime_ns: int
    size: int
    capabilities: Capabilities


_asking = trio.Lock()

_in_memory: dict[tuple[str, int, int], Capabilities] = {}
"""What was read from the cache: reading it takes 4 ms, which a hundred VMs would feel."""


def find_qemu(vm: Vm, candidates: tuple[Path, ...] = QEMU_BINARIES) -> Path:
    """Return the QEMU that is to run a VM: ``qemu.binary`` of its file, else the system's.

    Raises:
        Terminal: there is none, or the one asked for cannot be run.
    """
    if vm.qemu.binary is None:
        for candidate in candidates:
            if os.access(candidate, os.X_OK):
                return candidate
        raise Terminal("no QEMU is installed", hint=INSTALL_HINT)
    binary = Path(vm.qemu.binary)
    if not binary.is_absolute():
        raise Terminal(f"qemu.binary: {binary} is no absolute path", hint="write the whole path")
    if not binary.is_file() or not os.access(binary, os.X_OK):
        raise Terminal(f"qemu.binary: {binary} is no program", hint=INSTALL_HINT)
    # It is asked what it can do, and that as root.
    if os.geteuid() == 0 and (why := find_distrust(binary)):
        raise Terminal(f"qemu.binary: {why}", hint="use one that only root can change")
    return binary


async def probe_capabilities(binary: Path, cache: Path) -> Capabilities:
    """Return what a binary can do, from the cache folder when the binary is unchanged.

    Raises:
        Terminal: the binary is missing, cannot be run or is no QEMU.
        Transient: it did not answer in time.
    """
    try:
        # What is installed may be a link; the package behind it is what changes.
        status = binary.stat()
    except OSError as error:
        raise Terminal(f"{binary}: {error.strerror}", hint=INSTALL_HINT) from error
    key = (str(binary), status.st_mtime_ns, status.st_size)
    # Many VMs may start at once: the first one asks, the others find its answer.
    async with _asking:
        if (found := _in_memory.get(key)) is None:
            found = _in_memory[key] = await _find_out(binary, key, cache)
        return found


async def _find_out(binary: Path, key: tuple[str, int, int], cache: Path) -> Capabilities:
    file = cache / f"qemu-{hashlib.sha256(os.fsencode(binary)).hexdigest()[:16]}.json"
    known = _recall(file)
    if known is not None and (known.binary, known.mtime_ns, known.size) == key:
        return known.capabilities
    capabilities = await ask_binary(binary)
    answer = _Remembered(*key, capabilities)
    # A cache that cannot be written costs 0.2 s next time; it must not stop a VM.
    with suppress(OSError):
        _remember(file, answer)
    return capabilities


async def ask_binary(binary: Path) -> Capabilities:
    """Ask a binary for its lists, all at once. Raises as ``probe_capabilities``."""
    answers: dict[str, str] = {}
    faults: list[ArcsupError] = []

    async def ask(*question: str) -> None:
        try:
            answers[question[0]] = await _ask(binary, question)
        except ArcsupError as error:
            faults.append(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, "-help")
        for subject in ("-device", "-object", "-display", "-audiodev"):
            nursery.start_soon(ask, subject, "help")
    if faults:
        raise faults[0]
    return parse_answers(binary, answers)


def parse_answers(binary: Path, answers: dict[str, str]) -> Capabilities:
    """Return the capabilities told by QEMU's lists, keyed by the option that prints each."""
    usage = answers["-help"]
    version = _VERSION.search(usage)
    if version is None:
        raise Terminal(f"{binary} does not say that it is a QEMU", hint=INSTALL_HINT)
    options = frozenset(re.findall(r"^-([a-z-]+)\b", usage, re.MULTILINE))
    netdevs = frozenset(re.findall(r"^-netdev ([a-z-]+),", usage, re.MULTILINE))
    devices = frozenset(re.findall(r'^name "([^"]+)"', answers["-device"], re.MULTILINE))
    return Capabilities(
        version=(int(version[1]), int(version[2]), int(version[3])),
        options=options & OPTIONS,
        netdevs=netdevs & NETDEVS,
        devices=devices & DEVICES,
        objects=_words(answers["-object"]) & OBJECTS,
        displays=_words(answers["-display"]) & DISPLAYS,
        audiodevs=_words(answers["-audiodev"]) & AUDIODEVS,
    )


def _words(text: str) -> frozenset[str]:
    """Return the entries of a list that has one name per line."""
    return frozenset(line.strip() for line in text.splitlines())


async def _ask(binary: Path, question: tuple[str, ...]) -> str:
    argv = (str(binary), *question)
    finished = await run_program(argv, seconds=SECONDS_PER_QUESTION, hint=INSTALL_HINT)
    if finished.returncode != 0:
        raise Terminal(
            f"{' '.join(argv)} ended with {finished.returncode}: {last_words(finished.stderr)}",
            hint="run it by hand; a broken or half-upgraded package is the usual cause",
        )
    return finished.stdout.decode(errors="replace")


def _recall(file: Path) -> _Remembered | None:
    """Return a remembered answer; None when there is none, or an older arcsup wrote it."""
    try:
        answer = json.loads(file.read_bytes())
        # cattrs takes it for granted that an object is one.
        return _converter().structure(answer, _Remembered) if isinstance(answer, dict) else None
    except (OSError, ValueError, cattrs.BaseValidationError):
        return None


def _remember(file: Path, answer: _Remembered) -> None:
    # A state directory that is not there is made by the daemon, with rights of its choice.
    file.parent.mkdir(mode=0o700, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=file.parent, suffix=".json", delete=False) as stream:
        json.dump(_converter().unstructure(answer), stream, indent=2)
    Path(stream.name).replace(file)


def _converter() -> cattrs.Converter:
    # Sorted, so that the same binary gives the same file.
    return cattrs.Converter(
        forbid_extra_keys=True, unstruct_collection_overrides={AbstractSet: sorted}
    )


def dump_capabilities(capabilities: Capabilities) -> str:
    """Return capabilities as JSON text."""
    return json.dumps(_converter().unstructure(capabilities), indent=2) + "\n"


def load_capabilities(text: str) -> Capabilities:
    """Return the capabilities that ``dump_capabilities`` wrote."""
    return _converter().structure(json.loads(text), Capabilities)
