"""KVM or TCG: found out once per boot by running a guest, not by looking at /dev/kvm.

On some machines (nested ones above all) /dev/kvm opens and a guest then hangs, at times in a
process that even SIGKILL does not end soon. So a tiny guest is tried under a deadline, and only
its own word that it ran counts.
"""

import hashlib
import json
import os
import signal
import tempfile
from contextlib import suppress
from pathlib import Path

import trio
from attrs import asdict, frozen

from arcsup.errors import Terminal
from arcsup.host.accounts import Account
from arcsup.model import Accel
from arcsup.vm.options import AccelName
from arcsup.vm.process import Process, start_gated
from arcsup.vm.programs import last_words

SECONDS_TO_RUN = 2.0
"""The trial takes 0.1 s where KVM works."""
SECONDS_TO_DIE = 1.0
"""A hanging KVM guest can outlive SIGKILL by seconds; nobody waits for it any longer."""

KVM_DEVICE = Path("/dev/kvm")

_GUEST = bytes.fromhex("""
    2e660f01 16f8fe0f 20c00c01 0f22c066 ea17feff ff080066 b810008e d88ec08e
    d0bc0080 0000c705 00100000 03200000 c7050020 00000330 0000c705 18200000
    03400000 c7050030 00008300 0000c705 f84f0000 8300e0ff b8200000 000f22e0
    b8001000 000f22d8 b9800000 c00f320d 00010000 0f30b801 0000800f 22c0ea85
    feffff18 00b8c8fe ffff6689 0425e050 0000c704 25e25000 00180000 8ec60425
    e4500000 00c1e810 66890425 e6500000 0f011d47 000000ff 04250000 200066ba
    f400b02a eef4ebfd 58c70425 08300000 83002000 48cf6690 00000000 00000000
    ffff0000 009acf00 ffff0000 0092cf00 ffff0000 009aaf00 1f00d8fe ffffff00
    00500000 00000000
""")
"""``trial_guest.S``, assembled."""
_RESET_VECTOR = bytes.fromhex("e90dfe")
_GUEST_LENGTH = 512
_RESET_VECTOR_AT = 0x1F0
_ROM_LENGTH = 64 * 1024
"""QEMU takes boot ROMs in multiples of this; the last byte is at 4 GiB - 1."""
_RAN = 2 * 0x2A + 1
"""The exit code of isa-debug-exit for the value that the guest writes."""

_trial_lock = trio.Lock()
"""One trial at a time in this process: whoever comes second finds the first one's answer."""


@frozen
class Trial:
    """What one trial of KVM on this boot with this QEMU showed. ``why`` is for people."""

    boot_id: str
    qemu: str
    mtime_ns: int
    works: bool
    why: str = ""


def trial_rom() -> bytes:
    """Return the boot ROM that holds the trial guest."""
    guest = _GUEST.ljust(_RESET_VECTOR_AT, b"\0") + _RESET_VECTOR
    return guest.ljust(_GUEST_LENGTH, b"\0").rjust(_ROM_LENGTH, b"\0")


async def find_accel(
    requested: Accel,
    qemu: Path,
    run: Path,
    boot_id: str,
    device: Path = KVM_DEVICE,
    *,
    account: Account | None = None,
) -> AccelName:
    """Return what is to run a VM's instructions; KVM is tried once per boot and QEMU.

    ``account`` is whom QEMU is to run as, None for this process's user.

    Raises:
        Terminal: ``kvm`` is demanded and does not work here; the message says why.
    """
    if requested is Accel.TCG:
        return "tcg"
    async with _trial_lock:
        trial = await _tried(qemu, run, boot_id, device, account)
    if trial.works:
        return "kvm"
    if requested is Accel.KVM:
        raise Terminal(
            f"accel: kvm does not work here: {trial.why}",
            hint="enable virtualization (firmware, kvm module, group kvm), or use accel: auto",
        )
    return "tcg"


async def _tried(
    qemu: Path, run: Path, boot_id: str, device: Path, account: Account | None
) -> Trial:
    # Another user's rights or a module loaded later change the answer: not worth remembering.
    if not (account or Account.current()).may_open(device):
        why = "cannot be opened by QEMU's user" if device.exists() else "is not there"
        return Trial(boot_id, str(qemu), 0, works=False, why=f"{device} {why}")
    mtime_ns = qemu.stat().st_mtime_ns
    file = run / f"accel-{hashlib.sha256(os.fsencode(qemu)).hexdigest()[:16]}.json"
    with suppress(OSError, ValueError, TypeError):
        trial = Trial(**json.loads(file.read_bytes()))
        if (trial.boot_id, trial.qemu, trial.mtime_ns) == (boot_id, str(qemu), mtime_ns):
            return trial
    why = await try_guest(qemu, "kvm", boot_id, account)
    trial = Trial(boot_id, str(qemu), mtime_ns, works=not why, why=why)
    # A host too busy to run any guest in time proves nothing about KVM: not worth remembering.
    if why and await try_guest(qemu, "tcg", boot_id, account):
        return trial
    # An answer that cannot be kept is found again; it must not stop a VM. A verb that asks before
    # any daemon ran makes no runtime directory: its rights are the daemon's to choose.
    with suppress(OSError):
        _keep(file, trial)
    return trial


async def try_guest(
    qemu: Path, accel: AccelName, boot_id: str, account: Account | None = None
) -> str:
    """Run the trial guest; return "" when it ran, else why it did not."""
    with tempfile.TemporaryDirectory(prefix="arcsup-trial-") as folder:
        rom, output = Path(folder) / "rom", Path(folder) / "output"
        rom.write_bytes(trial_rom())
        Path(folder).chmod(0o755)
        rom.chmod(0o644)
        argv = (
            str(qemu), "-nodefaults", "-no-user-config", "-display", "none", "-m", "16M",
            "-machine", f"q35,accel={accel}", "-cpu", "host" if accel == "kvm" else "max",
            "-bios", str(rom),
            "-device", "isa-debug-exit,iobase=0xf4,iosize=1",
        )  # fmt: skip
        gated = start_gated(argv, boot_id=boot_id, output=output, account=account)
        try:
            gated.open_gate()
            with trio.move_on_after(SECONDS_TO_RUN):
                end = await gated.process.wait()
                return "" if end.code == _RAN else last_words(output.read_bytes())
            return f"a guest did not run within {SECONDS_TO_RUN:g} s"
        finally:
            gated.close_gate()
            await _abandon(gated.process)


async def _abandon(process: Process) -> None:
    """Kill it and reap it if it dies soon; a hanging one is left to the kernel."""
    with trio.CancelScope(shield=True, deadline=trio.current_time() + SECONDS_TO_DIE):
        process.send(signal.SIGKILL)
        await process.wait()
    process.close()


def _keep(file: Path, trial: Trial) -> None:
    with tempfile.NamedTemporaryFile("w", dir=file.parent, suffix=".json", delete=False) as stream:
        json.dump(asdict(trial), stream)
    Path(stream.name).replace(file)
