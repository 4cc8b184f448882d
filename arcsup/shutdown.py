"""Whether the host goes down with the daemon, and how systemd is asked to wait for VMs then.

One unit does it all: the daemon is told to end in either case, and asks which it is. A second unit
that stops the VMs first, as libvirt-guests does, would also stop them when somebody restarts it or
an upgrade does, and an inhibitor of logind holds a shutdown up for some seconds at most.
"""

import subprocess

import trio

from arcsup.notify import notify

PATIENCE = 5.0
"""Seconds for the service manager to answer; it has much to do when it shuts down."""

EXTENSION = 30.0
"""Seconds that systemd is asked to wait on, again and again for as long as VMs are stopping."""


async def host_goes_down(*, system: bool) -> bool:
    """Return whether the host (or the user's session) shuts down or reboots.

    Source: systemctl(1), is-system-running: ``stopping``. Without systemd nobody knows.
    """
    manager = ["systemctl"] if system else ["systemctl", "--user"]
    with trio.move_on_after(PATIENCE):
        try:
            answer = await trio.run_process(
                [*manager, "is-system-running"],
                capture_stdout=True,
                stderr=subprocess.DEVNULL,
                check=False,
            )
        except OSError:
            return False
        return answer.stdout.strip() == b"stopping"
    return False


async def ask_for_time() -> None:
    """Ask systemd for more than TimeoutStopSec until cancelled. Source: sd_notify(3)."""
    while True:
        notify(EXTEND_TIMEOUT_USEC=int(EXTENSION * 1_000_000))
        await trio.sleep(EXTENSION / 3)
