"""qemu-img for a daemon that is root: as the VM's user, on descriptors that the daemon opened.

An image tool follows what the header of an image says. As a user who may open nothing but what the
daemon has lent, it follows it nowhere.
"""

import subprocess
from collections.abc import Sequence

import trio

from arcsup.errors import Terminal, Transient
from arcsup.host.accounts import Account
from arcsup.vm.privileges import dropping_to, environment_of
from arcsup.vm.process import inherited_environment
from arcsup.vm.programs import kill_at_once


async def run_image_tool(
    arguments: Sequence[str],
    *,
    account: Account | None,
    pass_fds: Sequence[int] = (),
    seconds: float,
) -> subprocess.CompletedProcess[bytes]:
    """Run qemu-img to its end as ``account``, None for this process's user; return its output.

    Raises Terminal where it cannot be run, Transient when it took longer than ``seconds``.
    """
    try:
        with trio.fail_after(seconds):
            return await trio.run_process(
                [*dropping_to(account), "qemu-img", *arguments],
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
