"""What the host's processors can do, in the kernel's words (/proc/cpuinfo, cpufeatures.h)."""

import re
from pathlib import Path


def observe_cpu_flags(file: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Return the flags of the first processor; none where the kernel tells of none."""
    return parse_cpu_flags(file.read_text())


def parse_cpu_flags(text: str) -> frozenset[str]:
    """Return the flags that the text of /proc/cpuinfo has for its first processor."""
    match = re.search(r"^flags\s*: (.*)$", text, re.MULTILINE)
    return frozenset(match[1].split()) if match else frozenset()
