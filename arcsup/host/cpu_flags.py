"""What the host's processors can do, in the kernel's words (/proc/cpuinfo, cpufeatures.h)."""

import re
from pathlib import Path


def observe_cpu_flags(file: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Return the flags of the first processor; none where the kernel tells of none."""
    return parse_cpu_flags(file.read_text())


def observe_address_bits(file: Path = Path("/proc/cpuinfo")) -> int | None:
    """Return how many bits a physical address of the host has; None where nothing tells."""
    return parse_address_bits(file.read_text())


def parse_address_bits(text: str) -> int | None:
    """Return the bits that the text of /proc/cpuinfo tells of its first processor."""
    match = re.search(r"^address sizes\s*: (\d{1,3}) bits physical", text, re.MULTILINE)
    return int(match[1]) if match else None


def parse_cpu_flags(text: str) -> frozenset[str]:
    """Return the flags that the text of /proc/cpuinfo has for its first processor."""
    match = re.search(r"^flags\s*: (.*)$", text, re.MULTILINE)
    return frozenset(match[1].split()) if match else frozenset()
