"""The JSON that goes over the control socket, key by key: what programs and the CLI rely on.

Only typing is imported here, so that client verbs start fast. control/views.py makes these from
values, control/openapi.py describes them.
"""

from typing import Any, NotRequired, TypedDict


class SliceJson(TypedDict):
    """What one GPU request of a VM got."""

    kind: str
    type: str | None
    id: str
    parent: str | None
    vramMiB: int | None


LastExitJson = TypedDict(
    "LastExitJson",
    {
        "class": str,
        "code": int | None,
        "signal": int | None,
        "at": str,
        "detail": str,
        "forced": bool,
    },
)
"""How the last QEMU ended; ``detail`` says what it took or what QEMU said, ``forced`` that the
guest was to power down and did not."""


class ConditionJson(TypedDict):
    """One statement about a VM that is true or false, since when, and why."""

    type: str
    status: bool
    reason: str
    message: str
    since: str


class EventJson(TypedDict):
    """Something that happened; ``vm`` is null for the daemon and the host."""

    time: str
    vm: str | None
    kind: str
    message: str
    data: dict[str, Any]


class ViewingJson(TypedDict):
    """How a running VM can be looked at: a display on a socket or a port, and shared frames."""

    display: str
    socket: str
    address: str
    port: int | None
    frames: list[str]


class VmJson(TypedDict):
    """One VM as ``list`` shows it; ``mode`` are the switches it was started with."""

    name: str
    state: str
    reason: str
    since: str
    pid: int | None
    restarts: int
    gpus: list[SliceJson]
    file: str
    pending: bool
    mode: list[str]


class CgroupJson(TypedDict):
    """The control group of a VM's programs and what they may take; null is no limit."""

    path: str
    memoryMax: int | None
    tasksMax: int


class StatusJson(VmJson):
    """One VM as ``status`` shows it; ``pendingKeys`` are what differs in the file."""

    uuid: str | None
    qmpSocket: str
    monitorSocket: str
    consoleSocket: str
    argv: list[str]
    numaNode: int | None
    adopted: bool
    cgroup: CgroupJson | None
    lastExit: LastExitJson | None
    nextTry: str | None
    viewing: ViewingJson | None
    pendingKeys: list[str]
    conditions: list[ConditionJson]
    events: list[EventJson]


class WhyLinkJson(TypedDict):
    """One link of the chain to the cause."""

    what: str
    because: str
    since: str | None
    nextAction: str
    at: str | None


class WhyJson(TypedDict):
    """The answer to ``why``."""

    name: str
    state: str
    asDesired: bool
    chain: list[WhyLinkJson]


class StepJson(TypedDict):
    """One planned action."""

    verb: str
    object: str
    because: str


class ReportJson(TypedDict):
    """The daemon itself; ``findings`` is what is wrong beside single VMs."""

    version: str
    pid: int
    uptimeSeconds: float
    places: dict[str, str]
    system: bool
    findings: list[str]


class ErrorBodyJson(TypedDict):
    """What went wrong, a word for programs and a line for people, and what to do now."""

    code: str
    message: str
    hint: str


class ErrorJson(TypedDict):
    """The body of every answer that is not a success."""

    error: ErrorBodyJson


class StartJson(TypedDict, total=False):
    """How one run is to differ from what the file asks for; all false: as the file says."""

    preinstall: bool
    safeMode: bool
    disableGpu: bool


class AnswersJson(TypedDict, total=False):
    """What an installer is to find: ``files`` by name on a medium ``label``, or a ``preseed``."""

    label: str
    files: dict[str, str]
    preseed: str


class InstallJson(TypedDict):
    """What to install from: the images in the drives, the installer's first; the disk's size.

    ``base`` is a cloud image that the disk is laid over; then ``media`` may be empty.
    """

    media: list[str]
    sizeMiB: int
    base: NotRequired[str]
    answers: NotRequired[AnswersJson]


class SubmitJson(StartJson):
    """Asks for a VM from a file: its path and its text. ``install`` makes its disk first."""

    file: str
    source: str
    install: NotRequired[InstallJson]


class QmpJson(TypedDict):
    """A QMP command; ``arguments`` may be left out."""

    execute: str
    arguments: NotRequired[dict[str, Any]]


QmpReturnJson = TypedDict("QmpReturnJson", {"return": Any})
"""What QEMU returned."""


class CloneJson(TypedDict):
    """What is copied, and where to: absolute paths."""

    disk: str
    target: str


class DoneJson(TypedDict):
    """Nothing to tell but that it is done."""

    done: bool


class ReloadedJson(TypedDict):
    """All files were read; ``later`` are keys of arcsup.yaml that the next daemon will take."""

    done: bool
    later: list[str]


class GpuTypeJson(TypedDict):
    """A type that a card offers; ``available`` null: not known, ``max`` null: not told."""

    id: str
    name: str
    vramMiB: int | None
    available: int | None
    max: int | None
    deviceApi: str
    parent: str
    backend: NotRequired[str]


class GpuSliceJson(TypedDict):
    """What is cut from a card; ``owner`` is who else made it, ``holders`` the pids that use it."""

    kind: str
    id: str
    type: str | None
    vm: str | None
    ours: bool
    backend: NotRequired[str]
    parent: NotRequired[str]
    path: NotRequired[str]
    owner: NotRequired[str]
    holders: NotRequired[list[int]]
    iommuGroup: NotRequired[int | None]
    vramMiB: NotRequired[int | None]


FunctionJson = TypedDict(
    "FunctionJson",
    {
        "address": str,
        "driver": str | None,
        "iommuGroup": int | None,
        "path": str,
        "blockers": list[str],
        "vramMiB": NotRequired[int | None],
        "class": NotRequired[str],
    },
)
"""A PCI function beside the card's own; ``blockers`` keep its group from being handed out."""


class GroupJson(TypedDict):
    """An IOMMU group: handed out as a whole or not at all.

    ``mates`` are the cards that a VM must ask for, too; then there are no blockers.
    """

    number: int
    members: list[str]
    viable: bool
    blockers: list[str]
    mates: NotRequired[list[str]]


class VfsJson(TypedDict):
    """A card's virtual functions: how many it can have, and those that are there.

    ``type`` is what its driver calls them, "" where it has no name for them.
    """

    total: int
    enabled: int
    type: NotRequired[str]
    functions: NotRequired[list[FunctionJson]]


GpuJson = TypedDict(
    "GpuJson",
    {
        "address": str,
        "vendor": str,
        "device": str,
        "subsystem": str,
        "name": str,
        "class": str,
        "driver": str | None,
        "numaNode": int | None,
        "iommuGroup": int | None,
        "backends": list[str],
        "vfs": VfsJson,
        "types": list[GpuTypeJson],
        "slices": list[GpuSliceJson],
        "usable": bool,
        "why": str,
        "path": NotRequired[str],
        "subsystemName": NotRequired[str],
        "localCpus": NotRequired[str],
        "group": NotRequired[GroupJson | None],
        "companions": NotRequired[list[FunctionJson]],
        "staying": NotRequired[list[FunctionJson]],
        "resetMethods": NotRequired[list[str]],
        "withoutReset": NotRequired[list[str]],
        "bootVga": NotRequired[bool],
        "inUseByHost": NotRequired[str],
        "hostUse": NotRequired[list[str]],
        "rule": NotRequired[str],
        "offers": NotRequired[list[GpuTypeJson]],
    },
)
"""One card. ``types`` has each type once; ``offers`` each parent's, where that says more."""


class TypeVerdictJson(TypedDict):
    """One type of one card for one slot of a VM; ``type`` is "" for a card as a whole."""

    slot: int
    card: str
    type: str
    name: str
    vramMiB: int | None
    chosen: bool
    why: str


class AdoptJson(TypedDict):
    """Asks for a slice that exists to become a VM's."""

    id: str
    vm: str


class SliceIdJson(TypedDict):
    """Names a slice."""

    id: str


class NumaNodeJson(TypedDict):
    """A NUMA node; ``cpus`` as the kernel writes them: 0-3,8."""

    id: int
    cpus: str
    memoryMiB: int


class NetworkVfJson(TypedDict):
    """A virtual function of a network card; ``why``: why nobody can have it, "" when one can.

    ``reserved``: why only a request that names it can.
    """

    address: str
    iommuGroup: int | None
    vm: str | None
    why: str
    reserved: NotRequired[str]


class NetworkCardJson(TypedDict):
    """A network card that can have virtual functions, and ``functions``, those that it has."""

    address: str
    vendor: str
    device: str
    driver: str | None
    numaNode: int | None
    vfsTotal: int
    functions: list[NetworkVfJson]


class InventoryJson(TypedDict):
    """All that planning for a host needs to know of it; ``faults`` is what could not be read."""

    version: int
    host: str
    gpus: list[GpuJson]
    iommu: bool
    numa: list[NumaNodeJson]
    kernel: NotRequired[str]
    faults: NotRequired[list[str]]
    networkCards: NotRequired[list[NetworkCardJson]]
