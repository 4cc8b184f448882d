"""``make bench``: measure, print a table, write bench.json."""

import json
import os
import platform
import sys
from importlib import import_module
from pathlib import Path

from attrs import asdict

from tests.bench.measurement import Measurement

PARTS = ("vms", "virsh", "choose")


def main(names: list[str]) -> int:
    """Measure the named parts, all by default. The exit code tells nothing: machines are noisy."""
    figures: list[Measurement] = []
    for name in names or PARTS:
        figures += import_module(f"tests.bench.{name}").run()
    print(format_table(figures))
    machine = {"cpus": os.cpu_count(), "kernel": platform.release(), "load": os.getloadavg()}
    result = {"machine": machine, "figures": [asdict(figure) for figure in figures]}
    Path("bench.json").write_text(json.dumps(result, indent=1) + "\n")
    return 0


def format_table(figures: list[Measurement]) -> str:
    """Return the figures aligned, each with what it stands beside."""
    width = max(len(figure.name) for figure in figures)
    lines = []
    for figure in figures:
        aim = "" if figure.aim is None else f"  aim {figure.aim:8.1f}  {'✓' if figure.met else '✗'}"
        bare = "" if figure.baseline is None else f"  (bare {figure.baseline:.1f})"
        lines.append(f"{figure.name:{width}}  {figure.value:8.1f} {figure.unit:11}{aim}{bare}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
