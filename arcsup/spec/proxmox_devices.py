"""The devices of Proxmox VE's qm.conf in arcsup's words. Source: qm.conf(5), storage.cfg."""

import re
from collections.abc import Callable, Mapping

from arcsup.spec.draft import At, Keys, Value
from arcsup.spec.pci_functions import ask_for_function
from arcsup.spec.proxmox_machine import Entry, Machine

_FOLDERS = {"local": "/var/lib/vz"}
_VOLUMES = {"local-lvm": "/dev/pve", "local-zfs": "/dev/zvol/rpool/data"}
"""Where the storages of a fresh installation are; those of others are known to storage.cfg."""

_FORMATS = frozenset({"cloop", "cow", "qcow", "qcow2", "qed", "raw", "vmdk"})
"""Those of qm.conf(5), which are suffixes of volumes too."""

_BUSES = {"scsi": "scsi", "virtio": "virtio", "sata": "sata", "ide": "sata"}
_MODELS = {"virtio": "virtio", "e1000e": "e1000e", "rtl8139": "rtl8139"}
_ALL_MODELS = frozenset({*_MODELS, "e1000", "vmxnet3", "ne2k_pci", "pcnet", "i82551", "i82557b"})
_HARMLESS = frozenset(
    {
        *("size", "format", "media", "discard", "iothread", "ssd", "aio", "backup"),
        *("replicate", "detect_zeroes", "file", "volume"),
    }
)


def _translate_disk(machine: Machine, entry: Entry) -> None:
    first, named = entry.parts()
    volume = named.get("file", named.get("volume", first))
    if named.get("media") == "cdrom" or volume in {"none", "cdrom"}:
        if volume == "cdrom":
            machine.note(entry, "the host's own drive is not carried over; name an image")
        elif volume != "none" and "cloudinit" in volume:
            machine.note(entry, "the cloud-init drive is not carried over")
        elif volume != "none":
            machine.cdroms.append(At(_find_volume(machine, entry, volume), entry.mark))
        return
    kind = named.get("format") or _format_of(volume)
    if kind not in {"raw", "qcow2"}:
        message = f"format {kind} is not supported: qemu-img convert it"
        machine.draft.refuse(entry.mark, entry.key, message)
        return
    bus = entry.key.rstrip("0123456789")
    path = _find_volume(machine, entry, volume)
    disk: Keys = {"path": path, "format": kind, "bus": _BUSES[bus]}
    if bus == "ide":
        machine.note(entry, "the bus is sata here")
    if named.get("ro") == "1":
        disk["readonly"] = True
    if named.get("cache") in {"none", "writeback"}:
        del named["cache"]
    if lost := [key for key in named if key not in {*_HARMLESS, "ro"}]:
        machine.note(entry, f"{', '.join(lost)}: is not carried over")
    machine.disks[entry.key] = At(disk, entry.mark)


def _format_of(volume: str) -> str:
    """Return the format that a volume's suffix names; without one it is a block device's."""
    suffix = volume.rpartition(".")[2]
    return suffix if suffix in _FORMATS else "raw"


def _find_volume(machine: Machine, entry: Entry, volume: str) -> str:
    """Return the path of ``STORAGE:VOLUME``; a linked clone is ``BASE'S VOLUME/ITS OWN``."""
    storage, colon, name = volume.partition(":")
    if volume.startswith("/") or not colon:
        return volume
    parts = name.split("/")
    if len(parts) == 4:
        base = f"../{parts[0]}/{parts[1]}"
        machine.note(entry, f"is a linked clone: its base must be there, too, as {base}")
    if storage in _FOLDERS:
        is_iso = parts[0] == "iso"
        place = f"template/iso/{name[4:]}" if is_iso else f"images/{'/'.join(parts[-2:])}"
        path = f"{_FOLDERS[storage]}/{place}"
    elif storage in _VOLUMES:
        path = f"{_VOLUMES[storage]}/{parts[-1]}"
    else:
        path = parts[-1] or storage
        machine.note(
            entry,
            f"where storage {storage} is stands in Proxmox VE's storage.cfg: put "
            f"{path} below STATE/images, or write its whole path",
        )
        return path
    machine.note(
        entry, f"storage {storage} is taken to be at {_FOLDERS.get(storage) or _VOLUMES[storage]}"
    )
    return path


def _translate_network(machine: Machine, entry: Entry) -> None:
    first, named = entry.parts()
    kind, mac = first, ""
    for model in _ALL_MODELS:
        if model in named:
            kind, mac = model, named.pop(model)
    kind, mac = named.pop("model", kind), named.pop("macaddr", mac)
    network: Keys = {"type": "user"}
    bridge = named.pop("bridge", "")
    if bridge:
        network = {"type": "bridge", "bridge": bridge}
    network["mac"] = At(mac, entry.mark) if mac else None
    network["model"] = _MODELS.get(kind, "e1000e")
    if kind not in _MODELS:
        machine.note(entry, f"model {kind} is e1000e here")
    named.pop("queues", None)
    if lost := [key for key, value in named.items() if (key, value) != ("firewall", "0")]:
        machine.note(entry, f"{', '.join(lost)}: is not carried over")
    machine.networks.append(At(network, entry.mark))


def _translate_hostpci(machine: Machine, entry: Entry) -> None:
    first, named = entry.parts()
    host = named.pop("host", first)
    if "mapping" in named:
        machine.draft.refuse(
            entry.mark,
            entry.key,
            f"mapping {named['mapping']!r} is known to Proxmox VE only: write host=PCI-ADDRESS",
        )
        return
    mdev = named.pop("mdev", "")
    if mdev:
        parent = At(_whole_address(host), entry.mark)
        vgpu: Keys = {"kind": "vgpu", "mdevType": mdev, "parent": parent}
        machine.gpus.append(At(vgpu, entry.mark))
    else:
        _pass_functions(machine, entry, host.split(";"), is_gpu=named.get("x-vga") == "1")
    lost = [key for key in named if (key, named[key]) not in {("pcie", "1"), ("rombar", "1")}]
    if lost:
        machine.note(entry, f"{', '.join(lost)}: is not carried over")


def _pass_functions(machine: Machine, entry: Entry, hosts: list[str], *, is_gpu: bool) -> None:
    for host in hosts:
        address = _whole_address(host)
        if "." not in host:
            machine.note(entry, f"all functions of {host}: here {address}, its sound and its USB")
        gpu = ask_for_function(
            address,
            entry.mark,
            machine.functions,
            lambda message: machine.note(entry, message),
            is_gpu=is_gpu,
        )
        if gpu is not None:
            machine.gpus.append(At(gpu, entry.mark))


def _whole_address(host: str) -> str:
    """Return the address of a function, the first for a slot."""
    address = (host if "." in host else f"{host}.0").lower()
    return f"0000:{address}" if address.count(":") == 1 else address


def find_functions(entries: Mapping[str, Entry]) -> frozenset[str]:
    """Return the addresses of all functions that a file passes."""
    found: set[str] = set()
    for key, entry in entries.items():
        if key.rstrip("0123456789") == "hostpci":
            first, named = entry.parts()
            found.update(_whole_address(host) for host in named.get("host", first).split(";"))
    return frozenset(found)


def _translate_usb(machine: Machine, entry: Entry) -> None:
    first, named = entry.parts()
    host = named.get("host", first)
    if match := re.fullmatch("(0x)?([0-9A-Fa-f]{1,4}):(0x)?([0-9A-Fa-f]{1,4})", host):
        usb: Keys = {"vendor": match[2], "product": match[4]}
        machine.usb.append(At(usb, entry.mark))
    elif match := re.fullmatch(r"([0-9]{1,3})-([0-9.]+)", host):
        by_port: Keys = {"bus": int(match[1]), "port": match[2]}
        machine.usb.append(At(by_port, entry.mark))
    elif host != "spice":
        machine.note(entry, "is not carried over: name it by vendor:product or bus-port")


def _translate_audio(machine: Machine, entry: Entry) -> None:
    if entry.parts()[1].get("driver", "spice") == "spice" and _display(machine) == "spice":
        machine.draft.keys["audio"] = At("spice", entry.mark)
    else:
        machine.note(entry, "is not carried over: sound over SPICE needs a SPICE display")


def _display(machine: Machine) -> str:
    """Return what shows the picture: Proxmox VE has its VNC console unless told otherwise."""
    vga = machine.entries.get("vga")
    first, named = vga.parts() if vga is not None else ("std", {})
    kind = named.get("type", first)
    if kind == "none" or kind.startswith("serial"):
        return "none"
    return "spice" if kind.startswith("qxl") else "vnc"


def finish_devices(machine: Machine) -> None:
    """Put the lists into the draft, the disk that boots first."""
    keys, vga = machine.draft.keys, machine.entries.get("vga")
    order = _boot_order(machine)
    ranked = sorted(machine.disks, key=lambda key: order.index(key) if key in order else len(order))
    lists: dict[str, list[Value]] = {
        "disks": [machine.disks[key] for key in ranked],
        "cdroms": machine.cdroms,
        "gpus": machine.gpus,
        "usb": machine.usb,
    }
    if vga is not None and vga.text.startswith(("virtio", "type=virtio")):
        gpu: Keys = {"kind": "virtio"}
        if "virtio-gl" in vga.text:
            gpu["gl"] = True
        machine.gpus.append(At(gpu, vga.mark))
    keys.update({key: values for key, values in lists.items() if values})
    keys["networks"] = machine.networks
    shown = _display(machine)
    keys["display"] = At(shown, vga.mark) if vga is not None else shown


def _boot_order(machine: Machine) -> list[str]:
    boot = machine.entries.get("boot")
    if boot is None:
        return [machine.text("bootdisk")]
    order = boot.parts()[1].get("order", "").split(";")
    if order[0] and order[0] not in machine.disks:
        machine.note(boot, f"{order[0]} boots first there: here the first disk does, then CD-ROMs")
    return order if order[0] else [machine.text("bootdisk")]


DEVICES: dict[str, Callable[[Machine, Entry], None]] = {
    **dict.fromkeys(_BUSES, _translate_disk),
    "net": _translate_network,
    "hostpci": _translate_hostpci,
    "usb": _translate_usb,
    "audio": _translate_audio,
}
