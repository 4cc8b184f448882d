"""What must hold between VM files: nothing that only one VM can have is asked for twice."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from attrs import frozen

from arcsup.model import Forward, Vm, VmName
from arcsup.spec.faults import Fault
from arcsup.spec.identity import derive_mac
from arcsup.spec.native import compose_native
from arcsup.spec.nodes import locate
from arcsup.spec.rules import list_ports, overlap


@frozen
class Source:
    """What a file asks for. ``vm`` None: it has faults of its own.

    ``standing`` is the last good version, which runs on while the file is faulty and so keeps
    what it has.
    """

    file: Path
    name: VmName
    text: str
    vm: Vm | None
    standing: Vm | None = None


@frozen
class _Claim:
    """Something that a VM asks for; of two claims to one ``what``, neither may be exclusive."""

    what: tuple[str, str]
    exclusive: bool
    path: str
    words: str


@frozen
class _Held:
    """What the VMs seen so far have: claims by what they are to, host ports, VMs by name."""

    claims: dict[tuple[str, str], list[tuple[Path, _Claim]]]
    ports: list[tuple[Path, str, Forward]]
    vms: dict[VmName, Vm]

    def add(self, file: Path, vm: Vm, claims: Sequence[_Claim]) -> None:
        """Note what a VM has."""
        for claim in claims:
            self.claims.setdefault(claim.what, []).append((file, claim))
        self.ports.extend((file, path, port) for path, port in list_ports(vm))
        self.vms[vm.name] = vm


def check_together(
    sources: Sequence[Source], resolve: Callable[[str], str]
) -> Mapping[Path, tuple[Fault, ...]]:
    """Return the faults of each file that cannot be had beside those before it.

    Earlier in ``sources`` is who was there first; of two files with one name both are at fault.
    ``resolve`` makes an image path of a file comparable. A file at fault claims nothing but what
    its last good version has.
    """
    faults: dict[Path, tuple[Fault, ...]] = {}
    by_name: dict[VmName, list[Path]] = {}
    for source in sources:
        by_name.setdefault(source.name, []).append(source.file)
    held = _Held({}, [], {})
    for source in sources:
        vm = source.vm
        if vm is not None:
            found = [
                ("name", f"{vm.name} is the name of {other} too, change one of them")
                for other in by_name[source.name]
                if other != source.file
            ]
            claims = list(_claims(vm, resolve))
            if not found:
                found += _contested(claims, held)
                found += _contested_ports(vm, held)
                found += _circle(vm, held)
            if found:
                faults[source.file] = _place(source, found)
            else:
                held.add(source.file, vm, claims)
                continue
        if source.standing is not None:
            held.add(source.file, source.standing, list(_claims(source.standing, resolve)))
    return faults


def find_shared(one: Vm, other: Vm, resolve: Callable[[str], str]) -> str:
    """Return in words something of ``other``'s that ``one`` cannot have beside it, "" if nothing.

    For two versions of which one still runs although its file is gone or says something else.
    """
    held = _Held({}, [], {})
    held.add(Path(), other, list(_claims(other, resolve)))
    for claim in _claims(one, resolve):
        if any(
            claim.exclusive or theirs.exclusive for _, theirs in held.claims.get(claim.what, ())
        ):
            return claim.words
    for _, port in list_ports(one):
        if any(overlap(port, theirs) for _, _, theirs in held.ports):
            return f"{port.protocol} port {port.host_port} of the host"
    return ""


def _claims(vm: Vm, resolve: Callable[[str], str]) -> Iterator[_Claim]:
    yield _Claim(("uuid", str(vm.uuid)), True, "uuid", f"uuid {vm.uuid}")
    for number, network in enumerate(vm.networks):
        mac = network.mac or derive_mac(vm.uuid, number)
        yield _Claim(("mac", mac), True, f"networks[{number}].mac", f"MAC address {mac}")
        if network.tap:
            path = f"networks[{number}].tap"
            yield _Claim(("tap", network.tap), True, path, f"tap device {network.tap}")
    for number, disk in enumerate(vm.disks):
        image = resolve(disk.path)
        path = f"disks[{number}].path"
        # An ephemeral disk is only read until somebody asks to keep what was written.
        written = not (disk.readonly or disk.ephemeral)
        yield _Claim(("image", image), written, path, f"image {disk.path}")
        if disk.base is not None:
            base = resolve(disk.base)
            yield _Claim(("image", base), False, f"disks[{number}].base", f"image {disk.base}")
    for number, image in enumerate(vm.cdroms):
        yield _Claim(("image", resolve(image)), False, f"cdroms[{number}]", f"image {image}")


def _contested(claims: Sequence[_Claim], held: _Held) -> Iterator[tuple[str, str]]:
    same_uuid = False
    for claim in claims:
        if same_uuid and claim.what[0] == "mac":
            continue  # one uuid derives one address: changing the uuid is the cure for both
        for file, theirs in held.claims.get(claim.what, ()):
            if claim.exclusive or theirs.exclusive:
                same_uuid = same_uuid or claim.what[0] == "uuid"
                yield claim.path, f"{claim.words} is used by {file} ({theirs.path}) already"
                break


def _contested_ports(vm: Vm, held: _Held) -> Iterator[tuple[str, str]]:
    for path, port in list_ports(vm):
        for file, their_path, theirs in held.ports:
            if overlap(port, theirs):
                what = f"{port.protocol} port {port.host_port} of the host"
                yield path, f"{what} is used by {file} ({their_path}) already"


def _circle(vm: Vm, held: _Held) -> Iterator[tuple[str, str]]:
    """Yield the entries of ``after`` through which the VM would wait for itself."""
    for number, first in enumerate(vm.after):
        way, pending = {first}, [first]
        while pending:
            waits_for = held.vms.get(pending.pop())
            for name in waits_for.after if waits_for is not None else ():
                if name not in way:
                    way.add(name)
                    pending.append(name)
        if vm.name in way:
            yield f"after[{number}]", f"{first} waits for {vm.name} itself, remove one of the two"


def _place(source: Source, found: Sequence[tuple[str, str]]) -> tuple[Fault, ...]:
    root = compose_native(source.text, source.file)
    marks = [(locate(root, path), path, message) for path, message in found]
    return tuple(Fault(source.file, m.line, m.column, path, text) for m, path, text in marks)
