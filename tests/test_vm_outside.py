"""Files that the system's daemon will not lend to QEMU are told of before a start."""

from pathlib import Path

import pytest

from arcsup.model import Vm
from arcsup.places import Places
from arcsup.spec.native import load_vm
from arcsup.vm.outside import warn_of_outside
from tests.cli_runner import Cli
from tests.fake_supervisor import FakeSupervisor

LIBVFIO = """%YAML 1.2
%TAG !n! tag:nimyaml.org,2016:
--- !n!custom:Config
container:
  kernel: windows.arc
  state: []
  initialSize: 20
  iso: !!null ~
root: ROOT
"""


def make(text: str) -> Vm:
    return load_vm(text, Path("/vms/a.yaml"), "")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    return folder


def test_files_among_the_images_and_in_named_folders_are_fine(images: Path) -> None:
    elsewhere = images.parent / "elsewhere"
    link = images.parent / "link"
    elsewhere.mkdir()
    link.symlink_to(elsewhere)
    vm = make(
        f"disks: [{{path: a.qcow2}}, {{path: {elsewhere}/b.qcow2}}, {{path: {link}/c.qcow2}}]\n"
        f"shares: [{{path: {elsewhere}, tag: x}}]\n"
    )

    assert list(warn_of_outside(vm, images, [elsewhere])) == []


def test_each_other_folder_is_told_once_with_what_is_in_it(images: Path) -> None:
    vm = make(
        "disks: [{path: /srv/a.qcow2}, {path: b.qcow2, base: /base/b.qcow2}, {path: /srv/c.qcow2}]"
        "\nshares: [{path: /data/team, tag: x}]\n"
        "display: {type: vnc, port: 5901, passwordFile: /srv/pw}\n"
    )

    first, second, third = warn_of_outside(vm, images, [])

    assert first.startswith("disks[0], disks[2], display.passwordFile: /srv is outside of ")
    assert "imageDirs of arcsup.yaml" in first
    assert second.startswith("disks[1].base: /base ")
    assert third.startswith("shares[0]: /data ")


def test_what_everybody_may_read_may_be_anywhere_and_what_is_missing_is_told_elsewhere(
    images: Path,
) -> None:
    public, private, disk = (images.parent / name for name in ("a.iso", "b.iso", "c.raw"))
    for file, mode in ((public, 0o644), (private, 0o640), (disk, 0o644)):
        file.touch()
        file.chmod(mode)
    vm = make(
        f"cdroms: [{public}, {private}, /missing.iso]\n"
        f"disks: [{{path: {disk}, readonly: true, format: raw}}]\n"
    )

    (warning,) = warn_of_outside(vm, images, [])

    assert warning.startswith(f"cdroms[1]: {images.parent} ")


def test_check_warns_of_a_libvfio_root_where_the_daemon_would_be_root(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli = Cli(FakeSupervisor(), tmp_path / "nowhere", capsys)
    root = tmp_path / "libvf.io"
    file = tmp_path / "a.yaml"
    file.write_text(LIBVFIO.replace("ROOT", str(root)))
    config = tmp_path / "arcsup.yaml"
    config.write_text("{}\n")
    places = ["--config", str(config), "--state", str(tmp_path / "state")]

    said = cli("check", *places, str(file))
    in_folder = cli("check", *places, str(tmp_path))
    config.write_text(f"imageDirs: [{root}]\n")
    named = cli("check", *places, str(file))

    outside = f"{root}/kernel is outside of the folders for images"
    expected = Places.default().system
    assert (outside in said.out, outside in in_folder.out) == (expected, expected)
    assert said.code == 0
    assert "outside" not in named.out
