"""make chaos ROUNDS=100 SEED=7 [FAULTS="kill,state full"]: say what each round found."""

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

from tests.chaos.chaos import run_chaos
from tests.chaos.faults import FAULTS, find_missing


def main() -> int:
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--seed", type=int, default=1)
    missing = find_missing()
    can = [fault for fault in FAULTS if fault not in missing]
    parser.add_argument("--faults", default=",".join(can))
    options = parser.parse_args()
    for fault, why in missing.items():
        print(f"chaos: without the fault {fault!r}: {why}", file=sys.stderr)
    if os.geteuid() != 0:
        print("chaos: run it as root: it mounts file systems", file=sys.stderr)
        return 2
    top = Path(tempfile.mkdtemp(prefix="chaos", dir="/tmp"))
    top.chmod(0o711)
    violations = 0
    try:
        faults = tuple(options.faults.split(","))
        for found in run_chaos(top, seed=options.seed, rounds=options.rounds, faults=faults):
            print(found, flush=True)
            violations += len(found.violations)
        print(f"{options.rounds} rounds, seed {options.seed}: {violations} violations")
        if violations:
            print((top / "daemon.log").read_text()[-60000:], file=sys.stderr)
    finally:
        shutil.rmtree(top, ignore_errors=True)
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
