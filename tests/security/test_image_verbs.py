"""root's own verbs on an image that a guest writes to: its header leads them nowhere."""

import os
import subprocess
from pathlib import Path

import pytest

from arcsup.errors import Refused
from arcsup.vm import image_changes
from arcsup.vm.image_changes import clone_image, commit_image, remove_snapshot, take_snapshot
from arcsup.vm.qemu_img import observe_image, report_nothing
from tests.security.test_backing_chains import name_base

SECRET = b"SECRET-OF-ROOT".ljust(65536)


def trust(_path: Path) -> bool:
    return True


@pytest.fixture
def overlay(tmp_path: Path) -> Path:
    """Return an overlay; beside it are its base and a file that is nobody's business."""
    (tmp_path / "base").write_bytes(b"B" * 65536)
    (tmp_path / "shadow").write_bytes(SECRET)
    create = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw"]
    subprocess.run([*create, "-b", tmp_path / "base", tmp_path / "top"], check=True)
    return tmp_path / "top"


def forge(image: Path, base: Path) -> None:
    """Do what somebody does who kept a descriptor of an image."""
    descriptor = os.open(image, os.O_RDWR)
    name_base(descriptor, base)
    os.close(descriptor)


def forge_before(step: str, image: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the header changed after it was judged."""
    act = getattr(image_changes, step)

    async def forge_first(*arguments: object, **options: object) -> object:
        forge(image, base)
        return await act(*arguments, **options)

    monkeypatch.setattr(image_changes, step, forge_first)


@pytest.mark.parametrize("step", ["measure_image", "copy_image"])
async def test_a_clone_holds_nothing_of_a_base_that_was_named_after_the_look(
    overlay: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    forge_before(step, overlay, overlay.with_name("shadow"), monkeypatch)

    await clone_image(overlay, overlay.with_name("new"), report_nothing, trust)

    assert SECRET[:14] not in overlay.with_name("new").read_bytes()


@pytest.mark.parametrize("step", ["measure_image", "copy_image"])
async def test_a_commit_replaces_no_file_that_was_named_after_the_look(
    overlay: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    forge_before(step, overlay, overlay.with_name("shadow"), monkeypatch)

    assert await commit_image(overlay, report_nothing, trust) == overlay.with_name("base")

    assert overlay.with_name("shadow").read_bytes() == SECRET
    assert overlay.with_name("base").read_bytes() == b"B" * 65536


async def test_what_no_vm_file_names_is_refused_before_anything_is_made(overlay: Path) -> None:
    forge(overlay, overlay.with_name("shadow"))

    with pytest.raises(Refused, match=r"builds upon .*shadow, which no VM file names"):
        await clone_image(overlay, overlay.with_name("new"), report_nothing, lambda _: False)

    assert not overlay.with_name("new").exists()


async def test_a_snapshot_opens_nothing_that_the_header_names(overlay: Path) -> None:
    forge(overlay, overlay.with_name("missing"))

    await take_snapshot(overlay, "one")
    assert [it.name for it in (await observe_image(overlay)).snapshots] == ["one"]
    await remove_snapshot(overlay, "one")


async def test_to_look_at_an_image_no_program_is_run(
    overlay: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")

    assert (await observe_image(overlay)).base == overlay.with_name("base")
