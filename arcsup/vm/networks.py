"""Network cards of a VM and what they are plugged into on the host."""

from pathlib import Path

from arcsup.errors import Terminal
from arcsup.model import (
    Argv,
    Forward,
    Network,
    NetworkModel,
    NetworkType,
    Vm,
)
from arcsup.spec.identity import derive_mac
from arcsup.vm.capabilities import Capabilities
from arcsup.vm.options import Slot, escape, on_off, pci_place
from arcsup.vm.taps import Tap

BRIDGE_RULES = (Path("/etc/qemu/bridge.conf"), Path("/etc/qemu-kvm/bridge.conf"))
"""Who may join which bridge (qemu-bridge-helper(8)); the second is RHEL's."""

_DEVICES = {
    NetworkModel.VIRTIO: "virtio-net-pci",
    NetworkModel.E1000E: "e1000e",
    NetworkModel.RTL8139: "rtl8139",
}


def check_networks(vm: Vm, sysfs: Path, rules: tuple[Path, ...] = BRIDGE_RULES) -> None:
    """Raise Terminal for a bridge or tap that this host does not have, or lets nobody use."""
    for index, network in enumerate(vm.networks):
        what = f"networks[{index}]"
        if network.type is NetworkType.BRIDGE:
            if not (sysfs / "class/net" / network.bridge / "bridge").is_dir():
                raise Terminal(
                    f"{what}: the host has no bridge {network.bridge}",
                    hint=f"make it (ip link add {network.bridge} type bridge), or correct the name",
                )
            if not any(file.is_file() for file in rules):
                # QEMU's bridge helper refuses everything then, for root too.
                raise Terminal(
                    f"{what}: there is no {rules[0]}, so QEMU may join no bridge",
                    hint=f'write "allow {network.bridge}" into it',
                )
        if network.type is NetworkType.TAP and not (sysfs / "class/net" / network.tap).exists():
            raise Terminal(
                f"{what}: the host has no interface {network.tap}",
                hint=f"make it: ip tuntap add {network.tap} mode tap user USER",
            )


def network_args(
    vm: Vm, capabilities: Capabilities, *, vhost: bool, taps: tuple[Tap, ...] = ()
) -> Argv:
    """Return the options of all network cards but VFs, which are slices of host devices.

    ``vhost`` says whether /dev/vhost-net can be opened: the kernel then moves a tap's packets.
    ``taps`` are those that QEMU inherits.
    """
    opened = {tap.index: tap for tap in taps}
    argv: list[str] = []
    emulated = [(i, net) for i, net in enumerate(vm.networks) if net.type is not NetworkType.VF]
    for position, (index, network) in enumerate(emulated):
        place = pci_place(Slot.NETWORKS, position, slots=2, what="emulated network cards")
        device = _DEVICES[network.model]
        if network.model is not NetworkModel.VIRTIO:
            capabilities.require_device(device)
        mac = network.mac or derive_mac(vm.uuid, index)
        argv += [
            "-netdev",
            _tap(f"net{index}", opened[index])
            if index in opened
            else _netdev(f"net{index}", network, capabilities, vhost=vhost),
            # No boot ROM: nothing boots from the network, and the ROMs are a package of their own.
            "-device", f"{device},id=nic{index},netdev=net{index},mac={mac},{place},romfile=",
        ]  # fmt: skip
    return tuple(argv)


def _tap(name: str, tap: Tap) -> str:
    fast = "" if tap.vhost is None else f",vhost=on,vhostfd={tap.vhost}"
    return f"tap,id={name},fd={tap.fd}{fast}"


def _netdev(name: str, network: Network, capabilities: Capabilities, *, vhost: bool) -> str:
    if network.type.value not in capabilities.netdevs:
        raise Terminal(
            f"this QEMU ({capabilities.version_text}) has no {network.type.value} network",
            hint="install a QEMU that was built with it, or choose another network type",
        )
    if network.type is NetworkType.BRIDGE:
        return f"bridge,id={name},br={escape(network.bridge)}"
    if network.type is NetworkType.TAP:
        fast = on_off(vhost and network.model is NetworkModel.VIRTIO)
        return f"tap,id={name},ifname={escape(network.tap)},script=no,downscript=no,vhost={fast}"
    return "".join([f"user,id={name}", *(f",hostfwd={_hostfwd(f)}" for f in network.forwards)])


def _hostfwd(forward: Forward) -> str:
    if ":" in forward.address:
        # Measured with 7.2, 10.0 and 11.1: "Bad host address".
        raise Terminal(
            f"forwards: QEMU's user network cannot listen on the IPv6 address {forward.address}",
            hint='use an IPv4 address, or "" for all IPv4 addresses',
        )
    return f"{forward.protocol}:{escape(forward.address)}:{forward.host_port}-:{forward.guest_port}"
