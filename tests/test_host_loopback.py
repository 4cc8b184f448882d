"""The kernel's filter of what the programs of a control group connect to, on this kernel."""

import errno
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from arcsup.host.loopback import DNS_PORT, close_loopback
from tests.own_group import errno_in, needs_filter, own_group

pytestmark = needs_filter

LOOPBACK = ("127.0.0.1", "127.4.5.6", "0.0.0.0")
LOOPBACK6 = ("::1", "::", "::ffff:127.0.0.1", "::ffff:127.4.5.6", "::ffff:0.0.0.0")
ELSEWHERE = ("192.0.2.99", "126.255.255.255", "128.0.0.1", "10.0.0.127")
ELSEWHERE6 = ("2001:db8::1", "::2", "::1:1", "::ffff:192.0.2.99", "::fffe:7f00:1", "1::1")


@pytest.fixture
def group() -> Iterator[Path]:
    """Return the folder of a group that is kept from the loopback."""
    with own_group() as folder:
        close_loopback(folder.name, folder.parent)
        yield folder


@pytest.fixture
def port() -> Iterator[int]:
    """Return a port at which TCP connections and datagrams are taken, at all addresses."""
    with ExitStack() as opened:
        server = opened.enter_context(
            socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
        )
        number = int(server.getsockname()[1])
        taken = opened.enter_context(socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))
        taken.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        taken.bind(("::", number))
        yield number


def family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def connect(address: str, port: int) -> None:
    with socket.socket(family(address)) as client:
        client.settimeout(5)
        client.connect((address, port))


def connect_datagrams(address: str, port: int) -> None:
    with socket.socket(family(address), socket.SOCK_DGRAM) as client:
        client.connect((address, port))


def send(address: str, port: int) -> None:
    with socket.socket(family(address), socket.SOCK_DGRAM) as client:
        client.sendto(b"x", (address, port))


def send_mapped(address: str, port: int) -> None:
    """Send from a socket that serves both versions of IP."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as client:
        client.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        client.sendto(b"x", (address, port))


@pytest.mark.parametrize("address", [*LOOPBACK, *LOOPBACK6])
@pytest.mark.parametrize("how", [connect, connect_datagrams, send, send_mapped])
def test_nothing_gets_from_the_group_to_the_loopback(
    how: Callable[[str, int], None], address: str, group: Path, port: int
) -> None:
    if how is send_mapped and ":" not in address:
        address = f"::ffff:{address}"

    assert errno_in(group, lambda: how(address, port)) == errno.EPERM
    assert errno_in(group.parent, lambda: how(address, port)) == 0


@pytest.mark.parametrize("address", [*ELSEWHERE, *ELSEWHERE6])
def test_other_addresses_are_left_to_the_routes(address: str, group: Path) -> None:
    # A socket of datagrams asks for a route only: nothing is sent.
    assert errno_in(group, lambda: connect_datagrams(address, 9)) != errno.EPERM


@pytest.mark.parametrize("address", [*LOOPBACK, *LOOPBACK6])
def test_the_hosts_nameserver_is_reached(address: str, group: Path) -> None:
    assert errno_in(group, lambda: send(address, DNS_PORT)) in {0, errno.ECONNREFUSED}
    assert errno_in(group, lambda: connect_datagrams(address, DNS_PORT)) == 0


def test_who_has_sent_a_datagram_gets_an_answer_and_nobody_else(group: Path) -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other,
    ):
        for it in (client, other):
            it.bind(("127.0.0.1", 0))
            it.settimeout(10)
        reader, writer = os.pipe()

        def serve() -> None:
            with (
                socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as served,
                socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as unasked,
            ):
                served.bind(("127.0.0.1", 0))
                served.settimeout(10)
                os.write(writer, f"{served.getsockname()[1]}\n".encode())
                _, sender = served.recvfrom(100)
                for bad, address in ((served, other.getsockname()), (unasked, sender)):
                    try:
                        bad.sendto(b"unasked", address)
                    except PermissionError:
                        continue
                    raise OSError(errno.EEXIST, "it was sent")
                served.sendto(b"answer", sender)

        with open(reader) as told, ExitStack() as later:
            later.callback(os.close, writer)
            pid = os.fork()
            if pid == 0:
                os._exit(errno_in(group, serve))
            client.sendto(b"question", ("127.0.0.1", int(told.readline())))
            assert client.recv(100) == b"answer"
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_what_is_accepted_goes_both_ways(group: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            taken, _ = server.accept()
            taken.sendall(taken.recv(100))

        pid = os.fork()
        if pid == 0:
            os._exit(errno_in(group, serve))
        with socket.create_connection(server.getsockname(), 10) as client:
            client.sendall(b"hello")
            assert client.recv(100) == b"hello"
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_closing_it_twice_changes_nothing(group: Path, port: int) -> None:
    for _ in range(100):
        close_loopback(group.name, group.parent)

    assert errno_in(group, lambda: connect("127.0.0.1", port)) == errno.EPERM


def test_a_group_that_is_not_there_is_an_error() -> None:
    with own_group() as folder, pytest.raises(FileNotFoundError):
        close_loopback(f"{folder.name}-other", folder.parent)
