"""A filter of the kernel's that keeps the programs of a control group from the host's loopback.

QEMU's built-in network (slirp) makes connections of its own out of those of the guest. What the
guest sends to 10.0.2.2, or to 127.0.0.1 in frames of its own making, comes out at the loopback of
the host, and slirp has no switch for that alone (``restrict=on`` cuts off all). passt's
``--no-map-gw`` is none either: the one of Debian 12 takes 10.0.2.2 for what it is, and frames to
127.0.0.1 or 0.0.0.0 still arrive (measured). So the kernel is asked to look at where the programs
of the group connect to or send: what is not theirs to reach fails with EPERM.

- Port 53 stays open: the nameserver 10.0.2.3 is the host's, which often listens on 127.0.0.53.
- Whoever has sent a datagram gets an answer, as a forwarded port is bound by the same program.
- What is accepted is not looked at: forwards, displays and monitors serve the host as ever.

Sources: include/uapi/linux/bpf.h (``union bpf_attr``, ``struct bpf_sock_addr``, ``struct
bpf_sock``); Documentation/bpf/standardization/instruction-set.rst; bpf(2); net/ipv4/udp.c and
net/ipv4/af_inet.c for when the hooks are called. Tried with Linux 6.1 and 6.18.
"""

import ctypes
import os
import platform
import struct
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from enum import IntEnum
from pathlib import Path

from attrs import frozen

from arcsup.host.cgroups import TREE

DNS_PORT = 53


class Hook(IntEnum):
    """Where the kernel asks (``enum bpf_attach_type``)."""

    CONNECT4 = 10
    CONNECT6 = 11
    SEND4 = 14
    SEND6 = 15
    RECEIVE4 = 19


def close_loopback(group: str, tree: Path = TREE) -> None:
    """Keep the programs that are in a control group, now or later, from the loopback.

    It lasts as long as the group does, and is for sockets that are made by a program in the group
    (net/core/sock.c, cgroup_sk_alloc). May be done twice. Raises OSError: EPERM without
    CAP_SYS_ADMIN (or CAP_BPF with CAP_NET_ADMIN), or where a group above does not allow it.
    """
    with ExitStack() as opened:

        def keep(descriptor: int) -> int:
            opened.callback(os.close, descriptor)
            return descriptor

        folder = keep(os.open(tree / group.lstrip("/"), os.O_RDONLY | os.O_DIRECTORY))
        missing = [hook for hook in Hook if not _has_program(folder, hook)]
        if not missing:
            return
        # One map for all: replacing only some of the hooks would leave two that do not agree.
        heard = keep(_create_map())
        for hook in Hook:
            _attach(folder, keep(_load(hook, heard)), hook)


def find_obstacle() -> str:
    """Return why the kernel does not take the filter from this process, "" if it does.

    Nothing is attached; what is loaded goes again.
    """
    with ExitStack() as opened:
        try:
            heard = _create_map()
            opened.callback(os.close, heard)
            for hook in Hook:
                opened.callback(os.close, _load(hook, heard))
        except OSError as error:
            return error.strerror or str(error)
    return ""


class _Command(IntEnum):
    """``enum bpf_cmd``."""

    MAP_CREATE = 0
    PROG_LOAD = 5
    PROG_ATTACH = 8
    PROG_QUERY = 16


_CALL_NUMBERS = {"x86_64": 321, "aarch64": 280}
_MAP_TYPE_LRU_HASH = 9
_PROG_TYPE_CGROUP_SOCK_ADDR = 18

_HEARD = 1024
"""So many senders of datagrams are remembered, the latest ones."""

_KEY_SIZE = 12
"""Sender's address and port, port of the socket that heard it; 32 bits each."""


def _create_map() -> int:
    return _bpf(
        _Command.MAP_CREATE, struct.pack("=5I", _MAP_TYPE_LRU_HASH, _KEY_SIZE, 4, _HEARD, 0)
    )


def _load(hook: Hook, heard: int) -> int:
    code = build_program(hook, heard)
    instructions = ctypes.create_string_buffer(code, len(code))
    license_text = ctypes.create_string_buffer(b"GPL")
    attributes = struct.pack(
        "=2I2Q2IQ2I16s2I",
        _PROG_TYPE_CGROUP_SOCK_ADDR,
        len(code) // _INSTRUCTION_SIZE,
        ctypes.addressof(instructions),
        ctypes.addressof(license_text),
        *(0, 0, 0, 0, 0),  # no log of the verifier's, no version, no flags
        b"arcsup_loopback",
        0,
        hook,
    )
    return _bpf(_Command.PROG_LOAD, attributes)


def _attach(folder: int, program: int, hook: Hook) -> None:
    # Without flags it takes the place of one that is there, and none below may undo it.
    _bpf(_Command.PROG_ATTACH, struct.pack("=4I", folder, program, hook, 0))


def _has_program(folder: int, hook: Hook) -> bool:
    """Tell whether the group itself has one: nobody else attaches to a group of a VM's own."""
    attributes = bytearray(struct.pack("=4IQ2I", folder, hook, 0, 0, 0, 0, 0))
    _bpf(_Command.PROG_QUERY, attributes)
    count: int = struct.unpack_from("=I", attributes, 24)[0]
    return count > 0


def _bpf(command: _Command, attributes: bytes | bytearray) -> int:
    """Call bpf(2); what the kernel writes into ``attributes`` is written back to a bytearray."""
    number = _CALL_NUMBERS.get(platform.machine())
    if number is None:
        raise OSError(f"no number of bpf(2) is known for {platform.machine()}")
    buffer = ctypes.create_string_buffer(bytes(attributes), len(attributes))
    libc = ctypes.CDLL(None, use_errno=True)
    result: int = libc.syscall(number, int(command), buffer, len(attributes))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    if isinstance(attributes, bytearray):
        attributes[:] = buffer.raw
    return result


_INSTRUCTION_SIZE = 8

_LOAD32, _LOAD64, _LOAD_MAP = 0x61, 0x79, 0x18
_STORE32, _STORE32_NUMBER = 0x63, 0x62
_MOVE, _MOVE_NUMBER, _ADD_NUMBER, _AND32_NUMBER = 0xBF, 0xB7, 0x07, 0x54
_JUMP, _IF_EQUAL, _IF32_EQUAL, _IF32_DIFFERENT = 0x05, 0x15, 0x16, 0x56
_CALL, _EXIT = 0x85, 0x95
_PSEUDO_MAP_FD = 1
_LOOK_UP, _UPDATE = 1, 2

_ADDRESS4, _ADDRESS6, _PORT, _SOCKET = 4, 8, 24, 64
"""Places in ``struct bpf_sock_addr``; addresses and port are in network order."""

_OWN_PORT = 44
"""Place in ``struct bpf_sock``."""

_R0, _R1, _R2, _R3, _R4, _R5, _CONTEXT, _STACK = 0, 1, 2, 3, 4, 5, 6, 10
_KEY, _VALUE = -_KEY_SIZE, -_KEY_SIZE - 4


@frozen
class _Step:
    """One instruction; ``to`` is the label that it jumps to."""

    code: int
    dst: int = 0
    src: int = 0
    offset: int = 0
    number: int = 0
    to: str = ""


_Code = _Step | str
"""An instruction, or the label of the one that follows."""


def build_program(hook: Hook, heard: int) -> bytes:
    """Return the program of one hook; ``heard`` is the descriptor of the map of senders.

    It answers 1 for what may go on.
    """
    body: Sequence[_Code]
    match hook:
        case Hook.RECEIVE4:
            body = (*_if_loopback4(), *_make_key("allow"), *_remember(heard))
        case Hook.SEND4:
            asked = (*_make_key("deny"), *_if_unheard(heard))
            body = (*_if_loopback4(), *_if_not_dns(), *asked, *_deny())
        case Hook.CONNECT4:
            body = (*_if_loopback4(), *_if_not_dns(), *_deny())
        case Hook.CONNECT6 | Hook.SEND6:
            body = (*_if_loopback6(), *_if_not_dns(), *_deny())
    return _assemble((_Step(_MOVE, _CONTEXT, _R1), *body, *_allow()))


def _deny() -> Iterator[_Code]:
    yield "deny"
    yield _Step(_MOVE_NUMBER, _R0, number=0)
    yield _Step(_EXIT)


def _allow() -> Iterator[_Code]:
    yield "allow"
    yield _Step(_MOVE_NUMBER, _R0, number=1)
    yield _Step(_EXIT)


def _if_loopback4() -> Iterator[_Code]:
    """Go on with 127.0.0.0/8, and with 0.0.0.0, which connects to the host itself too."""
    yield _Step(_LOAD32, _R2, _CONTEXT, _ADDRESS4)
    yield from _if_loopback4_in(_R2)


def _if_loopback4_in(register: int) -> Iterator[_Code]:
    yield _Step(_IF32_EQUAL, register, number=0, to="loopback")
    yield _Step(_AND32_NUMBER, register, number=_in_order(b"\xff\0\0\0"))
    yield _Step(_IF32_DIFFERENT, register, number=_in_order(b"\x7f\0\0\0"), to="allow")
    yield "loopback"


def _if_loopback6() -> Iterator[_Code]:
    """Go on with ::1 and ::, and with IPv4's as IPv6 writes them (::ffff:127.0.0.1)."""
    for place, register in enumerate((_R2, _R3, _R4, _R5)):
        yield _Step(_LOAD32, register, _CONTEXT, _ADDRESS6 + 4 * place)
    yield _Step(_IF32_DIFFERENT, _R2, number=0, to="allow")
    yield _Step(_IF32_DIFFERENT, _R3, number=0, to="allow")
    yield _Step(_IF32_EQUAL, _R4, number=_in_order(b"\0\0\xff\xff"), to="mapped")
    yield _Step(_IF32_DIFFERENT, _R4, number=0, to="allow")
    yield _Step(_IF32_EQUAL, _R5, number=0, to="loopback")
    yield _Step(_IF32_EQUAL, _R5, number=_in_order(b"\0\0\0\x01"), to="loopback")
    yield _Step(_JUMP, to="allow")
    yield "mapped"
    yield from _if_loopback4_in(_R5)


def _if_not_dns() -> Iterator[_Code]:
    yield _Step(_LOAD32, _R2, _CONTEXT, _PORT)
    # The kernel puts the two octets of the port where they are in memory, whatever the order.
    port = int.from_bytes(DNS_PORT.to_bytes(2, "big"), sys.byteorder)
    yield _Step(_IF32_EQUAL, _R2, number=port, to="allow")


def _make_key(without_socket: str) -> Iterator[_Code]:
    """Put onto the stack who is at the other end, and which port of ours it is."""
    yield _Step(_LOAD32, _R2, _CONTEXT, _ADDRESS4)
    yield _Step(_STORE32, _STACK, _R2, _KEY)
    yield _Step(_LOAD32, _R2, _CONTEXT, _PORT)
    yield _Step(_STORE32, _STACK, _R2, _KEY + 4)
    yield _Step(_LOAD64, _R2, _CONTEXT, _SOCKET)
    yield _Step(_IF_EQUAL, _R2, number=0, to=without_socket)
    yield _Step(_LOAD32, _R2, _R2, _OWN_PORT)
    yield _Step(_STORE32, _STACK, _R2, _KEY + 8)


def _if_unheard(heard: int) -> Iterator[_Code]:
    yield from _load_map_and_key(heard)
    yield _Step(_CALL, number=_LOOK_UP)
    yield _Step(_IF_EQUAL, _R0, number=0, to="deny")
    yield _Step(_JUMP, to="allow")


def _remember(heard: int) -> Iterator[_Code]:
    yield _Step(_STORE32_NUMBER, _STACK, 0, _VALUE, 1)
    yield from _load_map_and_key(heard)
    yield _Step(_MOVE, _R3, _STACK)
    yield _Step(_ADD_NUMBER, _R3, number=_VALUE)
    yield _Step(_MOVE_NUMBER, _R4, number=0)
    yield _Step(_CALL, number=_UPDATE)
    yield _Step(_JUMP, to="allow")


def _load_map_and_key(heard: int) -> Iterator[_Code]:
    yield _Step(_LOAD_MAP, _R1, _PSEUDO_MAP_FD, number=heard)
    yield _Step(0)  # the upper half of its 64 bits
    yield _Step(_MOVE, _R2, _STACK)
    yield _Step(_ADD_NUMBER, _R2, number=_KEY)


def _in_order(octets: bytes) -> int:
    """Return four octets of an address as the signed number that a comparison is with."""
    return int.from_bytes(octets, sys.byteorder, signed=True)


def _assemble(code: Sequence[_Code]) -> bytes:
    places: dict[str, int] = {}
    steps: list[_Step] = []
    for it in code:
        if isinstance(it, str):
            places[it] = len(steps)
        else:
            steps.append(it)
    return b"".join(
        struct.pack(
            "=BBhi",
            step.code,
            # Two fields of four bits, the lower one first on a little-endian machine.
            step.src << 4 | step.dst if sys.byteorder == "little" else step.dst << 4 | step.src,
            places[step.to] - place - 1 if step.to else step.offset,
            step.number,
        )
        for place, step in enumerate(steps)
    )
