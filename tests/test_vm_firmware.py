"""Firmware is found by its descriptors."""

import json
from pathlib import Path

import pytest

from arcsup.errors import Terminal
from arcsup.model import Firmware
from arcsup.vm.firmware import FirmwareFiles, find_firmware


def describe(
    folder: Path,
    name: str,
    *features: str,
    mode: str | None = None,
    machines: tuple[str, ...] = ("pc-q35-*",),
    architecture: str = "x86_64",
    vars_format: str = "raw",
) -> FirmwareFiles:
    """Write a descriptor and the files that it names."""
    folder.mkdir(exist_ok=True)
    code, template = folder / f"{name}.code", folder / f"{name}.vars"
    code.touch()
    template.touch()
    mapping = {
        "device": "flash",
        "executable": {"filename": str(code), "format": "raw"},
        "nvram-template": {"filename": str(template), "format": vars_format},
    }
    descriptor = {
        "description": "for a test",
        "interface-types": ["uefi"],
        "mapping": mapping | ({"mode": mode} if mode else {}),
        "targets": [{"architecture": architecture, "machines": list(machines)}],
        "features": list(features),
        "tags": [],
    }
    (folder / f"{name}.json").write_text(json.dumps(descriptor))
    secure = "enrolled-keys" in features
    return FirmwareFiles(
        code, template, "raw", "qcow2" if vars_format == "qcow2" else "raw", secure
    )


def test_bios_needs_no_files() -> None:
    assert find_firmware(Firmware.BIOS, folders=()) is None


def test_each_kind_finds_its_build(tmp_path: Path) -> None:
    secure = describe(tmp_path, "40-keys", "secure-boot", "enrolled-keys", "requires-smm")
    describe(tmp_path, "50-no-keys", "secure-boot", "requires-smm")
    plain = describe(tmp_path, "60-plain", "acpi-s3", vars_format="qcow2")

    assert find_firmware(Firmware.UEFI_SECURE, (tmp_path,)) == secure
    assert find_firmware(Firmware.UEFI, (tmp_path,)) == plain


def test_the_first_name_wins_and_an_earlier_folder_hides_a_later_one(tmp_path: Path) -> None:
    etc, usr = tmp_path / "etc", tmp_path / "usr"
    describe(usr, "20-first")
    second = describe(usr, "30-second")
    etc.mkdir()
    (etc / "20-first.json").touch()

    assert find_firmware(Firmware.UEFI, (etc, usr)) == second


def test_builds_for_other_machines_are_passed_over(tmp_path: Path) -> None:
    describe(tmp_path, "10-arm", architecture="aarch64")
    describe(tmp_path, "11-microvm", machines=("microvm",))
    describe(tmp_path, "12-stateless", mode="stateless")
    describe(tmp_path, "13-tdx", "intel-tdx-only")
    describe(tmp_path, "14-gone").code.unlink()
    for name, text in (("15-list", "[]"), ("16-broken", "{"), ("17-other", '{"mapping": {}}')):
        (tmp_path / f"{name}.json").write_text(text)
    fits = describe(tmp_path, "20-fits", mode="split")

    assert find_firmware(Firmware.UEFI, (tmp_path,)) == fits


def test_without_descriptors_known_places_are_looked_at(tmp_path: Path) -> None:
    known = describe(tmp_path / "usr", "known")

    assert find_firmware(Firmware.UEFI, (tmp_path / "none",), (known,)) == known


@pytest.mark.parametrize("firmware", [Firmware.UEFI, Firmware.UEFI_SECURE])
def test_without_any_build_the_package_is_named(tmp_path: Path, firmware: Firmware) -> None:
    with pytest.raises(Terminal, match="is installed") as caught:
        find_firmware(firmware, (tmp_path,), ())
    assert "ovmf" in caught.value.hint
