"""The devices of libvirt's domain XML in arcsup's words. Source: "Domain XML format", Devices."""

import re
from collections.abc import Callable

from attrs import define, field

from arcsup.spec.draft import At, Draft, Keys, Value
from arcsup.spec.libvirt_known import note_rest
from arcsup.spec.pci_functions import ask_for_function
from arcsup.spec.xml_nodes import Element

_BUSES = {"virtio": "virtio", "scsi": "scsi", "sata": "sata", "nvme": "nvme", "": "virtio"}
_MODELS = {"virtio": "virtio", "e1000e": "e1000e", "rtl8139": "rtl8139", "": "rtl8139"}
_UNORDERED = 1 << 32
"""More than any boot order."""

_LOOPBACK = frozenset({"", "127.0.0.1", "::1", "localhost"})
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
    passed = (one for one in root.find_all("devices/hostdev") if one.get("", "type") == "pci")
    lists = _Lists(frozenset(_find_address(one) for one in passed))
    for element in sorted(devices.children if devices else (), key=_turn):
        handler = _HANDLERS.get(element.tag)
        if handler is not None:
            handler(element, draft, lists)
        else:
            note_rest(element, draft, f"devices/{element.tag}")
    mark = devices.mark if devices is not None else root.mark
    for key in ("disks", "cdroms", "gpus", "shares", "usb"):
        if values := getattr(lists, key):
            draft.keys[key] = At(values, mark)
    draft.keys["networks"] = At(lists.networks, mark)


def _turn(element: Element) -> tuple[bool, int]:
    """Return when a device is looked at.

    Displays come first, because whether there can be sound depends on them. A disk that boots
    before others is before them in arcsup's list.
    """
    if element.tag != "disk":
        return element.tag != "graphics", 0
    return True, _hex(element.get("boot", "order")) or _UNORDERED


def _translate_disk(element: Element, draft: Draft, lists: _Lists) -> None:
    source = element.find("source")
    kind = element.get("", "device") or "disk"
    path = element.get("source", "file") or element.get("source", "dev")
    what = f"<disk> {element.get('target', 'dev')}".strip()
    if kind == "cdrom" and (path or element.get("", "type") in {"", "file", "block"}):
        _translate_cdrom(element, draft, lists, path)
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
    lists.disks.append(At(disk, element.mark))
    note_rest(element, draft, "devices/disk", what)


def _translate_cdrom(element: Element, draft: Draft, lists: _Lists, path: str) -> None:
    """Add a CD-ROM; an empty drive goes without a word."""
    if not path:
        return
    what = f"<disk> {element.get('target', 'dev')}".strip()
    if element.get("boot", "order") == "1":
        draft.note(element.mark, what, "boots first there: here disks do, then CD-ROMs")
    lists.cdroms.append(At(path, element.mark))
    note_rest(element, draft, "devices/disk", what)


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
    lists.networks.append(At(network, element.mark))
    note_rest(element, draft, "devices/interface")


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
        note_rest(element, draft, "devices/hostdev")
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
    lists.gpus.append(At(gpu, element.mark))
    note_rest(element, draft, "devices/hostdev")


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
        note_rest(element, draft, "devices/hostdev")
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
        if shown == "egl-headless":
            note_rest(element, draft, "devices/graphics")
        else:
            message = f"{kind} is not carried over: a VM has one display"
            draft.note(element.mark, "<graphics>", message)
        return
    display: Keys = {"type": shown}
    # A domain that runs has a port that libvirt has chosen.
    port = element.get("", "port") if element.get("", "autoport") != "yes" else ""
    listen = element.get("", "listen") or element.get("listen", "address")
    if shown != "egl-headless" and re.fullmatch("[1-9][0-9]{0,4}", port):
        display["port"] = int(port)
        display["listen"] = listen or None
    elif listen not in _LOOPBACK:
        message = f"listens on {listen} there: here on a unix socket, or say display: {{port: …}}"
        draft.note(element.mark, "<graphics>", message)
    if element.get("", "passwd"):
        message = "the password is not carried over: whoever reaches the display is let in"
        draft.note(element.mark, "<graphics>", message)
        if display.pop("listen", None):
            draft.note(element.mark, "<graphics>", "therefore listens on loopback only")
    draft.keys["display"] = At(display, element.mark)
    note_rest(element, draft, "devices/graphics")


def _translate_video(element: Element, draft: Draft, lists: _Lists) -> None:
    model = element.get("model", "type")
    if model == "virtio":
        gpu: Keys = {"kind": "virtio"}
        if element.get("model/acceleration", "accel3d") == "yes":
            gpu["gl"] = True
        lists.gpus.append(At(gpu, element.mark))
    elif model not in {"", "vga", "none"}:
        draft.note(element.mark, "<video>", f"model {model} is a VGA card here")
    note_rest(element, draft, "devices/video")


def _translate_tpm(element: Element, draft: Draft, _: _Lists) -> None:
    kind = element.get("backend", "type")
    if kind == "emulator":
        draft.keys["tpm"] = At(True, element.mark)
        draft.note(element.mark, "<tpm>", "its state is not carried over: a new TPM begins empty")
        note_rest(element, draft, "devices/tpm")
    else:
        draft.note(element.mark, "<tpm>", f"backend {kind}: is not carried over")


def _translate_sound(element: Element, draft: Draft, _: _Lists) -> None:
    display = draft.keys.get("display")
    kind = display.value if isinstance(display, At) else None
    if isinstance(kind, dict) and kind.get("type") == "spice":
        draft.keys["audio"] = At("spice", element.mark)
        note_rest(element, draft, "devices/sound")
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
    note_rest(element, draft, "devices/filesystem")


def _translate_shmem(element: Element, draft: Draft, _: _Lists) -> None:
    if element.get("", "name").startswith(("looking-glass", "kvmfr")):
        draft.keys["lookingGlass"] = At(True, element.mark)
        draft.note(element.mark, "<shmem>", "is sized for 1920x1080; say lookingGlass: {width, …}")
    elif element.get("", "name").startswith("scream"):
        draft.keys["audio"] = At("scream", element.mark)
    else:
        draft.note(element.mark, "<shmem>", "is not carried over")
        return
    note_rest(element, draft, "devices/shmem")


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
