"""Raw QEMU options from other systems' files, held against what arcsup itself sets.

What would take the VM out of arcsup's hands or open it to others is refused, what QEMU no longer
has is left out, everything else is passed on. Source of the options: qemu-doc, "Invocation".
"""

import re
from collections.abc import Iterable, Sequence
from enum import StrEnum

from attrs import frozen


class Verdict(StrEnum):
    """What becomes of an option."""

    PASSED = "passed"
    LEFT_OUT = "left out"
    REFUSED = "refused"


@frozen
class Judgement:
    """The verdict on an option, and what to tell of it ("" is nothing)."""

    verdict: Verdict
    because: str = ""


_MONITOR = "arcsup has its own monitor: use `arcsup qmp`"
_PROCESS = "arcsup itself starts, watches and ends QEMU"
_DISPLAY = "arcsup sets the display and where it listens"
_IDENTITY = "arcsup sets it from the name, so that it is the same for ever"

_REFUSED = {
    **dict.fromkeys(("mon", "monitor", "qmp", "qmp-pretty"), _MONITOR),
    **dict.fromkeys(("name", "uuid"), _IDENTITY),
    **dict.fromkeys(("S", "daemonize", "incoming", "loadvm", "pidfile", "preconfig"), _PROCESS),
    **dict.fromkeys(("action", "no-reboot", "no-shutdown", "watchdog-action"), _PROCESS),
    **dict.fromkeys(("chroot", "run-with", "runas", "sandbox"), "arcsup sets QEMU's rights"),
    **dict.fromkeys(("display", "spice", "vnc", "sdl", "curses"), _DISPLAY),
    **dict.fromkeys(("gdb", "s"), "whoever connects could read and change the guest's memory"),
    "readconfig": "it can set anything that arcsup sets",
    "m": "arcsup sets the memory",
    "smp": "arcsup sets the number of CPUs",
}

_LEFT_OUT = {
    "no-hpet": "arcsup turns the HPET off itself where that is right",
    "soundhw": "QEMU has it no more: use `audio`",
    "enable-kvm": "arcsup takes KVM where it works",
    "no-kvm": "say `accel: tcg`",
    "accel": "say `accel`",
}

_WITH_ID = frozenset({"blockdev", "chardev", "device", "drive", "fsdev", "netdev", "object"})

_OWN_IDS = re.compile(
    r"qmp|monitor|console|serial0|agent|vdagent|channels|panic|entropy|rng|memory|vga|usb|tablet|mouse"
    r"|scsi|keyboard|audio|sound|codec|(looking-glass[0-9]*|scream)(-memory)?|(redirection|usb-host|virtio-gpu"
    r"|port|disk|cd|nic|net|share|gpu)[0-9]+([.-].*)?|firmware-.*|tpm.*|iommufd0"
)


def judge_option(option: str, value: str) -> Judgement:
    """Return what becomes of ``-option value``; the dashes may be one or two."""
    name = option.lstrip("-")
    if not option.startswith("-") or not name:
        return Judgement(Verdict.REFUSED, f"{option!r} is no option, expected one such as -device")
    if because := _REFUSED.get(name):
        return Judgement(Verdict.REFUSED, f"-{name}: {because}")
    if because := _LEFT_OUT.get(name):
        return Judgement(Verdict.LEFT_OUT, f"-{name} is left out: {because}")
    if name in _WITH_ID:
        found = re.search(r"(?:^|,)id=([^,]+)", value)
        if found and _OWN_IDS.fullmatch(found[1]):
            because = f"-{name}: id {found[1]} is arcsup's own"
            return Judgement(Verdict.REFUSED, because)
        if name == "device" and re.match(r"vfio-|.*\bsysfsdev=", value):
            because = "-device vfio is passed on as it is: arcsup neither makes, keeps nor returns"
            return Judgement(Verdict.PASSED, f"{because} that device; ask for it under gpus")
    return Judgement(Verdict.PASSED)


def sift_options(words: Sequence[str]) -> tuple[list[int], list[tuple[int, str]]]:
    """Return which words of a command line are passed on, and what to tell of which.

    A word without a dash belongs to the option before it.
    """
    kept: list[int] = []
    told: list[tuple[int, str]] = []
    keep = True
    for number, word in enumerate(words):
        if word.startswith("-"):
            value = words[number + 1] if number + 1 < len(words) else ""
            judgement = judge_option(word, "" if value.startswith("-") else value)
            keep = judgement.verdict is Verdict.PASSED
            if judgement.because:
                left_out = judgement.verdict is Verdict.REFUSED
                told.append((number, judgement.because + (", so it is left out" * left_out)))
        if keep:
            kept.append(number)
    return kept, told


def own_ids(values: Iterable[str]) -> frozenset[str]:
    """Return the ids that option values give."""
    found = (re.search(r"(?:^|,)id=([^,]+)", value) for value in values)
    return frozenset(match[1] for match in found if match)
