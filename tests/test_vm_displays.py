"""Shared memory for viewers: made anew for every start, taken away afterwards."""

from pathlib import Path

import pytest
from attrs import evolve

from arcsup.errors import Terminal
from arcsup.model import Audio, LookingGlass
from arcsup.vm.displays import create_shared_memory, remove_shared_memory
from tests.vm_samples import make_vm

VM = evolve(make_vm("a"), looking_glass=LookingGlass(), audio=Audio.SCREAM)


def test_the_files_have_the_size_of_now_and_nobody_elses_content(tmp_path: Path) -> None:
    create_shared_memory(VM, tmp_path)
    frame = tmp_path / f"kvmfr-{VM.uuid}"
    assert frame.stat().st_size == 32 * 2**20
    frame.write_bytes(b"of an earlier run")

    create_shared_memory(evolve(VM, looking_glass=LookingGlass(3840, 2160)), tmp_path)

    assert frame.stat().st_size == 128 * 2**20
    assert frame.stat().st_mode & 0o007 == 0
    assert (tmp_path / f"kvmsr-{VM.uuid}").stat().st_size == 2 * 2**20

    remove_shared_memory(VM, tmp_path)
    remove_shared_memory(VM, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_link_that_somebody_put_there_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / f"kvmfr-{VM.uuid}").symlink_to(victim)
    create_shared_memory(VM, tmp_path)

    assert victim.read_text() == "precious"


def test_what_cannot_be_removed_is_named(tmp_path: Path) -> None:
    (tmp_path / f"kvmfr-{VM.uuid}").mkdir()
    with pytest.raises(Terminal, match=r"kvmfr-.*cannot be made"):
        create_shared_memory(VM, tmp_path)
