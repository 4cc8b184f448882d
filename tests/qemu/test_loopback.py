"""What a guest reaches of the host by QEMU's own network, and what the kernel keeps from it."""

import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Protocol

import pytest
import trio
from attrs import evolve

from arcsup.host.loopback import close_loopback
from arcsup.model import Argv, Forward
from arcsup.vm.capabilities import find_qemu, probe_capabilities
from arcsup.vm.networks import network_args
from tests.guest import READY
from tests.own_group import move, needs_filter, own_group
from tests.qemu.conftest import BareGuest, StartQemu
from tests.vm_samples import make_vm

pytestmark = [pytest.mark.guest, needs_filter]

SECRET = "SECRET-OF-THE-LOOPBACK"

AS_ITSELF = (
    "ip addr del 127.0.0.1/8 dev lo;"
    " for each in all lo eth0; do echo 1 >/proc/sys/net/ipv4/conf/$each/route_localnet; done;"
    " ip route add 127.0.0.0/8 via 10.0.2.2 dev eth0"
)
"""What a guest's root does to send frames to the host's own 127.0.0.1."""


class Start(Protocol):
    """Boots a guest whose QEMU is in a group that is kept from the loopback, or is not."""

    def __call__(
        self, *forwards: Forward, closed: bool
    ) -> AbstractAsyncContextManager[BareGuest]: ...


@pytest.fixture
def start(start_qemu: StartQemu, tmp_path: Path) -> Start:
    @asynccontextmanager
    async def start_in_group(*forwards: Forward, closed: bool) -> AsyncIterator[BareGuest]:
        network = await network_of(forwards, tmp_path)
        with own_group() as folder:
            if closed:
                close_loopback(folder.name, folder.parent)
            move(os.getpid(), folder)
            async with start_qemu(*network) as guest:
                # This process is to reach the guest by the loopback.
                move(os.getpid(), folder.parent)
                await guest.console.wait_for(READY)
                await guest.console.run("until ip route | grep -q default; do sleep 0.1; done")
                yield guest

    return start_in_group


async def network_of(forwards: tuple[Forward, ...], cache: Path) -> Argv:
    """Return QEMU's arguments for the default network of a VM."""
    vm = make_vm("web")
    vm = evolve(vm, networks=(evolve(vm.networks[0], forwards=forwards),))
    return network_args(vm, await probe_capabilities(find_qemu(vm), cache), vhost=False)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """Return what listens on the host's loopback."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


@pytest.fixture
def datagrams(listener: socket.socket) -> Iterator[socket.socket]:
    """Return what takes datagrams at the same port."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(listener.getsockname())
        taken.setblocking(False)
        yield taken


async def tell_secret(server: socket.socket) -> None:
    """Tell it to everybody who says something."""

    async def tell(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()
            await stream.send_all(f"{SECRET}\n".encode())

    listener = trio.SocketListener(trio.socket.from_stdlib_socket(server.dup()))
    await trio.serve_listeners(tell, [listener])


async def fetch(guest: BareGuest, address: str, port: int) -> str:
    """Return what the guest gets from there, or what stands in its way."""
    return await guest.console.run(f"echo hello | nc -w 10 {address} {port} 2>&1 || true")


async def send_datagram(guest: BareGuest, address: str, port: int) -> None:
    await guest.console.run(f"timeout 1 tftp -g -r x {address} {port} 2>/dev/null || true")


def has_datagram(taken: socket.socket) -> bool:
    try:
        return bool(taken.recv(1000))
    except BlockingIOError:
        return False


@pytest.mark.parametrize("closed", [True, False])
async def test_a_guest_is_kept_from_the_loopback_whatever_address_it_takes(
    closed: bool, start: Start, listener: socket.socket, datagrams: socket.socket
) -> None:
    port = int(listener.getsockname()[1])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tell_secret, listener)
        async with start(closed=closed) as guest:
            for address in ("10.0.2.2", "127.0.0.1"):
                if address == "127.0.0.1":
                    await guest.console.run(AS_ITSELF)
                assert (SECRET in await fetch(guest, address, port)) is not closed
                await send_datagram(guest, address, port)
                assert has_datagram(datagrams) is not closed
            assert await guest.console.run("cat /etc/resolv.conf") == "nameserver 10.0.2.3\n"
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("closed", [True, False])
async def test_a_guest_is_kept_from_the_loopback_of_ipv6(closed: bool, start: Start) -> None:
    async with trio.open_nursery() as nursery:
        with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
            nursery.start_soon(tell_secret, server)
            async with start(closed=closed) as guest:
                has_address = "ip -6 addr show dev eth0 | grep fec0: | grep -vq tentative"
                await guest.console.run(f"until {has_address}; do sleep 0.1; done")
                port = int(server.getsockname()[1])
                assert (SECRET in await fetch(guest, "fec0::2", port)) is not closed
            nursery.cancel_scope.cancel()


async def test_a_forward_serves_the_host_all_the_same(
    start: Start, listener: socket.socket
) -> None:
    port = int(listener.getsockname()[1])
    listener.close()
    async with start(Forward("tcp", "127.0.0.1", port, 80), closed=True) as guest:
        await guest.console.run("(nc -ll -p 80 -e cat &)")
        await guest.console.run("until netstat -ltn | grep -q ':80 '; do sleep 0.1; done")
        with trio.fail_after(30):
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                await stream.send_all(b"hello")
                assert await stream.receive_some() == b"hello"
