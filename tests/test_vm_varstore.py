"""What a store of UEFI variables is shows in its bytes, whoever wrote them."""

import random
import struct
import subprocess
from pathlib import Path
from uuid import UUID

import pytest

from arcsup.vm.varstore import (
    has_platform_key,
    is_switched_off,
    read_layout,
    read_qcow2,
)
from tests.uefi_stores import (
    BEING_REPLACED,
    DELETED,
    HEADER,
    PLAIN,
    SECURE,
    SWITCH,
    flash,
    variable,
)

OVMF = Path("/usr/share/OVMF")
needs_ovmf = pytest.mark.skipif(not OVMF.is_dir(), reason="needs Debian's package ovmf")


@needs_ovmf
def test_the_stores_of_real_builds_are_told_apart() -> None:
    plain, keys = (OVMF / f"OVMF_VARS_4M{it}.fd" for it in ("", ".ms"))
    assert read_layout(plain.read_bytes()) == read_layout(keys.read_bytes()) is not None
    assert [has_platform_key(it.read_bytes()) for it in (plain, keys)] == [False, True]
    if (small := OVMF / "OVMF_VARS.fd").exists():
        assert read_layout(small.read_bytes()) != read_layout(plain.read_bytes())


@pytest.mark.parametrize(
    ("store", "enrolled"),
    [
        (PLAIN, False),
        (SECURE, True),
        (flash(variable("PK", state=DELETED)), False),
        (flash(variable("PK", state=BEING_REPLACED)), True),
        (flash(variable("PK", b"")), False),
        (flash(variable("PK", vendor=SWITCH)), False),
        (flash(variable("PK"), kind=UUID(int=0)), False),
    ],
)
def test_a_platform_key_counts_as_the_firmware_counts_it(store: bytes, enrolled: bool) -> None:
    assert has_platform_key(store) is enrolled


def test_the_newer_of_two_values_counts() -> None:
    off = variable("SecureBootEnable", b"\0", SWITCH, state=BEING_REPLACED)
    on = variable("SecureBootEnable", b"\1", SWITCH)
    assert is_switched_off(flash(off))
    assert not is_switched_off(flash(off, on))


@pytest.mark.parametrize(
    "offset", [16, 32, 40, 48, 50, 55, HEADER + 16, HEADER + 20], ids=lambda it: f"byte {it}"
)
def test_a_header_that_the_firmware_would_not_know_is_no_layout(offset: int) -> None:
    spoilt = bytearray(PLAIN)
    spoilt[offset] ^= 0xFF
    assert read_layout(bytes(spoilt)) != read_layout(PLAIN)


def test_no_bytes_raise_or_lead_beyond_the_store() -> None:
    chance = random.Random(7)
    for _ in range(2000):
        spoilt = bytearray(SECURE[: chance.choice([4096, 100, 71, 0])])
        for _ in range(8 if spoilt else 0):
            spoilt[chance.randrange(min(len(spoilt), 400))] = chance.randrange(256)
        has_platform_key(bytes(spoilt))
        read_layout(bytes(spoilt))
    smallest = struct.pack("<HBBIQ16sIII16s", 0x55AA, 0, 0, 0, 0, b"", 0, 0, 0, b"")
    assert not has_platform_key(flash(smallest * 69_000, size=2**23))


@needs_ovmf
@pytest.mark.parametrize(
    "options", [[], ["-c"], ["-o", "cluster_size=4096"], ["-o", "compat=0.10"]], ids=str
)
def test_a_store_in_qcow2_is_read_as_qemu_reads_it(tmp_path: Path, options: list[str]) -> None:
    raw, image = OVMF / "OVMF_VARS_4M.ms.fd", tmp_path / "vars.qcow2"
    convert = ["qemu-img", "convert", "-O", "qcow2", *options, str(raw), str(image)]
    subprocess.run(convert, check=True)
    assert read_qcow2(image.read_bytes()) == raw.read_bytes()


def test_a_qcow2_that_leads_elsewhere_or_makes_no_sense_is_none(tmp_path: Path) -> None:
    base, image = tmp_path / "base.raw", tmp_path / "vars.qcow2"
    base.write_bytes(bytes(65536))
    create = ["qemu-img", "create", "-q", "-f", "qcow2"]
    subprocess.run([*create, "-b", base, "-F", "raw", image], check=True)
    assert read_qcow2(image.read_bytes()) is None
    subprocess.run([*create, "-o", f"data_file={base}", image, "64K"], check=True)
    assert read_qcow2(image.read_bytes()) is None
    subprocess.run([*create, image, "64K"], check=True)
    content, chance = image.read_bytes(), random.Random(7)
    assert read_qcow2(content) == bytes(65536)
    for _ in range(500):
        spoilt = bytearray(content)
        for _ in range(4):
            spoilt[chance.choice([*range(104), *range(196608, 196616)])] = chance.randrange(256)
        read_qcow2(bytes(spoilt))
