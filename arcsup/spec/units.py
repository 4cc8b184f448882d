"""The little languages inside values: sizes, durations, CPU lists, addresses, forwards.

Every ``parse_`` function takes the text as it stands in the file and raises ValueError with what
is wrong; every ``show_`` function writes what ``parse_`` reads back as the same value.
"""

import ipaddress
import re
from collections.abc import Iterable
from decimal import Decimal
from typing import Literal
from uuid import UUID

from arcsup.model import CpuSet, Forward, MacAddress, MiB, PciAddress, Seconds, VmName

SIZE = r"(0|[1-9][0-9]*)(\.[0-9]+)? ?([MGTmgt](i[Bb])?)?"
DURATION = r"(0|[1-9][0-9]*)(\.[0-9]+)? ?(ms|s|m|h)?"
CPU_LIST = r"[0-9]{1,5}(-[0-9]{1,5})?(, ?[0-9]{1,5}(-[0-9]{1,5})?)*"
NAME = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
MAC = r"[0-9A-Fa-f]{1,2}(:[0-9A-Fa-f]{1,2}){5}"
PCI_ADDRESS = r"([0-9A-Fa-f]{4,8}:)?[0-9A-Fa-f]{2}:[0-1][0-9A-Fa-f]\.[0-7]"
HEX_ID = r"(0[xX])?[0-9A-Fa-f]{1,4}"
FORWARD = r"(tcp|udp):(\[[0-9A-Fa-f:.]*\]|[0-9.]*):([0-9]{1,5}):([0-9]{1,5})"

LARGEST_SIZE = 1 << 30
"""MiB of the largest size that is believed: 1 PiB."""

LONGEST = 7 * 24 * 3600
"""Seconds of the longest duration that is believed: a week."""

LONGEST_CPU_LIST = 6 * 8192
"""Characters: of 8192 CPUs one by one."""

LAST_CPU = 8191
"""Linux is built for at most 8192 CPUs (CONFIG_NR_CPUS on x86)."""

_MIB = {"": 1, "m": 1, "g": 1 << 10, "t": 1 << 20}
_MILLISECONDS = {"": 1000, "ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000}
_PCI_VENDORS = {"amd": "1002", "intel": "8086", "nvidia": "10de"}


def parse_size(text: str) -> MiB:
    """Return MiB of ``2048`` (MiB), ``512MiB``, ``16GiB``, ``1.5GiB``, ``1TiB``, ``16G``."""
    match = re.fullmatch(SIZE, text)
    if match is None:
        raise ValueError("expected a size such as 512MiB, 16GiB or 2048 (MiB)")
    size = Decimal(match[1] + (match[2] or "")) * _MIB[(match[3] or "")[:1].lower()]
    if size != size.to_integral_value():
        raise ValueError("expected whole MiB")
    if not 1 <= size <= LARGEST_SIZE:
        raise ValueError("expected 1MiB to 1024TiB")
    return MiB(int(size))


def show_size(size: int) -> str:
    """Return the size in its largest whole unit."""
    for unit, factor in (("TiB", 1 << 20), ("GiB", 1 << 10)):
        if size % factor == 0:
            return f"{size // factor}{unit}"
    return f"{size}MiB"


def parse_duration(text: str) -> Seconds:
    """Return seconds of ``30`` (s), ``500ms``, ``30s``, ``1.5s``, ``5m``, ``1h``."""
    match = re.fullmatch(DURATION, text)
    if match is None:
        raise ValueError("expected a duration such as 500ms, 30s, 5m or 30 (seconds)")
    length = Decimal(match[1] + (match[2] or "")) * _MILLISECONDS[match[3] or ""]
    if length != length.to_integral_value():
        raise ValueError("expected whole milliseconds")
    if length > LONGEST * 1000:
        raise ValueError("expected at most a week (168h)")
    return Seconds(int(length) / 1000)


def show_duration(seconds: float) -> str:
    """Return the duration in s, or in ms when it is no whole second."""
    length = round(seconds * 1000)
    return f"{length}ms" if length % 1000 else f"{length // 1000}s"


def parse_cpus(text: str) -> CpuSet:
    """Return the CPU numbers of a list as the kernel writes it: ``0-3,8``."""
    if len(text) > LONGEST_CPU_LIST or re.fullmatch(CPU_LIST, text) is None:
        raise ValueError("expected host CPUs such as 0-3,8")
    cpus: set[int] = set()
    named = 0
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        low, high = int(first), int(last or first)
        if low > high:
            raise ValueError(f"the range {part.strip()} runs backwards")
        if high > LAST_CPU:
            raise ValueError(f"CPU {high} is beyond the last that Linux can have, {LAST_CPU}")
        named += high + 1 - low
        if named > 2 * (LAST_CPU + 1):
            raise ValueError("the same CPUs are named again and again")
        cpus.update(range(low, high + 1))
    return CpuSet(frozenset(cpus))


def show_cpus(cpus: Iterable[int]) -> str:
    """Return CPU numbers as the kernel writes them: ``0-3,8``."""
    ranges: list[list[int]] = []
    for cpu in sorted(cpus):
        if ranges and ranges[-1][1] == cpu - 1:
            ranges[-1][1] = cpu
        else:
            ranges.append([cpu, cpu])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in ranges)


def parse_name(text: str) -> VmName:
    """Return a VM name: it becomes a folder, a host name and a word on the command line."""
    if re.fullmatch(NAME, text) is None:
        raise ValueError("expected 1 to 63 of a-z, 0-9 and '-', no '-' at either end")
    return VmName(text)


def parse_mac(text: str) -> MacAddress:
    """Return a unicast MAC address in lower case."""
    if re.fullmatch(MAC, text) is None:
        raise ValueError("expected a MAC address such as 52:54:00:12:34:56")
    octets = [int(octet, 16) for octet in text.split(":")]
    if octets[0] & 1:
        raise ValueError("is a multicast address, expected the first octet to be even")
    if not any(octets):
        raise ValueError("is no address, expected one such as 52:54:00:12:34:56")
    return MacAddress(":".join(f"{octet:02x}" for octet in octets))


def parse_pci_address(text: str) -> PciAddress:
    """Return a PCI address as the kernel writes it: in lower case and with its domain.

    That has four digits, and more only where they are not enough ("%04x", pci_setup_device in
    drivers/pci/probe.c); nvidia-smi writes eight.
    """
    if re.fullmatch(PCI_ADDRESS, text) is None:
        raise ValueError("expected a PCI address such as 0000:41:00.0 or 41:00.0")
    domain, _, rest = text.lower().rpartition(":")[0].rpartition(":")
    function = text.lower().rpartition(":")[2]
    return PciAddress(f"{int(domain or '0', 16):04x}:{rest}:{function}")


def parse_hex_id(text: str) -> int:
    """Return a PCI or USB id; its digits are hexadecimal with or without 0x."""
    if re.fullmatch(HEX_ID, text) is None:
        raise ValueError("expected an id of up to four hexadecimal digits such as 046d")
    return int(text, 16)


def show_hex_id(number: int) -> str:
    """Return an id as lspci and lsusb write it."""
    return f"{number:04x}"


def parse_device_id(text: str) -> str:
    """Return a PCI device id as lspci writes it."""
    return show_hex_id(parse_hex_id(text))


def parse_vendor(text: str) -> str:
    """Return a PCI vendor id as lspci writes it; nvidia, amd and intel are known by name."""
    if known := _PCI_VENDORS.get(text.lower()):
        return known
    try:
        return parse_device_id(text)
    except ValueError:
        raise ValueError("expected nvidia, amd, intel or a PCI vendor id such as 10de") from None


def parse_uuid(text: str) -> UUID:
    """Return a UUID written in its usual form, other than all zeros."""
    if re.fullmatch(r"[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}", text) is None:
        raise ValueError("expected a UUID such as 1b4e28ba-2fa1-11d2-883f-0016d3cca427")
    uuid = UUID(text)
    if not uuid.int:
        raise ValueError("is the empty UUID, expected one that tells this VM from others")
    return uuid


def parse_forward(text: str) -> Forward:
    """Return a forward of ``PROTOCOL:ADDRESS:HOSTPORT:GUESTPORT``; IPv6 stands in brackets."""
    match = re.fullmatch(FORWARD, text)
    if match is None:
        raise ValueError(
            "expected PROTOCOL:ADDRESS:HOSTPORT:GUESTPORT such as tcp:127.0.0.1:2222:22"
        )
    address = match[2].strip("[]")
    if address:
        address = parse_ip(address)
    protocol: Literal["tcp", "udp"] = "tcp" if match[1] == "tcp" else "udp"
    ports = int(match[3]), int(match[4])
    if not all(1 <= port <= 65535 for port in ports):
        raise ValueError("expected ports from 1 to 65535")
    return Forward(protocol, address, *ports)


def show_forward(forward: Forward) -> str:
    """Return a forward as the file has it."""
    address = f"[{forward.address}]" if ":" in forward.address else forward.address
    return f"{forward.protocol}:{address}:{forward.host_port}:{forward.guest_port}"


def parse_ip(text: str) -> str:
    """Return an IP address in its shortest form."""
    try:
        if "%" in text:  # a scope id: no option of QEMU takes one
            raise ValueError(text)
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise ValueError(f"{text!r} is no IP address, expected one such as 127.0.0.1") from None
