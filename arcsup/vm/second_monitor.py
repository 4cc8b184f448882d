"""The monitor that people have: what is left to ask a QEMU by when the daemon's own is silent.

Another program may sit on the daemon's monitor, or its socket may be gone; QEMU and its guest are
well all the while. Each conversation is short, because the socket is people's first of all.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from arcsup.vm.qmp import Qmp, check_peer, connect_qmp_socket, open_qmp, query_status

SECOND_MONITOR = "monitor.sock"
"""Its name in the VM's runtime folder."""

SECOND_ANSWER = 3.0
"""Seconds that a conversation may take; somebody else may be in the middle of one."""


@asynccontextmanager
async def open_second_monitor(socket: Path, pid: int) -> AsyncIterator[Qmp]:
    """Yield a session by the people's monitor of the QEMU ``pid``.

    Raises OSError, QMPError, and TooSlowError when it does not answer within ``SECOND_ANSWER``.
    """
    with trio.fail_after(SECOND_ANSWER):
        stream, peer = await connect_qmp_socket(socket)
        async with stream:
            check_peer(peer, pid)
            async with open_qmp(stream) as qmp:
                yield qmp


async def query_status_elsewhere(socket: Path, pid: int) -> str:
    """Return QEMU's run state as the people's monitor tells it. Raises as above."""
    async with open_second_monitor(socket, pid) as qmp:
        return await query_status(qmp)


async def quit_elsewhere(socket: Path, pid: int) -> None:
    """Have QEMU quit by the people's monitor. Raises as above."""
    async with open_second_monitor(socket, pid) as qmp:
        await qmp.execute("quit")
