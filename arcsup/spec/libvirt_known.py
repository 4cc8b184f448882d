"""What of a domain needs no word: it is carried over, told elsewhere, or changes nothing.

All else is told, so that what libvirt learns tomorrow is not dropped in silence. Source: libvirt's
"Domain XML format".
"""

from arcsup.spec.draft import Draft
from arcsup.spec.xml_nodes import Element

_ALL = "*"

_MACHINE = {
    **dict.fromkeys(("name", "uuid", "devices", "pm", "resource", "qemu:commandline"), _ALL),
    **dict.fromkeys(("title", "description", "on_poweroff", "on_reboot", "on_crash"), ""),
    "memory": "unit dumpCore",
    "currentMemory": "unit",
    "memoryBacking": "",
    "memoryBacking/hugepages": "",
    "memoryBacking/hugepages/page": "size unit",
    "memoryBacking/source": _ALL,
    "memoryBacking/access": _ALL,
    "vcpu": "placement=static cpuset current",
    "cputune": "",
    "cputune/vcpupin": "vcpu cpuset",
    "numatune": "",
    "numatune/memory": "nodeset mode=strict placement=static",
    "cpu": "mode match check migratable=on",
    "cpu/model": "fallback",
    "cpu/vendor": "",
    "cpu/feature": "policy name",
    "cpu/topology": "sockets dies=1 clusters=1 cores threads",
    "cpu/maxphysaddr": "mode=passthrough",
    "os": "firmware",
    "os/type": "arch machine",
    "os/boot": "dev=hd|cdrom",
    "os/bootmenu": "enable=no timeout",
    **dict.fromkeys((f"os/{key}" for key in ("loader", "nvram", "firmware")), _ALL),
    **dict.fromkeys((f"os/{key}" for key in ("kernel", "initrd", "cmdline")), ""),
    "features": "",
    **dict.fromkeys((f"features/{key}" for key in ("acpi", "apic", "pae", "smm")), _ALL),
    "features/vmport": _ALL,
    "features/hyperv": _ALL,
    "features/ioapic": "driver=kvm",
    "features/kvm": "",
    "features/kvm/hidden": "state",
    "clock": "offset",
    "clock/timer": "name=rtc|pit|hpet|hypervclock present tickpolicy track",
    "clock/timer/catchup": _ALL,
}

_DEVICES = {
    **dict.fromkeys(("emulator", "controller", "memballoon", "panic", "hub"), _ALL),
    "input": "type=tablet|mouse|keyboard bus model",
    "serial": "type=pty",
    "serial/source": _ALL,
    "serial/target": _ALL,
    "console": "type=pty tty",
    "console/source": _ALL,
    "console/target": _ALL,
    "rng": "model",
    "rng/backend": "model=random",
    "redirdev": "bus type=spicevmc",
    "audio": "id type=spice|none",
    "disk": "type device snapshot",
    "disk/driver": "name type cache=default|none|writeback discard=unmap detect_zeroes io iothread"
    " queues queue_size ioeventfd event_idx error_policy=enospace",
    "disk/source": "file dev index startupPolicy=mandatory",
    "disk/source/encryption": _ALL,
    "disk/encryption": _ALL,
    "disk/backingStore": _ALL,
    "disk/target": "dev bus tray=closed rotation_rate",
    "disk/readonly": "",
    "disk/boot": "order",
    "interface": "type managed trustGuestRxFilters=no",
    "interface/mac": "address type check",
    "interface/source": "bridge network portid dev mode",
    "interface/target": "dev managed",
    "interface/model": "type",
    "interface/link": "state=up",
    "interface/driver": "name queues rx_queue_size tx_queue_size ioeventfd event_idx txmode",
    "interface/rom": _ALL,
    "hostdev": "mode=subsystem type managed model=vfio-pci display ramfb=off",
    "hostdev/source": "startupPolicy=mandatory",
    "hostdev/source/address": "type domain bus slot function uuid",
    "hostdev/source/vendor": "id",
    "hostdev/source/product": "id",
    "hostdev/driver": "name=vfio iommufd",
    "hostdev/rom": "bar=on enabled=yes",
    "graphics": "type port tlsPort=-1 autoport listen passwd",
    "graphics/listen": "type=address|none|socket address socket",
    "graphics/clipboard": "copypaste=yes",
    "graphics/filetransfer": "enable=yes",
    "graphics/gl": "enable=no",
    **dict.fromkeys((f"graphics/{key}" for key in ("image", "jpeg", "zlib", "mouse")), _ALL),
    "graphics/playback": _ALL,
    "graphics/streaming": _ALL,
    "video": "",
    "video/model": "type ram vram vram64 vgamem heads=1 primary=yes",
    "video/model/acceleration": "accel2d accel3d",
    "tpm": "model",
    "tpm/backend": "type version=2.0 persistent_state debug",
    "sound": "model",
    "sound/audio": _ALL,
    "sound/codec": _ALL,
    "filesystem": "type=mount accessmode=passthrough",
    "filesystem/driver": "type=path|virtiofs queue",
    "filesystem/source": "dir",
    "filesystem/target": "dir",
    "filesystem/readonly": "",
    "filesystem/binary": "path",
    "shmem": "name role",
    "shmem/model": "type",
    "shmem/size": "unit",
}

_KNOWN = _MACHINE | {f"devices/{path}": words for path, words in _DEVICES.items()}
"""By path below <domain>: the attributes, with ``=`` those of their values, that need no word.

``*`` is everything in the element.
"""

_EVERYWHERE = dict.fromkeys(("address", "alias", "seclabel", "privateData"), _ALL)
"""Where libvirt has put a device, and what it calls it."""


def note_rest(element: Element, draft: Draft, path: str, what: str = "") -> None:
    """Note what of an element, or that all of it, is not carried over."""
    what = what or f"<{element.tag}>"
    words = _KNOWN.get(path, _EVERYWHERE.get(element.tag))
    if words is None:
        draft.note(element.mark, what, "is not carried over")
    elif words != _ALL:
        for attribute, value in element.attributes.items():
            if not _is_known(words, attribute, value):
                draft.note(element.mark, what, f"{attribute} {value[:60]}: is not carried over")
        for child in element.children:
            note_rest(child, draft, f"{path}/{child.tag}", f"{what}/<{child.tag}>")


def _is_known(words: str, attribute: str, value: str) -> bool:
    for word in words.split():
        name, has_values, values = word.partition("=")
        if name == attribute:
            return not has_values or value in values.split("|")
    return False
