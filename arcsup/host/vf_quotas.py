"""What each VF of an Intel card may use: its video memory, and its turns on the engines.

Source: Documentation/ABI/testing/sysfs-driver-intel-xe-sriov: the scheduling files since Linux
6.19, ``vram_quota`` (bytes, discrete cards only) since 7.0; the out-of-tree i915-sriov-dkms has two
of the three. xe's debugfs has more, and nobody promises that it stays as it is. Both number VFs
from 1, the links ``virtfn`` from 0. The firmware may round what is written, so it is read back.
Reads ask the firmware too, and may never come back: helpers read.
"""

import errno
from collections.abc import Iterator, Mapping

from arcsup.devices import VfQuota
from arcsup.errors import Terminal, Transient
from arcsup.host.cards import PCI
from arcsup.host.sriov import find_vfs
from arcsup.host.sysfs import Sysfs, parse_count
from arcsup.host.writer import Word, explain, read_sysfs, write_sysfs
from arcsup.model import MiB

_READ_SECONDS = 10.0
_WRITE_SECONDS = 60.0

_FILES = {
    "vram_mib": "vram_quota",
    "exec_quantum_ms": "exec_quantum_ms",
    "preempt_timeout_us": "preempt_timeout_us",
}
_WORDS = {
    errno.EINVAL: Word(Terminal, "the driver does not take that number"),
    errno.EPERM: Word(Terminal, "this card or its firmware cannot change it"),
    errno.EACCES: Word(Terminal, "this card or its firmware cannot change it"),
    errno.EIO: Word(Terminal, "the firmware refuses: is there so much for every VF?"),
    errno.ENOSPC: Word(Terminal, "the card has not so much for every VF"),
    errno.ENODEV: Word(Transient, "the driver is not ready for it"),
}


async def observe_vf_quotas(sysfs: Sysfs, address: str) -> dict[int, VfQuota]:
    """Return by number what the VFs of a card may use now; what the driver does not tell is None.

    Raises Stuck, Transient.
    """
    return {number: await _observe(sysfs, address, number) for number in find_vfs(sysfs, address)}


async def _observe(sysfs: Sysfs, address: str, number: int) -> VfQuota:
    files = _find_files(sysfs, address, number)
    found = {name: await _read(sysfs, path) for name, path in files}
    vram = found.get("vram_mib")
    return VfQuota(
        vram_mib=None if vram is None else MiB(vram >> 20),
        exec_quantum_ms=found.get("exec_quantum_ms"),
        preempt_timeout_us=found.get("preempt_timeout_us"),
    )


async def _read(sysfs: Sysfs, path: str) -> int | None:
    try:
        return parse_count(await read_sysfs(sysfs.full(path), seconds=_READ_SECONDS))
    except OSError:
        return None


def _find_files(sysfs: Sysfs, address: str, number: int) -> Iterator[tuple[str, str]]:
    """Yield (what, path) of the files that there are."""
    path, vf = f"{PCI}/{address}", f"vf{number + 1}"
    folders = [f"{path}/sriov_admin/{vf}/profile"]
    cards = [name for name in sysfs.names(f"{path}/drm") if name.startswith("card")]
    folders += [f"{path}/drm/{card}/prelim_iov/{vf}/gt0" for card in cards]
    for folder in folders:
        for name, file in _FILES.items():
            if sysfs.has(f"{folder}/{file}"):
                yield name, f"{folder}/{file}"


async def set_vf_quotas(sysfs: Sysfs, address: str, quotas: Mapping[int, VfQuota]) -> None:
    """Let the VFs of these numbers have what is given, and look whether they do.

    What is None stays as it is. Raises Terminal where the driver has no file for a number, the
    firmware refuses or does not take it; Transient, Stuck.
    """
    for number, quota in quotas.items():
        for name, text in _list_numbers(quota):
            found = [path for what, path in _find_files(sysfs, address, number) if what == name]
            if not found:
                raise Terminal(
                    f"{address}: its driver has no {_FILES[name]} for virtual function {number}",
                    "Intel's xe has it from Linux 6.19 on, vram_quota from 7.0 for discrete cards",
                )
            for path in found:
                await _write(sysfs, path, text)


def _list_numbers(quota: VfQuota) -> Iterator[tuple[str, int]]:
    if quota.vram_mib is not None:
        yield "vram_mib", quota.vram_mib << 20
    if quota.exec_quantum_ms is not None:
        yield "exec_quantum_ms", quota.exec_quantum_ms
    if quota.preempt_timeout_us is not None:
        yield "preempt_timeout_us", quota.preempt_timeout_us


async def _write(sysfs: Sysfs, path: str, number: int) -> None:
    before = await _read(sysfs, path)
    if before == number:
        return
    try:
        await write_sysfs(sysfs.full(path), str(number), seconds=_WRITE_SECONDS)
    except OSError as error:
        raise explain(f"{sysfs.full(path)} = {number}", error, _WORDS) from error
    got = await _read(sysfs, path)
    if got is None or (got < number and got in (before, 0)):
        raise Terminal(f"{sysfs.full(path)} is {got}, not {number}", "the kernel log may tell why")
