"""NVIDIA's Xids: which of them mean that a card cannot be used any more. A table, and how to read.

An Xid is a line of NVIDIA's driver in the kernel log; there is no uevent for it. Whether the card
is lost follows the immediate action in NVIDIA's catalog (docs.nvidia.com/deploy/xid-errors,
"Analyzing Xid Errors with the Xid Catalog"; docs.nvidia.com/health-validation, "Xid Checks"): a
reset of the GPU or of the host loses it, restarting one program does not. A number that is not
here is told and ends nothing.
"""

import re
from collections.abc import Mapping
from types import MappingProxyType

from attrs import frozen

_LINE = re.compile(
    r"NVRM: Xid \((?:PCI:)?([0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2})(?: GPU-I:\d+)?\): "
    r"(\d+)(?:, (.*))?"
)
"""Of all drivers: old ones write no ``PCI:``, MIG names its instance; none names a function."""

_ACTION = re.compile(r"recovery action changed from .* to 0x([0-9a-fA-F]+) \((.*)\)")

RECOVERY_ACTION = 154
"""The driver says what has to be done now, in words that begin with a number; 0 is nothing."""


@frozen
class Xid:
    """What a number means, in a few words, and whether the card is lost with it."""

    meaning: str
    lost: bool


XIDS: Mapping[int, Xid] = MappingProxyType(
    {
        # One program of one guest did something wrong, or was ended for it.
        8: Xid("a channel was idle for too long", lost=False),
        13: Xid("graphics engine exception", lost=False),
        31: Xid("page fault in GPU memory", lost=False),
        32: Xid("corrupted push buffer", lost=False),
        43: Xid("a program's channel was reset", lost=False),
        45: Xid("a program's channel was taken down", lost=False),
        68: Xid("video decoder exception", lost=False),
        69: Xid("graphics engine class error", lost=False),
        94: Xid("contained memory error", lost=False),
        109: Xid("context switch timeout", lost=False),
        # Something to watch; the card goes on.
        63: Xid("a memory row is to be remapped", lost=False),
        74: Xid("NVLink error", lost=False),
        92: Xid("many correctable memory errors", lost=False),
        # The card does nothing any more until it, or the host, is reset.
        46: Xid("the GPU stopped processing", lost=True),
        48: Xid("uncorrectable memory error", lost=True),
        62: Xid("an internal microcontroller halted", lost=True),
        64: Xid("a memory row could not be remapped", lost=True),
        79: Xid("the GPU has fallen off the bus", lost=True),
        95: Xid("uncontained memory error", lost=True),
        110: Xid("security fault", lost=True),
        119: Xid("the GPU system processor does not answer", lost=True),
        120: Xid("the GPU system processor failed", lost=True),
        136: Xid("link training failed", lost=True),
        140: Xid("unrecovered memory error", lost=True),
        143: Xid("the GPU could not be initialised", lost=True),
        155: Xid("NVLink software error", lost=True),
        156: Xid("a resource was retired", lost=True),
        158: Xid("fatal timeout", lost=True),
    }
)


@frozen
class XidLine:
    """One Xid: the card's ``slot`` (``0000:2b:00``, no function), number, and what it came with."""

    slot: str
    number: int
    words: str


@frozen
class XidVerdict:
    """``lost`` is None where the Xid says nothing about whether the card can be used."""

    lost: bool | None
    because: str


def find_xid(text: str) -> XidLine | None:
    """Return the Xid of a line of the kernel log; None where it is none."""
    match = _LINE.search(text)
    if match is None:
        return None
    # The driver writes a domain of four to eight digits; the kernel's addresses have four.
    domain, _, rest = match[1].lower().partition(":")
    return XidLine(f"{int(domain, 16):04x}:{rest}", int(match[2]), (match[3] or "").strip())


def judge_xid(line: XidLine) -> XidVerdict:
    """Return what an Xid says of its card."""
    if line.number == RECOVERY_ACTION and (action := _ACTION.search(line.words)):
        if int(action[1], 16) == 0:
            return XidVerdict(lost=False, because="NVIDIA's driver says that it has recovered")
        return XidVerdict(
            lost=True, because=f"Xid {line.number}: NVIDIA's driver asks: {action[2]}"
        )
    known = XIDS.get(line.number)
    meaning = known.meaning if known else line.words or "unknown"
    lost = True if known is not None and known.lost else None
    return XidVerdict(lost, f"Xid {line.number}: {meaning}")
