"""The trial guest runs where guests run, and a KVM that hangs costs its deadline at most."""

from pathlib import Path

import trio

from arcsup.model import Accel
from arcsup.vm.accel import SECONDS_TO_DIE, SECONDS_TO_RUN, find_accel, try_guest
from arcsup.vm.capabilities import find_qemu
from tests.vm_samples import make_vm

QEMU = find_qemu(make_vm("any"))


async def test_the_trial_guest_reaches_its_end_under_tcg() -> None:
    assert await try_guest(QEMU, "tcg", "boot") == ""


async def test_auto_is_decided_in_time_and_remembered(tmp_path: Path) -> None:
    with trio.fail_after(SECONDS_TO_RUN + SECONDS_TO_DIE + 5):
        found = await find_accel(Accel.AUTO, QEMU, tmp_path, "boot")
    with trio.fail_after(0.5):
        assert await find_accel(Accel.AUTO, QEMU, tmp_path, "boot") == found


async def test_a_missing_qemu_is_no_proof(tmp_path: Path) -> None:
    why = await try_guest(tmp_path / "no-qemu", "tcg", "boot")

    assert "no-qemu" in why
