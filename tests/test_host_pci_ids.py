"""Names come from pci.ids, each from its own vendor's block."""

from pathlib import Path

import pytest

from arcsup.host.pci_ids import PLACES, PciIds

TEXT = """\
# a comment
10de  NVIDIA Corporation
	0fff  First
		10de 0001  Board of the first
# in between
	25b6  GA107GL [A2 / A16]
		10de 14a9  A16
		10de 157e  A2
	ffff  Last
1234  Technical Corp.
	1111  QEMU Virtual Video Controller
C 03  Display controller
	00  VGA compatible controller
"""


@pytest.fixture
def ids(tmp_path: Path) -> PciIds:
    file = tmp_path / "pci.ids"
    file.write_text(TEXT)
    return PciIds((tmp_path / "missing", file))


def test_a_device_is_looked_for_below_its_vendor_only(ids: PciIds) -> None:
    assert ids.vendor("10de") == "NVIDIA Corporation"
    assert ids.device("10de", "25b6") == "GA107GL [A2 / A16]"
    assert ids.device("10de", "ffff") == "Last"
    assert ids.device("10de", "1111") == ""
    assert ids.device("1234", "1111") == "QEMU Virtual Video Controller"
    assert ids.device("1234", "00") == ""


def test_boards_with_one_chip_are_told_apart(ids: PciIds) -> None:
    assert ids.subsystem("10de", "25b6", "10de:14a9") == "A16"
    assert ids.subsystem("10de", "25b6", "10de:157e") == "A2"
    assert ids.subsystem("10de", "25b6", "10de:0001") == ""
    assert ids.subsystem("10de", "0fff", "10de:0001") == "Board of the first"


def test_what_is_not_known_has_no_name(ids: PciIds, tmp_path: Path) -> None:
    assert ids.vendor("abcd") == ids.vendor("") == ids.device("10de", "") == ""
    assert PciIds((tmp_path / "missing",)).vendor("10de") == ""


def test_names_that_are_no_text_are_shown_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "pci.ids").write_bytes(b"10de  NVIDIA \xff\n")
    assert PciIds((tmp_path / "pci.ids",)).vendor("10de") == "NVIDIA \N{REPLACEMENT CHARACTER}"


@pytest.mark.skipif(not any(place.exists() for place in PLACES), reason="no pci.ids here")
def test_the_systems_own_file_knows_the_great_vendors() -> None:
    ids = PciIds()
    assert ids.vendor("10de") == "NVIDIA Corporation"
    assert ids.vendor("8086") == "Intel Corporation"
    assert "Tesla P4" in ids.device("10de", "1bb3")
