"""What the host can still give. Source: proc_meminfo(5), MemAvailable."""

from pathlib import Path

from arcsup.model import MiB


def observe_available_memory(file: Path = Path("/proc/meminfo")) -> MiB | None:
    """Return the memory that can be had without swapping; None where the kernel does not say."""
    for line in file.read_text().splitlines():
        key, _, value = line.partition(":")
        if key == "MemAvailable":
            return MiB(int(value.split()[0]) // 1024)
    return None
