"""Fixtures for tests that start real QEMU processes."""

import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
import trio
from attrs import frozen

from arcsup.vm.qmp import Qmp, connect_qmp_socket, open_qmp
from tests.guest import CMDLINE, Console, guest_files, open_console
from tests.leftovers import find_processes_naming


@frozen
class BareGuest:
    """A guest in a QEMU that nobody supervises."""

    process: trio.Process
    qmp: Qmp
    console: Console


StartQemu = Callable[..., AbstractAsyncContextManager[BareGuest]]


async def connect_if_there(path: Path) -> trio.SocketStream | None:
    """Connect to a monitor, None while nobody listens: the file is there a moment before."""
    try:
        stream, _pid = await connect_qmp_socket(path)
    except (FileNotFoundError, ConnectionRefusedError):
        return None
    return stream


@pytest.fixture
def start_qemu(short_dir: Path) -> StartQemu:
    """Return a function that boots the test guest: ``async with start_qemu(*args) as guest``.

    ``args`` are further QEMU arguments; ``cmdline`` is appended to the kernel's.
    """

    @asynccontextmanager
    async def start(*args: str, cmdline: str = "") -> AsyncIterator[BareGuest]:
        kernel, initrd = guest_files()
        qmp, console = short_dir / "bare-qmp", short_dir / "bare-console"
        argv = [
            "qemu-system-x86_64",
            "-machine", "q35,accel=tcg", "-m", "256", "-nodefaults", "-no-user-config",
            "-display", "none",
            "-kernel", str(kernel), "-initrd", str(initrd),
            "-append", f"{CMDLINE} {cmdline}",
            "-chardev", f"socket,id=console,path={console},server=on,wait=off",
            "-serial", "chardev:console",
            "-chardev", f"socket,id=qmp,path={qmp},server=on,wait=off",
            "-mon", "chardev=qmp,mode=control",
            # The guest waits until both ends of its console are there: nothing is missed.
            "-S",
            *args,
        ]  # fmt: skip
        async with trio.open_nursery() as nursery:
            process = await nursery.start(trio.run_process, argv)
            while (stream := await connect_if_there(qmp)) is None:
                assert process.returncode is None, "QEMU rejected its arguments"
                await trio.sleep(0.01)
            # The console came first on the command line: it is there too.
            async with open_qmp(stream) as session, open_console(console) as serial:
                await session.execute("cont")
                yield BareGuest(process, session, serial)
            nursery.cancel_scope.cancel()

    return start


@pytest.fixture(autouse=True)
def nothing_is_left(short_dir: Path) -> Iterator[None]:
    """End and report every process that a test has left behind."""
    yield
    left = find_processes_naming(short_dir)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.qemu)
