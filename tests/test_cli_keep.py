"""Copying a VM file into the VM directory."""

from pathlib import Path

from arcsup.cli.keep import keep_file
from arcsup.spec.native import load_vm

LIBVFIO = """\
%YAML 1.2
%TAG !n! tag:nimyaml.org,2016:
--- !n!custom:Config
introspect: none
container: {kernel: one.arc, state: [], initialSize: 1, iso: !!null ~}
root: ~/arc
"""


def test_a_file_that_means_the_same_there_is_copied_as_it_is(tmp_path: Path) -> None:
    text = "# mine\nmemory: 64\n"

    keep_file(Path("/home/user/one.yaml"), text, tmp_path / "one.yaml")

    assert (tmp_path / "one.yaml").read_text() == text


def test_a_libvfio_file_whose_home_would_be_another_is_written_natively(tmp_path: Path) -> None:
    file, place = Path("/home/user/one.yaml"), tmp_path / "one.yaml"

    keep_file(file, LIBVFIO, place)

    kept = load_vm(place.read_text(), place, "")
    assert kept.disks[0].path == "/home/user/arc/kernel/one.arc"
    assert kept == load_vm(LIBVFIO, file, "")
