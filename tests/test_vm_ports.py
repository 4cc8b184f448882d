"""Empty root ports have room for the GPUs that can come, and all together no more than there is."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcsup.errors import Terminal
from arcsup.host.bars import BarSizes, observe_largest, parse_resources
from arcsup.host.cpu_flags import parse_address_bits
from arcsup.host.sysfs import Sysfs
from arcsup.vm.ports import GIB, MIB, Room, find_address_bits, port_args, window_args

# Of a GeForce with resizable BARs: registers, video memory, more of it, I/O ports, ROM.
GEFORCE = """\
0x00000000de000000 0x00000000deffffff 0x0000000000040200
0x0000006000000000 0x00000063ffffffff 0x000000000014220c
0x0000000000000000 0x0000000000000000 0x0000000000000000
0x0000006400000000 0x0000006401ffffff 0x000000000014220c
0x0000000000000000 0x0000000000000000 0x0000000000000000
0x000000000000e000 0x000000000000e07f 0x0000000000040101
0x00000000df000000 0x00000000df07ffff 0x0000000000046200
0x0000000000000000 0x0000000000000000 0x0000000000000000
"""


def reserved(taken: tuple[int, ...], room: Room) -> list[int | None]:
    """Return the GiB above 4 GiB of each port, None for one without."""
    ports = [word for word in port_args(taken, room) if word != "-device"]
    found = [re.search(r"pref64-reserve=(\d+)M", port) for port in ports]
    return [int(match[1]) * MIB // GIB if match else None for match in found]


def test_a_port_has_twice_the_room_of_the_largest_bar() -> None:
    sizes = parse_resources(GEFORCE)
    assert sizes == BarSizes(high=16 * GIB + 32 * MIB, low=16 * MIB + 512 * 1024)
    room = Room(46, sizes)
    assert reserved((), room) == [32, 32, 32, 32]
    assert all("mem-reserve=32M" in it for it in port_args((), room)[1::2])


def test_the_first_empty_ports_get_it_where_there_is_not_enough_for_all() -> None:
    sizes = BarSizes(high=8 * GIB + 1)
    assert reserved((), Room(40, sizes)) == [16, 16, 16, 16]
    assert reserved((), Room(39, sizes)) == [16, 8, 1, 1]
    assert reserved((0,), Room(39, sizes)) == [None, 16, 8, 8]
    assert reserved((), Room(36, sizes)) == [1, 1, 1, 1]


def test_a_host_without_gpus_leaves_room_for_a_vgpu() -> None:
    assert reserved((), Room()) == [8, 8, 8, 8]
    assert reserved((0, 1, 4), Room()) == [None, None, 8, 8, None]
    assert reserved((), Room(36)) == [1, 1, 1, 1]


@given(
    bits=st.integers(36, 52),
    high=st.integers(0, 2**42),
    low=st.integers(0, 2**32),
    taken=st.sets(st.integers(0, 7)),
)
def test_all_ports_together_never_take_more_than_half_of_ovmfs_window(
    bits: int, high: int, low: int, taken: set[int]
) -> None:
    room = Room(bits, BarSizes(high, low))
    total = sum(it or 0 for it in reserved(tuple(taken), room)) * GIB
    assert total <= max(2 ** (bits - 4), 8 * GIB)
    lows = re.findall(r"mem-reserve=(\d+)M", " ".join(port_args(tuple(taken), room)))
    assert sum(map(int, lows)) <= 512


def test_a_ninth_device_has_no_port() -> None:
    with pytest.raises(Terminal, match="9 host devices"):
        port_args(range(9), Room())


def test_an_old_ovmf_is_told_of_a_window_that_is_wide_enough() -> None:
    large = Room(46, BarSizes(high=16 * GIB))
    assert window_args((), Room(36), ()) == ()
    assert window_args((), Room(), ()) == ("-fw_cfg", "name=opt/ovmf/X-PciMmio64Mb,string=65536")
    assert window_args((), large, ()) == (
        "-fw_cfg",
        "name=opt/ovmf/X-PciMmio64Mb,string=262144",
    )
    assert window_args((), large, ("-fw_cfg", "name=opt/ovmf/X-PciMmio64Mb,string=1")) == ()


def test_the_guests_address_bits_are_the_hosts_only_where_its_cpu_is() -> None:
    assert parse_address_bits("address sizes\t: 46 bits physical, 48 bits virtual\n") == 46
    assert parse_address_bits("flags : fpu\n") is None
    assert find_address_bits("host", "kvm", 46) == 46
    assert find_address_bits("host,-vmx", "kvm", 39) == 39
    assert find_address_bits("EPYC", "kvm", 46) == 40
    assert find_address_bits("host", "tcg", 46) == 40
    assert find_address_bits("EPYC,phys-bits=43", "kvm", 46) == 43
    assert find_address_bits("host,host-phys-bits-limit=42", "kvm", 46) == 42
    assert find_address_bits("host", "kvm", None) == 40


def test_the_largest_of_the_hosts_gpus_counts_and_nonsense_does_not(tmp_path: Path) -> None:
    for address, pci_class, text in (
        ("0000:01:00.0", "0x030000", GEFORCE),
        ("0000:02:00.0", "0x010802", GEFORCE.replace("63ffffffff", "7fffffffff")),
        ("0000:03:00.0", "0x120000", "no resource\n0x0 0x1\n0xffff 0x0 0x14220c\n"),
    ):
        folder = tmp_path / "bus/pci/devices" / address
        folder.mkdir(parents=True)
        (folder / "class").write_text(pci_class)
        (folder / "resource").write_text(text)

    assert observe_largest(Sysfs(tmp_path)) == parse_resources(GEFORCE)
    assert observe_largest(Sysfs(tmp_path / "none")) == BarSizes()
