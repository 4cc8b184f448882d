"""The daemon's configuration, arcsup.yaml: the same reader, the same faults as a VM file."""

import re
from collections.abc import Iterable, Sequence
from enum import StrEnum
from pathlib import Path

from attrs import frozen

from arcsup.devices import VfQuota
from arcsup.model import Seconds
from arcsup.spec.codec import Choice, Flag, Items, Json, Number, Text, Token
from arcsup.spec.faults import Fault, Problem, Problems, error_of, place
from arcsup.spec.nodes import Node, compose, locate
from arcsup.spec.rules import USB_PORT, parse_usb_port
from arcsup.spec.struct import Key, Struct, Words
from arcsup.spec.tables import DURATION_TOKEN, SIZE_TOKEN
from arcsup.spec.units import (
    DURATION,
    HEX_ID,
    PCI_ADDRESS,
    parse_device_id,
    parse_duration,
    parse_pci_address,
    show_duration,
)

RESYNC = Seconds(30.0)


class OnExit(StrEnum):
    """What happens to running VMs when the daemon is asked to end."""

    LEAVE = "leave"
    STOP = "stop"


class LogLevel(StrEnum):
    """The least important messages that are logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class Placement(StrEnum):
    """Which card a slice is taken from: the fullest that has room, or the emptiest."""

    PACK = "pack"
    SPREAD = "spread"


class Isolation(StrEnum):
    """Whom the QEMUs of the system's daemon run as: all as one user, or each as its own."""

    SHARED = "shared"
    PER_VM = "per-vm"


@frozen
class GpuPolicy:
    """What may be done with the GPUs that ``match``: a PCI address, ``VENDOR[:DEVICE]``, ``*``.

    ``vfs`` None leaves the number of virtual functions as it is; it is for network cards too, when
    ``match`` is their address or VENDOR:DEVICE. ``mixed_sizes`` lets vGPU types
    of several sizes share a card. ``vf_quota`` is what each virtual function of an Intel card may
    use.
    """

    match: str
    exclude: bool = False
    vfs: int | None = None
    mixed_sizes: bool = False
    vf_quota: VfQuota | None = None


@frozen
class UsbPolicy:
    """What may be done with the USB devices that ``match``: VENDOR[:PRODUCT], BUS-PORT, ``*``.

    No VM gets those that are excluded; ``force`` gives them though the host uses them.
    """

    match: str
    exclude: bool = False
    force: bool = False


@frozen
class Config:
    """The daemon's configuration. A directory that is None has the place's own default.

    ``group`` owns the control socket, ``monitoring_group`` the one for reading, which there is only
    with it. ``viewer`` is the user who looks at VMs; None is the daemon's
    own. ``user`` is whom QEMU runs as where the daemon is root; None is the default one.
    ``iommufd`` False gives devices by IOMMU groups though they could go by iommufd.
    ``image_dirs`` are where a VM's files may be beside the images directory. ``start_limit`` is
    how many VMs may be starting at once;
    None is twice the CPUs of the host.
    """

    vm_dir: Path | None = None
    runtime_dir: Path | None = None
    state_dir: Path | None = None
    log_dir: Path | None = None
    sysfs_root: Path | None = None
    group: str | None = None
    viewer: str | None = None
    on_exit: OnExit = OnExit.LEAVE
    resync: Seconds = RESYNC
    log_level: LogLevel = LogLevel.INFO
    start_limit: int | None = None
    placement: Placement = Placement.PACK
    gpus: tuple[GpuPolicy, ...] = ()
    monitoring_group: str | None = None
    user: str | None = None
    isolation: Isolation = Isolation.SHARED
    image_dirs: tuple[Path, ...] = ()
    iommufd: bool = True
    usb: tuple[UsbPolicy, ...] = ()


def _parse_usb_match(text: str) -> str:
    bus, dash, port = text.partition("-")
    if text == "*":
        return text
    try:
        if not dash:
            return _parse_ids(text)
        if re.fullmatch(r"[1-9][0-9]{0,2}", bus):
            return f"{bus}-{parse_usb_port(port)}"
    except ValueError:
        pass
    raise ValueError("expected *, ids such as 046d:c52b, or BUS-PORT such as 1-2.3")


def _parse_ids(text: str) -> str:
    vendor, colon, device = text.partition(":")
    return ":".join([parse_device_id(vendor), *([parse_device_id(device)] if colon else [])])


def _parse_match(text: str) -> str:
    if text == "*":
        return text
    try:
        return parse_pci_address(text)
    except ValueError:
        try:
            return _parse_ids(text)
        except ValueError:
            raise ValueError("expected *, a PCI address, or ids such as 10de:2230") from None


def _parse_directory(text: str) -> Path:
    if not text.startswith("/") or not text.isprintable():
        raise ValueError("expected an absolute path")
    return Path(text)


def _parse_resync(text: str) -> Seconds:
    length = DURATION_TOKEN.parse(text)
    if length < 1:
        raise ValueError("expected at least 1s")
    return length


NAME_PATTERN = r"[A-Za-z_][A-Za-z0-9_.-]{0,31}"
"""A user or a group (useradd(8))."""

DIRECTORY = Token("an absolute path", r"/.*", _parse_directory)


def _parse_milliseconds(text: str) -> int:
    return round(parse_duration(text) * 1000)


def _parse_microseconds(text: str) -> int:
    return _parse_milliseconds(text) * 1000


VF_QUOTA = Struct(
    VfQuota,
    (
        Key("vRam", SIZE_TOKEN, "video memory", "vram_mib"),
        Key(
            "execQuantum",
            Token(
                "a duration",
                DURATION,
                _parse_milliseconds,
                lambda number: show_duration(number / 1000),
                number=True,
            ),
            "its turn on an engine",
            "exec_quantum_ms",
        ),
        Key(
            "preemptTimeout",
            Token(
                "a duration",
                DURATION,
                _parse_microseconds,
                lambda number: show_duration(number / 1_000_000),
                number=True,
            ),
            "how long it may keep the engine after its turn",
            "preempt_timeout_us",
        ),
    ),
)

GPU_POLICY = Struct(
    GpuPolicy,
    (
        Key(
            "match",
            Token(
                "a PCI address, VENDOR[:DEVICE] or *",
                rf"\*|{PCI_ADDRESS}|{HEX_ID}(:{HEX_ID})?",
                _parse_match,
                number=True,
            ),
            "which GPUs: a PCI address, ids such as `10de:2230`, or `*`",
            required=True,
        ),
        Key("exclude", Flag(), "never touch them"),
        Key("vfs", Words(Number(0, 65535), words={"leave": None}), "virtual functions to have"),
        Key("mixedSizes", Flag(), "vGPU types of several sizes may share a card"),
        Key("vfQuota", VF_QUOTA, "what each virtual function of an Intel card may use"),
    ),
)

USB_POLICY = Struct(
    UsbPolicy,
    (
        Key(
            "match",
            Token(
                "VENDOR[:PRODUCT], BUS-PORT or *",
                rf"\*|{HEX_ID}(:{HEX_ID})?|[1-9][0-9]{{0,2}}-{USB_PORT}",
                _parse_usb_match,
                number=True,
            ),
            "which USB devices: ids such as `046d:c52b`, a place such as `1-2.3`, or `*`",
            required=True,
        ),
        Key("exclude", Flag(), "never give them to a VM"),
        Key("force", Flag(), "give them though the host uses them"),
    ),
)

CONFIG = Struct(
    Config,
    (
        Key("vmDir", DIRECTORY, "directory of the VM files"),
        Key("runtimeDir", DIRECTORY, "sockets, and a runtime folder for each VM"),
        Key("stateDir", DIRECTORY, "images, operator intent, ownership journal"),
        Key("logDir", DIRECTORY, "logs of the VMs"),
        Key("sysfsRoot", DIRECTORY, "the kernel's device tree"),
        Key(
            "group",
            Text("a group's name", pattern=NAME_PATTERN),
            "group that may use the control socket",
        ),
        Key(
            "monitoringGroup",
            Text("a group's name", pattern=NAME_PATTERN),
            "group that may use the socket for reading; without it there is none",
        ),
        Key(
            "viewer",
            Text("a user's name", pattern=NAME_PATTERN),
            "user who owns the frames, the sound and the screens of VMs; the daemon's by default",
        ),
        Key(
            "user",
            Text("a user's name", pattern=NAME_PATTERN),
            "user that QEMU runs as where the daemon is root",
        ),
        Key("isolation", Choice(Isolation), "one user for all VMs (shared), or one each (per-vm)"),
        Key("imageDirs", Items(DIRECTORY), "further folders whose files VMs may have"),
        Key("iommufd", Flag(), "devices go to VMs by iommufd where QEMU and the kernel have it"),
        Key("onExit", Choice(OnExit), "what happens to running VMs when the daemon ends"),
        Key(
            "resync",
            Token("a duration", DURATION_TOKEN.pattern, _parse_resync, DURATION_TOKEN.show, True),
            "longest time between two looks at everything",
        ),
        Key("logLevel", Choice(LogLevel), "least important messages that are logged"),
        Key(
            "startLimit",
            Words(Number(1, 10_000), words={"auto": None}),
            "VMs that may be starting at once; auto is twice the CPUs of the host",
        ),
        Key("placement", Choice(Placement), "take slices from the fullest or the emptiest card"),
        Key("gpus", Items(GPU_POLICY), "what may be done with which GPUs; the first match counts"),
        Key("usb", Items(USB_POLICY), "which USB devices VMs may have; the first match counts"),
    ),
)


def read_config(source: str | bytes, file: Path) -> Config:
    """Return the configuration that a file's text holds. Raises SpecError with all faults.

    A file in which everything is commented out is as good as none.
    """
    try:
        return CONFIG.read(compose(source, may_be_empty=True), "")
    except Problems as found:
        raise error_of(place(found.problems, file)) from None


def place_entries(
    found: Iterable[tuple[str, str]], file: Path, entries: Sequence[object]
) -> tuple[Fault, ...]:
    """Return what is told of entries of ``gpus`` or ``usb`` (path, message) with their places.

    Where the file does not hold just these entries any more, it is told of the file.
    """
    found = tuple(found)
    root = _read_again(file, entries) if found else None
    if root is None:
        return tuple(Fault(file, 1, 1, path, message) for path, message in found)
    return place((Problem(locate(root, path), path, what) for path, what in found), file)


def _read_again(file: Path, entries: Sequence[object]) -> Node | None:
    try:
        root = compose(file.read_bytes(), may_be_empty=True)
        known = CONFIG.read(root, "")
    except (OSError, Problems):
        return None
    return root if tuple(entries) in (known.gpus, known.usb) else None


def load_config(file: Path) -> Config:
    """Return the configuration of a file, the defaults when there is none. Raises SpecError."""
    try:
        source = file.read_bytes()
    except FileNotFoundError:
        return Config()
    except OSError as error:
        message = f"cannot be read: {error.strerror}"
        raise error_of(place(Problems.whole(message).problems, file)) from None
    return read_config(source, file)


_FOR_LATER = (
    "vmDir", "runtimeDir", "stateDir", "logDir", "sysfsRoot", "group", "viewer", "onExit",
    "logLevel",
)  # fmt: skip


def find_changes_for_later(old: Config, new: Config) -> tuple[str, ...]:
    """Return the keys that differ, and that a daemon takes only when it starts."""
    before, after = config_to_native(old), config_to_native(new)
    return tuple(key for key in _FOR_LATER if before.get(key) != after.get(key))


def config_to_native(config: Config) -> dict[str, Json]:
    """Return the configuration in the file's own keys, defaults filled in."""
    written = CONFIG.write(config)
    assert isinstance(written, dict)
    return written
