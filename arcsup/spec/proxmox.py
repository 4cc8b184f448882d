"""Proxmox VE's qm.conf in arcsup's words: the machine. ``proxmox_devices.py`` has the devices.

Source: qm.conf(5). Only the current configuration is read; snapshots and pending changes come
after it. What is not known is noted, never dropped in silence.
"""

import re
import shlex
from collections.abc import Callable
from urllib.parse import unquote

from arcsup.spec.draft import At, Draft, Keys, Value, make_name
from arcsup.spec.faults import Mark, Problems
from arcsup.spec.proxmox_devices import DEVICES, find_functions, finish_devices
from arcsup.spec.proxmox_machine import Entry, Machine
from arcsup.spec.qemu_arguments import sift_options

_LINE = re.compile(r"([A-Za-z][A-Za-z0-9_-]*):[ \t]*(.*?)[ \t]*")
_TYPICAL = re.compile(
    r"^(ostype|scsihw|smbios1|vmgenid|bootdisk|(scsi|virtio|ide|sata|net|hostpci)[0-9]+):[ \t]*\S",
    re.MULTILINE,
)
_OWN_WORK = frozenset(
    {
        *("agent", "scsihw", "tablet", "hotplug", "meta", "bootdisk", "digest", "ostype"),
        *("vmgenid", "balloon", "shares", "rng0", "serial0", "name", "description", "boot"),
        *("sockets", "cores", "memory", "cpu", "vcpus"),
    }
)
"""Keys that arcsup decides itself, or that are read elsewhere here."""


def looks_like_proxmox(text: str) -> bool:
    """Tell whether a text has keys that only a qm.conf has."""
    return _TYPICAL.search(text) is not None


def translate_proxmox(text: str) -> Draft:
    """Return the native draft of a qm.conf. Raises Problems."""
    draft = Draft(mark=Mark())
    entries = _read_lines(text, draft)
    machine = Machine(entries, find_functions(entries), draft)
    _translate_identity(machine)
    _translate_cpus(machine)
    for key, entry in machine.entries.items():
        kind = key.rstrip("0123456789")
        handler = _KEYS.get(key) or (DEVICES.get(kind) if kind != key else None)
        if handler is not None:
            handler(machine, entry)
        elif key not in _OWN_WORK:
            machine.note(entry, "is not carried over")
    finish_devices(machine)
    if draft.problems:
        raise Problems(draft.problems)
    return draft


def _read_lines(text: str, draft: Draft) -> dict[str, Entry]:
    entries: dict[str, Entry] = {}
    description: list[str] = []
    first = Mark()
    for number, line in enumerate(text.splitlines(), 1):
        mark = Mark(number, 1)
        if line.startswith("#"):
            first = first if description else mark
            description.append(unquote(line[1:].removeprefix(" ")))
        elif line.startswith("["):
            draft.note(mark, line.strip()[:60], "and what follows is not carried over")
            break
        elif line.strip():
            match = _LINE.fullmatch(line)
            if match is None:
                draft.refuse(mark, "", "expected KEY: VALUE, a comment or [SECTION]")
            elif match[1] in entries:
                draft.refuse(mark, match[1], "the key is there already, remove one")
            else:
                entries[match[1]] = Entry(match[1], match[2], Mark(number, match.start(2) + 1))
    if description:
        # In Proxmox VE comments are the VM's notes.
        draft.keys["description"] = At(_clean("\n".join(description)), first)
    return entries


def _clean(text: str) -> str:
    """Return a text without control characters, which unquoting may have made."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ufeff]", "", text)


def _translate_identity(machine: Machine) -> None:
    draft, name = machine.draft, machine.entries.get("name")
    if name is not None:
        made = make_name(name.text)
        if made:
            draft.keys["name"] = At(made, name.mark)
        if made != name.text:
            machine.note(
                name, f"{name.text!r} is no name of a VM here: {made or 'the file gives it'}"
            )
    smbios = machine.entries.get("smbios1")
    if smbios is not None:
        named = smbios.parts()[1]
        uuid = named.pop("uuid", None)
        draft.keys["uuid"] = At(uuid, smbios.mark) if uuid else None
        if named.keys() - {"base64"}:
            machine.note(smbios, "only the uuid is carried over")
    draft.keys["autostart"] = False
    if "description" in machine.entries and "description" not in draft.keys:
        said = machine.entries["description"]
        draft.keys["description"] = At(_clean(unquote(said.text)), said.mark)


def _translate_cpus(machine: Machine) -> None:
    keys: Keys = {"cores": 1}
    for key in ("cores", "sockets"):
        if key in machine.entries:
            entry = machine.entries[key]
            keys[key] = At(_number(entry.text), entry.mark)
    cpu = machine.entries.get("cpu")
    if cpu is None:
        keys["model"] = "kvm64"
    else:
        _translate_model(machine, cpu, keys)
    if "affinity" in machine.entries:
        affinity = machine.entries["affinity"]
        keys["pin"] = At(affinity.text, affinity.mark)
    if "vcpus" in machine.entries:
        machine.note(machine.entries["vcpus"], "is not carried over: the guest has all CPUs")
    machine.draft.keys["cpus"] = keys
    memory = machine.entries.get("memory")
    if memory is not None:
        first, named = memory.parts()
        size = named.get("current", first)
        machine.draft.keys["memory"] = At(_number(size), memory.mark)
    else:
        machine.draft.keys["memory"] = 512


def _translate_model(machine: Machine, cpu: Entry, keys: Keys) -> None:
    first, named = cpu.parts()
    model = named.pop("cputype", first)
    flags = [flag for flag in named.pop("flags", "").split(";") if flag]
    if model.startswith(("x86-64-v", "custom-")):
        machine.note(cpu, f"{model} is Proxmox VE's own model: host")
        model = "host"
    features = [f"{flag[1:]}={'on' if flag[0] == '+' else 'off'}" for flag in flags if flag[1:]]
    keys["model"] = At(",".join([model or "kvm64", *features]), cpu.mark)
    if named.pop("hidden", "0") == "1":
        machine.draft.keys["hideHypervisor"] = At(True, cpu.mark)
    if named:
        machine.note(cpu, f"{', '.join(named)}: is not carried over")


def _number(text: str) -> Value:
    """Return a number, or the text as it is for the reader to refuse."""
    return int(text) if re.fullmatch("[0-9]{1,9}", text) else text


def _translate_machine(machine: Machine, entry: Entry) -> None:
    first, named = entry.parts()
    kind = named.pop("type", first)
    if kind == "q35" or re.fullmatch(r"pc-q35-[0-9.]+(\+pve[0-9]+)?", kind):
        machine.draft.keys["machine"] = At(kind.partition("+")[0], entry.mark)
    else:
        machine.note(entry, f"{kind} has no PCI Express: q35")
    if named:
        machine.note(entry, f"{', '.join(named)}: is not carried over")


def _translate_bios(machine: Machine, entry: Entry) -> None:
    if entry.text == "ovmf":
        efi = machine.entries.get("efidisk0")
        secure = efi is not None and efi.parts()[1].get("pre-enrolled-keys") == "1"
        machine.draft.keys["firmware"] = At("uefi-secure" if secure else "uefi", entry.mark)
    elif entry.text != "seabios":
        machine.draft.refuse(entry.mark, "bios", f"{entry.text!r}: expected seabios or ovmf")


def _translate_efidisk(machine: Machine, entry: Entry) -> None:
    machine.note(entry, "is not carried over: the firmware's variables begin anew")


def _translate_tpm(machine: Machine, entry: Entry) -> None:
    machine.draft.keys["tpm"] = At(True, entry.mark)
    machine.note(entry, "its state is not carried over: a new TPM begins empty")


def _translate_hugepages(machine: Machine, entry: Entry) -> None:
    size: Value = True if entry.text == "any" else f"{entry.text}MiB"
    machine.draft.keys["hugepages"] = At(size, entry.mark)


def _translate_onboot(machine: Machine, entry: Entry) -> None:
    machine.draft.keys["autostart"] = At(entry.text == "1", entry.mark)


def _translate_kvm(machine: Machine, entry: Entry) -> None:
    if entry.text == "0":
        machine.draft.keys["accel"] = At("tcg", entry.mark)


def _translate_args(machine: Machine, entry: Entry) -> None:
    try:
        words = shlex.split(entry.text)
    except ValueError as error:
        machine.draft.refuse(entry.mark, "args", f"{error}")
        return
    kept, told = sift_options(words)
    for _, message in told:
        machine.note(entry, message)
    args = [words[number] for number in kept]
    if args:
        machine.draft.keys["qemu"] = At({"args": args}, entry.mark)


def _translate_numa(machine: Machine, entry: Entry) -> None:
    if entry.text != "0":
        machine.note(entry, "the guest has one NUMA node here; its memory is near its GPU")


_KEYS: dict[str, Callable[[Machine, Entry], None]] = {
    "machine": _translate_machine,
    "bios": _translate_bios,
    "efidisk0": _translate_efidisk,
    "tpmstate0": _translate_tpm,
    "hugepages": _translate_hugepages,
    "onboot": _translate_onboot,
    "kvm": _translate_kvm,
    "args": _translate_args,
    "numa": _translate_numa,
    "affinity": lambda _machine, _entry: None,
    "smbios1": lambda _machine, _entry: None,
    "vga": lambda _machine, _entry: None,
}
