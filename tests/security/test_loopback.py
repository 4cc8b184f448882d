"""A guest sends what it likes by its forwarded ports; a program plays the guest, frame by frame."""

import os
import select
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
from attrs import define

from arcsup.host.loopback import close_loopback
from tests.own_group import move, needs_filter, own_group

pytestmark = needs_filter

MAC = b"\x52\x54\x00\x12\x34\x56"
ARP, IPV4, UDP = 0x0806, 0x0800, 17
PATIENCE = 30.0
FORWARDED = 5000


@define
class RawGuest:
    """The other end of QEMU's network: each frame has its length before it (qemu-doc, stream)."""

    end: socket.socket

    def send(self, frame: bytes) -> None:
        self.end.sendall(struct.pack("!I", len(frame)) + frame)

    def receive(self) -> bytes:
        [size] = struct.unpack("!I", self.end.recv(4, socket.MSG_WAITALL))
        return self.end.recv(size, socket.MSG_WAITALL)

    def receive_datagram(self) -> bytes:
        """Return the frame of the first datagram to the forwarded port; answer ARP meanwhile."""
        while True:
            frame = self.receive()
            [kind] = struct.unpack("!H", frame[12:14])
            if kind == ARP:
                head = struct.pack("!HHBBH", 1, IPV4, 6, 4, 2)
                answer = MAC + frame[38:42] + frame[22:28] + frame[28:32]
                self.send(frame[6:12] + MAC + frame[12:14] + head + answer)
            elif kind == IPV4 and frame[23] == UDP and frame[36:38] == struct.pack("!H", FORWARDED):
                return frame

    def answer(self, asked: bytes, port: int, data: bytes) -> None:
        """Send a datagram from the port that was asked, to another port of whoever asked."""
        udp = struct.pack("!HHHH", FORWARDED, port, 8 + len(data), 0) + data
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 1, 0, 64, UDP, 0)
        packet = head + asked[30:34] + asked[26:30]
        packet = packet[:10] + struct.pack("!H", checksum(packet)) + packet[12:] + udp
        self.send(asked[6:12] + MAC + struct.pack("!H", IPV4) + packet)


def checksum(head: bytes) -> int:
    words: tuple[int, ...] = struct.unpack(f"!{len(head) // 2}H", head)
    total = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


@contextmanager
def raw_guest(port: int, *, closed: bool) -> Iterator[RawGuest]:
    """Yield a guest that a UDP port of the host is forwarded to."""
    ours, theirs = socket.socketpair()
    argv = [
        "qemu-system-x86_64", "-machine", "none", "-nodefaults", "-display", "none",
        "-netdev", f"user,id=user,hostfwd=udp:127.0.0.1:{port}-:{FORWARDED}",
        "-netdev", "hubport,id=hub0,hubid=0,netdev=user",
        "-netdev", f"stream,id=raw,server=off,addr.type=fd,addr.str={theirs.fileno()}",
        "-netdev", "hubport,id=hub1,hubid=0,netdev=raw",
    ]  # fmt: skip
    with own_group() as folder, ours:
        if closed:
            close_loopback(folder.name, folder.parent)
        move(os.getpid(), folder)
        with theirs:
            qemu = subprocess.Popen(argv, pass_fds=[theirs.fileno()], stderr=subprocess.PIPE)
        move(os.getpid(), folder.parent)
        ours.settimeout(PATIENCE)
        try:
            yield RawGuest(ours)
        finally:
            qemu.kill()
            qemu.communicate()


def bound() -> socket.socket:
    taken = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    taken.bind(("127.0.0.1", 0))
    taken.settimeout(PATIENCE)
    return taken


@pytest.mark.parametrize("closed", [True, False])
def test_a_forwarded_port_answers_who_has_asked_and_reaches_nobody_else(closed: bool) -> None:
    with bound() as free:
        port = int(free.getsockname()[1])
    with bound() as client, bound() as victim, raw_guest(port, closed=closed) as guest:
        client.connect(("127.0.0.1", port))
        asked = ask(client, guest)
        [client_port] = struct.unpack("!H", asked[34:36])
        guest.answer(asked, int(victim.getsockname()[1]), b"attack")
        # In the order in which they were sent: the attack comes first, if it comes.
        guest.answer(asked, client_port, b"answer")
        assert client.recv(100).startswith(b"answer")

        victim.setblocking(False)
        if closed:
            with pytest.raises(BlockingIOError):
                victim.recv(100)
        else:
            assert victim.recv(100).startswith(b"attack")


def ask(client: socket.socket, guest: RawGuest) -> bytes:
    """Send to the forwarded port, again until QEMU listens; return what comes out at the guest."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        with suppress(ConnectionRefusedError):
            client.send(b"question")
        if select.select([guest.end], [], [], 0.05)[0]:
            return guest.receive_datagram()
    raise AssertionError("nothing came out at the guest")
