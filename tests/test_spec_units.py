from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcsup.model import Forward, MiB, Seconds
from arcsup.spec import units


@pytest.mark.parametrize(
    ("text", "mib"),
    [
        ("2048", 2048),
        ("512MiB", 512),
        ("512M", 512),
        ("512 MiB", 512),
        ("16GiB", 16384),
        ("16G", 16384),
        ("16g", 16384),
        ("1.5GiB", 1536),
        ("1TiB", 1 << 20),
    ],
)
def test_a_size_is_mib_unless_it_says_otherwise(text: str, mib: int) -> None:
    assert units.parse_size(text) == mib


@pytest.mark.parametrize(
    "text",
    [
        "",
        "lots",
        "0",
        "-1",
        "0512",
        "1.5",
        "1.0001GiB",
        "16GB",
        "5KiB",
        "1e3",
        "16XiB",
        "2000TiB",
        "9" * 5000,
    ],
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        units.parse_size(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30", 30),
        ("0.5", 0.5),
        ("500ms", 0.5),
        ("30s", 30),
        ("1.5s", 1.5),
        ("5m", 300),
        ("1h", 3600),
        ("0", 0),
    ],
)
def test_a_duration_is_seconds_unless_it_says_otherwise(text: str, seconds: float) -> None:
    assert units.parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "-1s", "soon", "0.5ms", "1d", "169h", ".inf", "1:30"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        units.parse_duration(text)


@given(st.integers(1, units.LARGEST_SIZE))
def test_every_size_is_read_back(mib: int) -> None:
    assert units.parse_size(units.show_size(mib)) == MiB(mib)


@given(st.integers(0, units.LONGEST * 1000))
def test_every_duration_is_read_back(milliseconds: int) -> None:
    seconds = Seconds(milliseconds / 1000)

    assert units.parse_duration(units.show_duration(seconds)) == seconds


@given(st.frozensets(st.integers(0, units.LAST_CPU), min_size=1))
def test_every_cpu_list_is_read_back(cpus: frozenset[int]) -> None:
    assert units.parse_cpus(units.show_cpus(cpus)) == cpus


def test_cpu_lists_are_written_as_the_kernel_does() -> None:
    assert sorted(units.parse_cpus("0-3, 8")) == [0, 1, 2, 3, 8]
    assert units.show_cpus({8, 3, 1, 2, 0, 10}) == "0-3,8,10"


@pytest.mark.parametrize("text", ["3-1", "9000", "1,,2", "-1", "a", "0-3:2"])
def test_what_is_no_cpu_list_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected|backwards|beyond"):
        units.parse_cpus(text)


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (units.parse_mac, "52:54:00:AB:cd:0F", "52:54:00:ab:cd:0f"),
        (units.parse_pci_address, "41:00.4", "0000:41:00.4"),
        (units.parse_pci_address, "0000:C1:1F.7", "0000:c1:1f.7"),
        (units.parse_pci_address, "10000:01:00.0", "10000:01:00.0"),
        (units.parse_vendor, "NVIDIA", "10de"),
        (units.parse_vendor, "0x10DE", "10de"),
        (units.parse_device_id, "67", "0067"),
        (units.parse_ip, "::0001", "::1"),
    ],
)
def test_identifiers_have_one_form(parse: Callable[[str], str], text: str, value: str) -> None:
    assert parse(text) == value


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (units.parse_mac, "01:00:5e:00:00:01"),
        (units.parse_mac, "52:54:00:12:34"),
        (units.parse_mac, "00:00:00:00:00:00"),
        (units.parse_pci_address, "41:00.8"),
        (units.parse_pci_address, "0000:41:20.0"),
        (units.parse_pci_address, "/sys/bus/pci"),
        (units.parse_vendor, "matrox"),
        (units.parse_uuid, "00000000-0000-0000-0000-000000000000"),
        (units.parse_uuid, "1b4e28ba2fa111d2883f0016d3cca427"),
        (units.parse_ip, "fe80::1%eth0"),
        (units.parse_ip, "localhost"),
        (units.parse_name, "-a"),
        (units.parse_name, "a" * 64),
        (units.parse_name, "Web"),
        (units.parse_name, "a\n"),
    ],
)
def test_what_is_no_identifier_is_refused(parse: Callable[[str], object], text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        parse(text)


@pytest.mark.parametrize(
    ("text", "forward"),
    [
        ("tcp:127.0.0.1:2222:22", Forward("tcp", "127.0.0.1", 2222, 22)),
        ("tcp::2222:22", Forward("tcp", "", 2222, 22)),
        ("udp:[::1]:53:5353", Forward("udp", "::1", 53, 5353)),
    ],
)
def test_a_forward_is_read_and_written(text: str, forward: Forward) -> None:
    assert units.parse_forward(text) == forward
    assert units.show_forward(forward) == text


@pytest.mark.parametrize(
    "text",
    [
        "2222:22",
        "tcp:2222:22",
        "sctp::1:1",
        "tcp::0:22",
        "tcp::70000:22",
        "tcp:300.0.0.1:1:1",
        "tcp:[::g]:1:1",
    ],
)
def test_what_is_no_forward_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        units.parse_forward(text)
