"""Taps that the daemon opens for a QEMU that is not root, and hands over as descriptors.

A QEMU without rights can open no tap that belongs to somebody, and qemu-bridge-helper, a setuid
program, is no use to it. So the daemon does what either would have done.
Sources: Documentation/networking/tuntap.rst; qemu-bridge-helper.c (``--fd``).
"""

import fcntl
import os
import socket
import struct
from pathlib import Path

from attrs import frozen

from arcsup.errors import Terminal
from arcsup.model import Network, NetworkModel, NetworkType
from arcsup.vm.programs import last_words, run_program

BRIDGE_HELPERS = (
    Path("/usr/lib/qemu/qemu-bridge-helper"),
    Path("/usr/libexec/qemu-bridge-helper"),
    Path("/usr/lib/qemu-bridge-helper"),
)

_TUNSETIFF = 0x400454CA
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
_IFREQ = "16sH22x"

_HELPER_SECONDS = 10.0


@frozen
class Tap:
    """A network's open tap; ``vhost`` is an open /dev/vhost-net, where there is one."""

    index: int
    fd: int
    vhost: int | None = None

    @property
    def descriptors(self) -> tuple[int, ...]:
        """What QEMU inherits."""
        return (self.fd,) if self.vhost is None else (self.fd, self.vhost)

    def close(self) -> None:
        """Close both."""
        for descriptor in self.descriptors:
            os.close(descriptor)


async def open_tap(index: int, network: Network, *, vhost: bool) -> Tap:
    """Open the tap of a network, or a new one that joins its bridge.

    ``vhost`` asks for /dev/vhost-net too. Raises Terminal; closing it is the caller's.
    """
    what = f"networks[{index}]"
    if network.type is NetworkType.BRIDGE:
        descriptor = await _join_bridge(what, network.bridge)
    else:
        descriptor = _attach(what, network.tap)
    try:
        fast = vhost and network.model is NetworkModel.VIRTIO
        return Tap(index, descriptor, _open_vhost() if fast else None)
    except BaseException:
        os.close(descriptor)
        raise


def _attach(what: str, name: str) -> int:
    """Open an interface that is there: this would make one that is not."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    try:
        flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR
        fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack(_IFREQ, name.encode(), flags))
    except OSError as error:
        os.close(descriptor)
        raise Terminal(
            f"{what}: {name} cannot be opened: {error.strerror}",
            f"it must be a tap that nobody has: ip tuntap add {name} mode tap",
        ) from error
    return descriptor


async def _join_bridge(what: str, bridge: str) -> int:
    helper = next((path for path in BRIDGE_HELPERS if path.exists()), None)
    if helper is None:
        raise Terminal(f"{what}: there is no qemu-bridge-helper", "install qemu-system-common")
    ours, theirs = socket.socketpair()
    with ours, theirs:
        argv = (str(helper), "--use-vnet", f"--br={bridge}", f"--fd={theirs.fileno()}")
        done = await run_program(argv, seconds=_HELPER_SECONDS, pass_fds=(theirs.fileno(),))
        if done.returncode != 0:
            raise Terminal(
                f"{what}: cannot join {bridge}: {last_words(done.stderr)}",
                f'/etc/qemu/bridge.conf must allow it: "allow {bridge}"',
            )
        ours.setblocking(False)
        _data, descriptors, _flags, _address = socket.recv_fds(ours, 1, 1)
    os.set_inheritable(descriptors[0], False)
    return descriptors[0]


def _open_vhost() -> int | None:
    try:
        return os.open("/dev/vhost-net", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
