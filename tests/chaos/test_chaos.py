"""Rounds of random faults, each fault at least once; `make chaos ROUNDS= SEED=` makes more."""

import os
from pathlib import Path
from warnings import warn

import pytest

from tests.chaos.chaos import run_chaos
from tests.chaos.faults import FAULTS, find_missing
from tests.leftovers import find_processes_naming

ROUNDS, SEED = 25, 1


class ChaosWarning(UserWarning):
    """A fault that this machine has no means for was left out."""


@pytest.mark.filterwarnings("default::tests.chaos.test_chaos.ChaosWarning")
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts file systems")
def test_whatever_fails_each_vm_has_one_qemu_and_comes_to_what_was_asked_for(
    short_dir: Path,
) -> None:
    missing = find_missing()
    for fault, why in missing.items():
        warn(f"without the fault {fault!r}: {why}", ChaosWarning, stacklevel=1)
    faults = tuple(fault for fault in FAULTS if fault not in missing)
    rounds = run_chaos(short_dir, seed=SEED, rounds=ROUNDS, faults=faults)

    assert not [str(it) for it in rounds if it.violations]
    assert not find_processes_naming(short_dir)
