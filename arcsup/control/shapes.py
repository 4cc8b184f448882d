"""The JSON that goes over the control socket, key by key: what programs and the CLI rely on.

Only typing is imported here, so that client verbs start fast. control/views.py makes these from
values, control/openapi.py describes them.
"""

from typing import Any, TypedDict


class SliceJson(TypedDict):
    """What one GPU request of a VM got."""

    kind: str
    type: str | None
    id: str
    parent: str | None
    vramMiB: int | None


LastExitJson = TypedDict(
    "LastExitJson",
    {"class": str, "code": int | None, "signal": int | None, "at": str, "detail": str},
)
"""How the last QEMU ended; ``detail`` says what it took or what QEMU said."""


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


class VmJson(TypedDict):
    """One VM as ``list`` shows it."""

    name: str
    state: str
    reason: str
    since: str
    pid: int | None
    restarts: int
    gpus: list[SliceJson]
    file: str
    pending: bool


class StatusJson(VmJson):
    """One VM as ``status`` shows it; ``pendingKeys`` are what differs in the file."""

    uuid: str | None
    qmpSocket: str
    monitorSocket: str
    consoleSocket: str
    argv: list[str]
    numaNode: int | None
    adopted: bool
    lastExit: LastExitJson | None
    nextTry: str | None
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


class SubmitJson(TypedDict):
    """Asks for a VM from a file that is not in the VM directory: its path and its text."""

    file: str
    source: str


class SubmittedJson(TypedDict):
    """The name of the VM that a submitted file made."""

    name: str


class QmpJson(TypedDict, total=False):
    """A QMP command; ``arguments`` may be left out."""

    execute: str
    arguments: dict[str, Any]


QmpReturnJson = TypedDict("QmpReturnJson", {"return": Any})
"""What QEMU returned."""


class DoneJson(TypedDict):
    """Nothing to tell but that it is done."""

    done: bool
