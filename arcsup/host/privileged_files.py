"""A filter of system calls by which neither this process nor what it starts makes privileged files.

virtiofsd is root and does what a guest's root asks for: without this, a guest could leave a
set-user-ID program of the host's root, or the node of one of its disks, in a folder that it shares.
systemd's RestrictSUIDSGID= does the first for a unit; a daemon may run without systemd.

Sources: seccomp(2), prctl(2); include/uapi/linux/{seccomp,audit,filter}.h; the tables of system
calls of x86-64 and arm64. openat2(2) hides its mode behind a pointer: it answers ENOSYS, as on a
kernel before 5.6.
"""

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Iterator

from attrs import frozen

_SET_ID = 0o6000
_DEVICE = 0o020000
"""The bit that character and block devices have, of all kinds of mknod(2)."""

_MAKES_A_FILE = os.O_CREAT | (os.O_TMPFILE & ~os.O_DIRECTORY)


@frozen
class _Call:
    """A system call that is refused where all of its tests hold: argument & mask is not 0."""

    number: int
    tests: tuple[tuple[int, int], ...] = ()
    error: int = errno.EPERM


@frozen
class _Architecture:
    audit: int
    """``AUDIT_ARCH_…``: what the kernel says of the one who calls."""
    calls: tuple[_Call, ...]


_FCHMODAT2 = _Call(452, ((2, _SET_ID),))
_OPENAT2 = _Call(437, error=errno.ENOSYS)

_ARCHITECTURES = {
    "x86_64": _Architecture(
        0xC000003E,
        (
            _Call(2, ((1, _MAKES_A_FILE), (2, _SET_ID))),  # open
            _Call(85, ((1, _SET_ID),)),  # creat
            _Call(90, ((1, _SET_ID),)),  # chmod
            _Call(91, ((1, _SET_ID),)),  # fchmod
            _Call(133, ((1, _SET_ID | _DEVICE),)),  # mknod
            _Call(257, ((2, _MAKES_A_FILE), (3, _SET_ID))),  # openat
            _Call(259, ((2, _SET_ID | _DEVICE),)),  # mknodat
            _Call(268, ((2, _SET_ID),)),  # fchmodat
            _OPENAT2,
            _FCHMODAT2,
        ),
    ),
    "aarch64": _Architecture(
        0xC00000B7,
        (
            _Call(33, ((2, _SET_ID | _DEVICE),)),  # mknodat
            _Call(52, ((1, _SET_ID),)),  # fchmod
            _Call(53, ((2, _SET_ID),)),  # fchmodat
            _Call(56, ((2, _MAKES_A_FILE), (3, _SET_ID))),  # openat
            _OPENAT2,
            _FCHMODAT2,
        ),
    ),
}

_LOAD, _IF_EQUAL, _IF_ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06
"""BPF_LD|BPF_W|BPF_ABS, BPF_JMP|BPF_JEQ|BPF_K, BPF_JMP|BPF_JSET|BPF_K, BPF_RET|BPF_K."""

_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
"""Places in ``struct seccomp_data``; of each argument the lower half comes first."""

_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2


def forbid_privileged_files() -> None:
    """Keep this process, its threads to come and all that it starts from making such files.

    For ever: who calls it must have no other threads. Raises OSError where the kernel does not
    take the filter: EACCES without CAP_SYS_ADMIN.
    """
    known = _ARCHITECTURES.get(platform.machine())
    if known is None:
        raise OSError(errno.ENOSYS, f"no system calls are known for {platform.machine()}")
    code = b"".join(_build(known))
    instructions = ctypes.create_string_buffer(code, len(code))
    program = ctypes.create_string_buffer(
        struct.pack("@HP", len(code) // 8, ctypes.addressof(instructions))
    )
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, program, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _build(architecture: _Architecture) -> Iterator[bytes]:
    yield _step(_LOAD, _ARCHITECTURE)
    yield _step(_IF_EQUAL, architecture.audit, yes=1)
    yield _step(_RETURN, _ALLOW)
    for call in architecture.calls:
        length = 2 * len(call.tests) + 2
        yield _step(_LOAD, _NUMBER)
        yield _step(_IF_EQUAL, call.number, no=length)
        for position, (argument, mask) in enumerate(call.tests):
            yield _step(_LOAD, _ARGUMENTS + 8 * argument)
            yield _step(_IF_ANY_BIT, mask, no=length - 2 * position - 3)
        yield _step(_RETURN, _ERRNO | call.error)
        yield _step(_RETURN, _ALLOW)
    yield _step(_RETURN, _ALLOW)


def _step(code: int, number: int, *, yes: int = 0, no: int = 0) -> bytes:
    return struct.pack("=HBBI", code, yes, no, number)
