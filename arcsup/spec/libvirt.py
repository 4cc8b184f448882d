"""libvirt's domain XML in arcsup's words: the machine. ``libvirt_devices.py`` has the devices.

Source: libvirt's "Domain XML format". What is carried over, or is arcsup's own work (controllers,
the guest agent's channel, a serial console), is taken without a word, all else is noted:
``libvirt_known.py``.
"""

import re
from collections.abc import Callable

from arcsup.spec.comments import Comments
from arcsup.spec.draft import At, Draft, Keys, Value, make_name
from arcsup.spec.faults import Problems
from arcsup.spec.libvirt_devices import translate_devices
from arcsup.spec.libvirt_known import note_rest
from arcsup.spec.qemu_arguments import sift_options
from arcsup.spec.xml_nodes import Element, compose_xml

_BYTES: dict[str, int] = {"b": 1, "bytes": 1} | {
    prefix + ending: base**power
    for power, prefix in enumerate(("k", "m", "g", "t"), 1)
    for ending, base in (("b", 1000), ("", 1024), ("ib", 1024))
}
MIB = 1 << 20


def translate_libvirt(text: str) -> tuple[Draft, Comments]:
    """Return the native draft of a domain and the comments of its file. Raises Problems."""
    root, comments = compose_xml(text)
    if root.tag == "domstatus" or (root.tag == "domainsnapshot"):
        root = root.find("domain") or root
    if root.tag != "domain":
        raise Problems.one(root.mark, "", f"expected <domain>, got <{root.tag}>")
    draft = Draft(mark=root.mark)
    _translate_identity(root, draft)
    for element in root.children:
        handler = _HANDLERS.get(element.tag)
        if handler is not None:
            handler(element, draft)
        note_rest(element, draft, element.tag)
    _join_cpus(root, draft)
    translate_devices(root, draft)
    if draft.problems:
        raise Problems(draft.problems)
    return draft, comments


def _translate_identity(root: Element, draft: Draft) -> None:
    if root.attributes.get("type", "kvm") not in {"kvm", "qemu"}:
        kind = root.attributes["type"]
        draft.refuse(root.mark, "<domain>", f"type {kind!r} is no QEMU, expected kvm or qemu")
    if root.attributes.get("type") == "qemu":
        draft.keys["accel"] = "tcg"
    name = root.find("name")
    if name is not None:
        made = make_name(name.text)
        if made:
            draft.keys["name"] = At(made, name.mark)
        if made != name.text.strip():
            message = (
                f"{name.text.strip()!r} is no name of a VM here: {made or 'the file gives it'}"
            )
            draft.note(name.mark, "<name>", message)
    if (uuid := root.find("uuid")) is not None:
        draft.keys["uuid"] = At(uuid.text.strip(), uuid.mark)
    draft.keys["autostart"] = False
    draft.note(root.mark, "", "libvirt keeps elsewhere what starts by itself: autostart is false")


def _describe(element: Element, draft: Draft) -> None:
    words = " ".join(element.text.split())
    before = draft.keys.get("description")
    if words and not (isinstance(before, At) and before.value == words):
        said = f"{before.value}: {words}" if isinstance(before, At) else words
        draft.keys["description"] = At(said, element.mark)


def read_mib(element: Element, draft: Draft, default: str = "KiB") -> int:
    """Return the MiB of a scaled integer, rounded up; 0 with a problem told if it is none."""
    unit = element.attributes.get("unit", default)
    number = element.text.strip()
    factor = _BYTES.get(unit.lower())
    if factor is None or not re.fullmatch("[0-9]{1,18}", number):
        message = f"{number[:40]!r} {unit!r} is no size, expected a number and a unit such as KiB"
        draft.refuse(element.mark, f"<{element.tag}>", message)
        return 0
    size: int = -(-int(number) * factor // MIB)
    return size


def _translate_memory(element: Element, draft: Draft) -> None:
    draft.keys["memory"] = At(f"{read_mib(element, draft)}MiB", element.mark)


def _note_current_memory(element: Element, draft: Draft) -> None:
    whole = draft.keys.get("memory")
    size = f"{read_mib(element, draft)}MiB"
    if isinstance(whole, At) and whole.value != size:
        draft.note(element.mark, "<currentMemory>", "is not carried over: the guest has <memory>")


def _translate_backing(element: Element, draft: Draft) -> None:
    for child in element.children:
        if child.tag == "hugepages":
            page = child.find("page")
            size: Value = True
            if page is not None:
                number = Element("page", page.mark, page.attributes, [], page.get("", "size"))
                size = f"{read_mib(number, draft)}MiB"
            draft.keys["hugepages"] = At(size, child.mark)


def _translate_os(element: Element, draft: Draft) -> None:
    for kind in element.find_all("type"):
        _translate_machine(kind, draft)
    _translate_firmware(element, draft)
    boot: Keys = {
        child.tag: At(child.text.strip(), child.mark)
        for child in element.children
        if child.tag in {"kernel", "initrd", "cmdline"}
    }
    if boot:
        draft.keys["boot"] = At(boot, element.mark)
    first = element.find("boot")
    if first is not None and first.get("", "dev") == "cdrom":
        message = "cdrom boots first there: here disks do, then CD-ROMs"
        draft.note(first.mark, "<os>/<boot>", message)


def _translate_machine(element: Element, draft: Draft) -> None:
    machine = element.get("", "machine")
    if machine in {"q35", ""} or machine.startswith("pc-q35-"):
        draft.keys["machine"] = At(machine, element.mark) if machine else None
    else:
        draft.note(element.mark, "<os>/<type>", f"machine {machine} has no PCI Express: q35")
    if element.get("", "arch") not in {"", "x86_64", "i686"}:
        message = f"arch {element.get('', 'arch')} is not supported, expected x86_64"
        draft.refuse(element.mark, "<os>/<type>", message)


def _translate_firmware(element: Element, draft: Draft) -> None:
    loader, nvram = element.find("loader"), element.find("nvram")
    secure = element.get("loader", "secure") == "yes" or any(
        (f.get("", "name"), f.get("", "enabled")) == ("secure-boot", "yes")
        for f in element.find_all("firmware/feature")
    )
    is_uefi = element.get("", "firmware") == "efi" or element.get("loader", "type") == "pflash"
    if is_uefi:
        mark = (loader or element).mark
        draft.keys["firmware"] = At("uefi-secure" if secure else "uefi", mark)
    if loader is not None and (loader.text.strip() or not is_uefi):
        because = ": arcsup finds the host's OVMF" if is_uefi else ""
        draft.note(loader.mark, "<os>/<loader>", f"is not carried over{because}")
    if nvram is not None:
        message = "is not carried over: the firmware's variables begin anew"
        draft.note(nvram.mark, "<os>/<nvram>", message)


def _translate_features(element: Element, draft: Draft) -> None:
    hidden = element.find("kvm/hidden")
    if hidden is not None and hidden.get("", "state") == "on":
        draft.keys["hideHypervisor"] = At(True, hidden.mark)
    hyperv = element.find("hyperv")
    if hyperv is not None:
        message = "arcsup sets what Windows needs itself; name others in cpus.model"
        draft.note(hyperv.mark, "<features>/<hyperv>", message)


def _translate_cpu(element: Element, draft: Draft) -> None:
    mode = element.get("", "mode")
    model = element.tell("model") if mode in {"", "custom"} else "host"
    if mode == "host-model":
        draft.note(element.mark, "<cpu>", "host-model is the host's own CPU here: model: host")
    features = [
        f"{feature.get('', 'name')}={'off' if feature.get('', 'policy') in _OFF else 'on'}"
        for feature in element.find_all("feature")
    ]
    if model:
        draft.keys["cpus"] = At(
            {"model": At(",".join([model, *features]), element.mark)}, element.mark
        )
    elif features:
        draft.note(element.mark, "<cpu>/<feature>", "is not carried over: there is no <model>")


_OFF = frozenset({"disable", "forbid"})


def _join_cpus(root: Element, draft: Draft) -> None:
    """Add the number of CPUs to their model: the topology where there is one, else all cores."""
    vcpu, topology = root.find("vcpu"), root.find("cpu/topology")
    keys: Keys = {}
    if topology is not None:
        for key in ("sockets", "cores", "threads"):
            keys[key] = At(_number(topology.get("", key) or "1"), topology.mark)
    elif vcpu is not None:
        keys["cores"] = At(_number(vcpu.text.strip()), vcpu.mark)
    if vcpu is not None and vcpu.get("", "current") not in {"", vcpu.text.strip()}:
        draft.note(vcpu.mark, "<vcpu>/current", "is not carried over: the guest has all CPUs")
    pins = [*root.find_all("cputune/vcpupin")]
    sets = [pin.get("", "cpuset") for pin in pins]
    if pins and all(re.fullmatch("[0-9,-]+", one) for one in sets):
        keys["pin"] = At(",".join(dict.fromkeys(sets)), pins[0].mark)
        draft.note(pins[0].mark, "<vcpupin>", "the guest runs on all these CPUs together")
    elif vcpu is not None and vcpu.get("", "cpuset"):
        keys["pin"] = At(vcpu.get("", "cpuset"), vcpu.mark)
    model = draft.keys.get("cpus")
    if isinstance(model, At) and isinstance(model.value, dict):
        keys |= model.value
    if keys:
        draft.keys["cpus"] = At(keys, (vcpu or root).mark)


def _number(text: str) -> Value:
    """Return a number, or the text as it is for the reader to refuse."""
    return int(text) if re.fullmatch("[0-9]{1,9}", text) else text


def _translate_numatune(element: Element, draft: Draft) -> None:
    node = element.get("memory", "nodeset")
    if re.fullmatch("[0-9]{1,4}", node):
        draft.keys["numa"] = At(int(node), element.mark)
    else:
        draft.note(element.mark, "<numatune>", "is not carried over: it is no single node")


def _note_clock(element: Element, draft: Draft) -> None:
    if element.get("", "offset") not in {"", "utc"}:
        message = f"offset {element.get('', 'offset')}: the guest's clock is UTC here"
        draft.note(element.mark, "<clock>", message)


def _translate_on_end(element: Element, draft: Draft) -> None:
    action = element.text.strip()
    if (element.tag, action) in {("on_reboot", "restart"), ("on_poweroff", "destroy")}:
        return
    if element.tag == "on_crash":
        policy = "on-failure" if action in {"restart", "coredump-restart"} else "never"
        draft.keys["restart"] = At({"policy": policy}, element.mark)
    else:
        draft.note(element.mark, f"<{element.tag}>", f"{action}: is not carried over")


def _translate_commandline(element: Element, draft: Draft) -> None:
    words = [(child.get("", "value"), child.mark) for child in element.find_all("qemu:arg")]
    for child in element.find_all("qemu:env"):
        draft.note(child.mark, "<qemu:env>", f"{child.get('', 'name')}: is not carried over")
    kept, told = sift_options([word for word, _ in words])
    for number, message in told:
        draft.note(words[number][1], "<qemu:arg>", message)
    args: list[Value] = [At(*words[number]) for number in kept]
    if args:
        draft.keys["qemu"] = At({"args": args}, element.mark)


_HANDLERS: dict[str, Callable[[Element, Draft], None]] = {
    "title": _describe,
    "description": _describe,
    "memory": _translate_memory,
    "currentMemory": _note_current_memory,
    "memoryBacking": _translate_backing,
    "cpu": _translate_cpu,
    "numatune": _translate_numatune,
    "os": _translate_os,
    "features": _translate_features,
    "clock": _note_clock,
    "on_poweroff": _translate_on_end,
    "on_reboot": _translate_on_end,
    "on_crash": _translate_on_end,
    "qemu:commandline": _translate_commandline,
}
