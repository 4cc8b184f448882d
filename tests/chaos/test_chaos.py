"""Rounds of random faults, each fault at least once; `make chaos ROUNDS= SEED=` makes more."""

import os
from pathlib import Path

import pytest

from tests.chaos.chaos import run_chaos
from tests.chaos.faults import FAULTS
from tests.leftovers import find_processes_naming

ROUNDS, SEED = 25, 1


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts file systems")
def test_whatever_fails_each_vm_has_one_qemu_and_comes_to_what_was_asked_for(
    short_dir: Path,
) -> None:
    rounds = run_chaos(short_dir, seed=SEED, rounds=ROUNDS, faults=tuple(FAULTS))

    assert not [str(it) for it in rounds if it.violations]
    assert not find_processes_naming(short_dir)
