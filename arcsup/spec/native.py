"""A VM file's text -> a Vm or every fault, and back."""

from pathlib import Path
from uuid import UUID

from attrs import evolve, frozen

from arcsup.model import Display, DisplayType, Vm, VmName
from arcsup.spec.codec import Json
from arcsup.spec.draft import is_name
from arcsup.spec.faults import Fault, Mark, Problem, Problems, error_of, place
from arcsup.spec.identity import derive_uuid
from arcsup.spec.libvfio import is_libvfio, translate_libvfio
from arcsup.spec.libvfio_tree import find_path
from arcsup.spec.nodes import Mapping, Scalar, compose
from arcsup.spec.tables import VM
from arcsup.spec.units import parse_name

_NO_UUID = UUID(int=0)


@frozen
class Parsed:
    """What a file says. ``vm`` is None exactly when there are faults; ``name`` is a best guess."""

    name: VmName
    vm: Vm | None
    faults: tuple[Fault, ...] = ()
    warnings: tuple[str, ...] = ()


def read_vm(source: str | bytes, file: Path, machine_id: str) -> Parsed:
    """Return the VM of a native or LibVF.IO file, or all that is wrong with it.

    ``file`` gives the default name and stands in the faults; ``machine_id`` makes the uuid.
    Reads and writes nothing.
    """
    stem = VmName(file.stem)
    try:
        root = compose(source)
        draft = translate_libvfio(root, file) if is_libvfio(root) else None
    except Problems as found:
        return Parsed(stem, None, place(found.problems, file))
    tree = root if draft is None else draft.tree()
    named = tree.find("name")
    problems: list[Problem] = []
    if named is None:
        problems += _stem_problems(file.stem)
    vm, more = VM.read_all(tree, "", {"name": stem, "uuid": _NO_UUID})
    problems += more
    name = VmName(named.text) if isinstance(named, Scalar) and is_name(named.text) else stem
    if problems or vm is None:
        if draft is not None:
            problems = [evolve(p, path=find_path(root, p.mark) or p.path) for p in problems]
        return Parsed(name, None, place(problems, file))
    if vm.uuid == _NO_UUID:
        vm = evolve(vm, uuid=derive_uuid(machine_id, vm.name))
    warnings = [str(note) for note in draft.notes] if draft is not None else []
    return Parsed(vm.name, vm, (), tuple(f"{file}: {line}" for line in warnings + find_doubts(vm)))


def compose_native(source: str | bytes, file: Path) -> Mapping:
    """Return a file without faults as a tree of native keys. Raises Problems for another one."""
    root = compose(source)
    return translate_libvfio(root, file).tree() if is_libvfio(root) else root


def load_vm(source: str | bytes, file: Path, machine_id: str) -> Vm:
    """Return the VM of a native or LibVF.IO file. Raises SpecError: all faults, one per line."""
    parsed = read_vm(source, file, machine_id)
    if parsed.vm is None:
        raise error_of(parsed.faults)
    return parsed.vm


def vm_to_native(vm: Vm) -> dict[str, Json]:
    """Return the VM in the file's own keys, defaults filled in; ``read_vm`` gives it back."""
    written = VM.write(vm)
    assert isinstance(written, dict)
    return written


def differences(old: Vm, new: Vm) -> tuple[str, ...]:
    """Return the keys of the file whose values differ, such as ``cpus.cores``."""
    return tuple(_differ(vm_to_native(old), vm_to_native(new), ""))


def find_doubts(vm: Vm) -> list[str]:
    """Return what is allowed in a VM but may not be meant, one line each."""
    doubts: list[str] = []
    if _is_open(vm.display) and vm.display.password_file is None:
        doubts.append(
            f"display.listen: {vm.display.listen} shows the screen without a password to whoever "
            "reaches it; a unix socket (no `listen`) or 127.0.0.1 does not"
        )
    doubts += [
        f"networks[{number}].hostLoopback: the guest reaches whatever listens on the host's "
        "loopback; a service that listens on another address needs no such leave"
        for number, network in enumerate(vm.networks)
        if network.host_loopback
    ]
    if vm.qemu.args:
        doubts.append("qemu.args: is passed to QEMU unchecked")
    return doubts


def _stem_problems(stem: str) -> list[Problem]:
    try:
        parse_name(stem)
    except ValueError as error:
        message = f"the file's stem {stem!r}: {error}; rename the file or give a name"
        return [Problem(Mark(), "name", message)]
    return []


def _is_open(display: Display) -> bool:
    listens = display.type in {DisplayType.SPICE, DisplayType.VNC}
    local = display.listen is None or display.listen == "::1" or display.listen.startswith("127.")
    return listens and not local


def _differ(old: Json, new: Json, path: str) -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(key for key in new if key not in old)]
        pairs = [(old.get(key), new.get(key), f"{path}.{key}" if path else key) for key in keys]
    elif isinstance(old, list) and isinstance(new, list):
        count = max(len(old), len(new))
        pairs = [
            (old[n] if n < len(old) else None, new[n] if n < len(new) else None, f"{path}[{n}]")
            for n in range(count)
        ]
    else:
        return [] if old == new and type(old) is type(new) else [path]
    return [key for before, after, at in pairs for key in _differ(before, after, at)]
