"""qemu-img for a daemon that is root: as the VM's user, on descriptors that the daemon opened.

An image tool follows what the header of an image says. As a user who may open nothing but what the
daemon has lent, it follows it nowhere. What the image makes of the tool itself has bounds: memory,
open files, what it may write, and time (prlimit(1), setrlimit(2)).
"""

import shutil
import subprocess
from collections.abc import Sequence

import trio

from arcsup.errors import Terminal, Transient
from arcsup.host.accounts import Account
from arcsup.model import Argv
from arcsup.vm.privileges import dropping_to, environment_of
from arcsup.vm.process import inherited_environment
from arcsup.vm.programs import kill_at_once

MEMORY = 2 * 2**30
"""Bytes of addresses. qemu-img's own libraries, threads and tables take 1 GiB at most; OpenStack
Nova allows as much (QEMU_IMG_LIMITS)."""

OPEN_FILES = 128
"""A chain has 32 images at most."""


def bounded(*, seconds: float | None = None, largest: int | None = None) -> Argv:
    """Return the command that runs what follows within bounds.

    ``seconds`` is of processor time, ``largest`` the bytes of a file that it writes.
    """
    limits = [f"--as={MEMORY}", f"--nofile={OPEN_FILES}", "--core=0"]
    limits += [] if seconds is None else [f"--cpu={int(seconds) + 1}"]
    limits += [] if largest is None else [f"--fsize={largest}"]
    return ("prlimit", *limits, "--")


def require_qemu_img() -> None:
    """Raise Terminal where there is none: whoever runs it in bounds says so less plainly."""
    if shutil.which("qemu-img") is None:
        raise Terminal("qemu-img cannot be run: there is none", "install qemu-utils")


async def run_image_tool(
    arguments: Sequence[str],
    *,
    account: Account | None,
    pass_fds: Sequence[int] = (),
    seconds: float,
    largest: int | None = 0,
) -> subprocess.CompletedProcess[bytes]:
    """Run qemu-img to its end as ``account``, None for this process's user; return its output.

    It may write files of ``largest`` bytes, None for any. Raises Terminal where it cannot be run,
    Transient when it took longer than ``seconds``.
    """
    require_qemu_img()
    limits = bounded(seconds=seconds, largest=largest)
    try:
        with trio.fail_after(seconds):
            return await trio.run_process(
                [*limits, *dropping_to(account), "qemu-img", *arguments],
                stdin=b"",
                capture_stdout=True,
                capture_stderr=True,
                check=False,
                pass_fds=tuple(pass_fds),
                env=environment_of(account, inherited_environment()),
                deliver_cancel=kill_at_once,
            )
    except trio.TooSlowError:
        raise Transient(f"qemu-img did not finish within {seconds:g} s") from None
    except OSError as error:
        raise Terminal(f"qemu-img cannot be run: {error.strerror}", "install qemu-utils") from error
