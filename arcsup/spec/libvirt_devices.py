"""The devices of libvirt's domain XML in arcsup's words. Source: "Domain XML format", Devices."""

import re
from collections.abc import Callable

from attrs import define, field

from arcsup.spec.draft import At, Draft, Keys, Value
from arcsup.spec.pci_functions import ask_for_function
from arcsup.spec.xml_nodes import Element

_OWN_WORK = frozenset(
    {
        *("emulator", "controller", "input", "console", "serial", "memballoon", "rng", "panic"),
        *("hub", "redirdev", "audio", "iommu", "parallel"),
    }
)
"""Devices that every VM of arcsup has if it needs them."""

_LOST = {"iommu", "parallel"}
_BUSES = {"virtio": "virtio", "scsi": "scsi", "sata": "sata", "nvme": "nvme", "": "virtio"}
_MODELS = {"virtio": "virtio", "e1000e": "e1000e", "rtl8139": "rtl8139", "": "rtl8139"}
_CHANNELS = frozenset({"org.qemu.guest_agent.0", "com.redhat.spice.0"})


@define
class _Lists:
    """What the native file has lists of; ``functions`` are all that the domain passes."""

    functions: frozenset[str]
    disks: list[Value] = field(factory=list)
    cdroms: list[Value] = field(factory=list)
    networks: list[Value] = field(factory=list)
    gpus: list[Value] = field(factory=list)
    shares: list[Value] = field(factory=list)
    usb: list[Value] = field(factory=list)


def translate_devices(root: Element, draft: Draft) -> None:
    """Add the devices of a domain to its draft."""
    devices = root.find("devices")
    passed = root.find_all("devices/hostdev")
    lists = _Lists(frozenset(_find_address(one) for one in passed))
    # Whether there can be sound depends on the display, which may come after it.
    elements = sorted(devices.children if devices else (), key=lambda one: one.tag != "graphics")
    for element in elements:
        handler = _HANDLERS.get(element.tag)
        if handler is not None:
            handler(element, draft, lists)
        elif element.tag not in _OWN_WORK or element.tag in _LOST:
            draft.note(element.mark, f"<{element.tag}>", "is not carried over")
    mark = devices.mark if devices is not None else root.mark
    for key in ("disks", "cdroms", "gpus", "shares", "usb"):
        if values := getattr(lists, key):
            draft.keys[key] = At(values, mark)
    draft.keys["networks"] = At(lists.networks, mark)


def _translate_disk(element: Element, draft: Draft, lists: _Lists) -> None:
    source = element.find("source")
    kind = element.get("", "device") or "disk"
    target = element.get("target", "dev")
    path = (source.get("", "file") or source.get("", "dev")) if source is not None else ""
    what = f"<disk> {target}".strip()
    if kind == "cdrom":
        if path:
            lists.cdroms.append(At(path, element.mark))
        return
    if kind != "disk" or not path:
        where = element.get("", "type") or "file"
        draft.note(element.mark, what, f"is not carried over: a {kind} from a {where}")
        return
    disk: Keys = {"path": At(path, source.mark if source is not None else element.mark)}
    for key in (*element.find_all("encryption"), *element.find_all("source/encryption")):
        draft.refuse(key.mark, what, "is encrypted, and arcsup has no key: qemu-img convert it")
    image = element.get("driver", "type") or "raw"
    if image in {"raw", "qcow2"}:
        disk["format"] = image
    else:
        draft.refuse(element.mark, what, f"format {image} is not supported: qemu-img convert it")
    bus = element.get("target", "bus")
    disk["bus"] = _BUSES.get(bus, "sata")
    if bus not in _BUSES:
        draft.note(element.mark, what, f"bus {bus} is sata here")
    if element.find("readonly") is not None:
        disk["readonly"] = True
    for child in element.children:
        if child.tag in {"iotune", "mirror", "transient", "shareable", "serial"}:
            draft.note(child.mark, f"{what}/<{child.tag}>", "is not carried over")
    entry = At(disk, element.mark)
    # What boots first is first in arcsup's list.
    if element.get("boot", "order") == "1":
        lists.disks.insert(0, entry)
    else:
        lists.disks.append(entry)


def _translate_interface(element: Element, draft: Draft, lists: _Lists) -> None:
    kind = element.get("", "type")
    source = element.find("source")
    network: Keys = {}
    if kind == "bridge":
        network |= {"type": "bridge", "bridge": source.get("", "bridge") if source else ""}
    elif kind == "ethernet" and element.get("target", "dev"):
        network |= {"type": "tap", "tap": element.get("target", "dev")}
    elif kind == "hostdev":
        address = _find_address(element)
        network |= {"type": "vf", "parent": At(address, element.mark) if address else None}
    else:
        network |= {"type": "user"}
        if kind != "user":
            name = source.get("", kind) if source is not None else ""
            message = f"{kind} {name}".strip() + ": is QEMU's own NAT here; or say a bridge"
            draft.note(element.mark, "<interface>", message)
    if mac := element.get("mac", "address"):
        network["mac"] = At(mac, element.mark)
    model = element.get("model", "type")
    if kind != "hostdev":
        network["model"] = _MODELS.get(model, "e1000e")
        if model not in _MODELS:
            draft.note(element.mark, "<interface>", f"model {model} is e1000e here")
    for child in element.children:
        if child.tag in {"vlan", "bandwidth", "filterref", "portForward", "ip", "route"}:
            draft.note(child.mark, f"<interface>/<{child.tag}>", "is not carried over")
    lists.networks.append(At(network, element.mark))


def _translate_hostdev(element: Element, draft: Draft, lists: _Lists) -> None:
    kind = element.get("", "type")
    if kind == "mdev":
        uuid = element.get("source/address", "uuid")
        gpu: Keys = {"kind": "vgpu"}
        if element.get("", "display") == "on":
            gpu["display"] = True
        message = (
            f"mdev {uuid}: libvirt does not say of which type it is; arcsup makes one itself: "
            "say mdevType, or minVRam and maxVRam"
        )
        draft.note(element.mark, "<hostdev>", message)
        lists.gpus.append(At(gpu, element.mark))
    elif kind == "pci":
        _translate_function(element, draft, lists)
    elif kind == "usb":
        _translate_usb(element, draft, lists)
    else:
        draft.note(element.mark, "<hostdev>", f"type {kind}: is not carried over")


def _translate_function(element: Element, draft: Draft, lists: _Lists) -> None:
    address = _find_address(element)
    if not address:
        draft.refuse(element.mark, "<hostdev>", "expected a PCI address in <source>/<address>")
        return
    gpu = ask_for_function(
        address,
        element.mark,
        lists.functions,
        lambda message: draft.note(element.mark, "<hostdev>", message),
    )
    if gpu is None:
        return
    for child in element.children:
        if child.tag == "rom" and (child.get("", "file") or child.get("", "bar") == "off"):
            draft.note(child.mark, "<hostdev>/<rom>", "is not carried over")
    lists.gpus.append(At(gpu, element.mark))


def _find_address(element: Element) -> str:
    """Return the PCI address of the host's device, "" where there is none."""
    parts = [element.get("source/address", key) for key in ("domain", "bus", "slot", "function")]
    numbers = [_hex(part or "0x0") for part in parts]
    if any(number is None for number in numbers) or not parts[1]:
        return ""
    domain, bus, slot, function = (number or 0 for number in numbers)
    return f"{domain:04x}:{bus:02x}:{slot:02x}.{function:x}"


def _translate_usb(element: Element, draft: Draft, lists: _Lists) -> None:
    vendor, product = (element.get(f"source/{key}", "id") for key in ("vendor", "product"))
    if vendor and product:
        usb: Keys = {"vendor": vendor, "product": product}
        lists.usb.append(At(usb, element.mark))
    else:
        message = "is not carried over: name it by vendor and product, or by bus and port"
        draft.note(element.mark, "<hostdev>", message)


def _hex(text: str) -> int | None:
    return int(text, 0) if re.fullmatch("0x[0-9a-fA-F]{1,8}|0|[1-9][0-9]{0,8}", text) else None


def _translate_graphics(element: Element, draft: Draft, _: _Lists) -> None:
    kind = element.get("", "type")
    names = {"spice": "spice", "vnc": "vnc", "egl-headless": "egl-headless"}
    if kind in {"sdl", "dbus", "rdp", "desktop"}:
        draft.note(element.mark, "<graphics>", f"{kind} is VNC on a unix socket here")
    shown = names.get(kind, "vnc")
    before = draft.keys.get("display")
    if isinstance(before, At):
        if shown != "egl-headless":
            message = f"{kind} is not carried over: a VM has one display"
            draft.note(element.mark, "<graphics>", message)
        return
    display: Keys = {"type": shown}
    port = element.get("", "port")
    if shown != "egl-headless" and re.fullmatch("[1-9][0-9]{0,4}", port):
        display["port"] = int(port)
        display["listen"] = element.get("", "listen") or element.get("listen", "address") or None
    if element.get("", "passwd"):
        message = "the password is not carried over: whoever reaches the display is let in"
        draft.note(element.mark, "<graphics>", message)
        if display.pop("listen", None):
            draft.note(element.mark, "<graphics>", "therefore listens on loopback only")
    draft.keys["display"] = At(display, element.mark)


def _translate_video(element: Element, draft: Draft, lists: _Lists) -> None:
    model = element.get("model", "type")
    if model == "virtio":
        gpu: Keys = {"kind": "virtio"}
        if element.get("model/acceleration", "accel3d") == "yes":
            gpu["gl"] = True
        lists.gpus.append(At(gpu, element.mark))
    elif model not in {"", "vga", "none"}:
        draft.note(element.mark, "<video>", f"model {model} is a VGA card here")


def _translate_tpm(element: Element, draft: Draft, _: _Lists) -> None:
    kind = element.get("backend", "type")
    if kind == "emulator":
        draft.keys["tpm"] = At(True, element.mark)
        draft.note(element.mark, "<tpm>", "its state is not carried over: a new TPM begins empty")
    else:
        draft.note(element.mark, "<tpm>", f"backend {kind}: is not carried over")


def _translate_sound(element: Element, draft: Draft, _: _Lists) -> None:
    display = draft.keys.get("display")
    kind = display.value if isinstance(display, At) else None
    if isinstance(kind, dict) and kind.get("type") == "spice":
        draft.keys["audio"] = At("spice", element.mark)
    else:
        draft.note(element.mark, "<sound>", "is not carried over; say audio: spice or pipewire")


def _translate_filesystem(element: Element, draft: Draft, lists: _Lists) -> None:
    folder, tag = element.get("source", "dir"), element.get("target", "dir")
    if not folder:
        draft.note(element.mark, "<filesystem>", "is not carried over: it is no folder")
        return
    share: Keys = {"path": folder, "tag": re.sub("[^A-Za-z0-9._-]+", "-", tag)[:31] or "share"}
    if share["tag"] != tag:
        draft.note(element.mark, "<filesystem>", f"the tag {tag!r} is {share['tag']!r} here")
    if element.find("readonly") is not None:
        share["readonly"] = True
    lists.shares.append(At(share, element.mark))


def _translate_shmem(element: Element, draft: Draft, _: _Lists) -> None:
    if element.get("", "name").startswith(("looking-glass", "kvmfr")):
        draft.keys["lookingGlass"] = At(True, element.mark)
        draft.note(element.mark, "<shmem>", "is sized for 1920x1080; say lookingGlass: {width, …}")
    elif element.get("", "name").startswith("scream"):
        draft.keys["audio"] = At("scream", element.mark)
    else:
        draft.note(element.mark, "<shmem>", "is not carried over")


def _translate_channel(element: Element, draft: Draft, _: _Lists) -> None:
    name = element.get("target", "name")
    if name not in _CHANNELS:
        draft.note(element.mark, "<channel>", f"{name or 'unnamed'}: is not carried over")


_HANDLERS: dict[str, Callable[[Element, Draft, _Lists], None]] = {
    "disk": _translate_disk,
    "interface": _translate_interface,
    "hostdev": _translate_hostdev,
    "graphics": _translate_graphics,
    "video": _translate_video,
    "tpm": _translate_tpm,
    "sound": _translate_sound,
    "filesystem": _translate_filesystem,
    "shmem": _translate_shmem,
    "channel": _translate_channel,
}
