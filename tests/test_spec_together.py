from pathlib import Path

import pytest

from arcsup.spec.identity import derive_mac, derive_uuid
from arcsup.spec.native import load_vm
from arcsup.spec.together import Source, check_together, find_shared

MACHINE = "0123456789abcdef0123456789abcdef"


def source(file: str, text: str, standing: str | None = None) -> Source:
    path = Path(file)
    vm = load_vm(text, path, MACHINE)
    last = None if standing is None else load_vm(standing, path, MACHINE)
    return Source(path, vm.name, text, vm, last)


def faults(*sources: Source) -> list[str]:
    found = check_together(sources, lambda path: str(Path("/images") / path))
    return [str(fault) for file in found for fault in found[file]]


UUID = "1b4e28ba-2fa1-11d2-883f-0016d3cca427"
DERIVED = derive_mac(derive_uuid(MACHINE, "a"), 0)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (
            "disks: [{path: x}]",
            "disks: [{path: /images/x}]",
            "b.yaml:1:16: disks[0].path: image /images/x is used by a.yaml (disks[0].path)",
        ),
        (
            "disks: [{path: x}]",
            "disks: [{path: y, base: x}]",
            "disks[0].base: image x is used by a.yaml (disks[0].path)",
        ),
        (
            "disks: [{path: y, base: x}]",
            "disks: [{path: x}]",
            "disks[0].path: image x is used by a.yaml (disks[0].base)",
        ),
        ("cdroms: [x]", "disks: [{path: x}]", "used by a.yaml (cdroms[0])"),
        (
            "disks: [{path: x}]",
            "disks: [{path: x, readonly: true}]",
            "used by a.yaml (disks[0].path)",
        ),
        (
            f"uuid: {UUID}",
            f"uuid: {UUID.upper()}",
            f"b.yaml:1:7: uuid: uuid {UUID} is used by a.yaml (uuid)",
        ),
        (
            "memory: 1G",
            f"networks: [{{mac: '{DERIVED}'}}]",
            f"networks[0].mac: MAC address {DERIVED} is used by a.yaml (networks[0].mac)",
        ),
        (
            "networks: [{type: tap, tap: t0}]",
            "networks: [{type: tap, tap: t0}]",
            "tap device t0 is used by a.yaml",
        ),
        (
            "networks: [{forwards: ['tcp::80:80']}]",
            "networks: [{forwards: ['tcp:127.0.0.1:80:81']}]",
            "forwards[0]: tcp port 80 of the host is used by a.yaml (networks[0].forwards[0])",
        ),
        (
            "networks: [{forwards: ['udp:0.0.0.0:53:53']}]",
            "networks: [{forwards: ['udp:10.0.0.1:53:53']}]",
            "udp port 53",
        ),
        (
            "networks: [{forwards: ['udp:[::]:53:53']}]",
            "networks: [{forwards: ['udp:10.0.0.1:53:53']}]",
            "udp port 53",
        ),
        (
            "display: {type: vnc, port: 5901}",
            "networks: [{forwards: ['tcp:0.0.0.0:5901:1']}]",
            "used by a.yaml (display.port)",
        ),
        ("after: [b]", "after: [a]", "b.yaml:1:9: after[0]: a waits for b itself"),
    ],
)
def test_what_only_one_vm_can_have_goes_to_the_first(
    first: str, second: str, expected: str
) -> None:
    (fault,) = faults(source("a.yaml", first), source("b.yaml", second))

    assert expected in fault


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("disks: [{path: x, base: z}]", "disks: [{path: y, base: z}]"),
        ("cdroms: [x]", "cdroms: [x]"),
        ("networks: [{forwards: ['tcp::80:80']}]", "networks: [{forwards: ['udp::80:80']}]"),
        (
            "networks: [{forwards: ['tcp:127.0.0.1:80:80']}]",
            "networks: [{forwards: ['tcp:127.0.0.2:80:80', 'tcp:[::1]:80:80']}]",
        ),
        ("after: [b]", "after: [c]"),
        ("networks: [{}, {}]", "networks: [{}, {}]"),
    ],
)
def test_what_can_be_shared_is(first: str, second: str) -> None:
    assert faults(source("a.yaml", first), source("b.yaml", second)) == []


def test_of_two_files_with_one_name_both_are_at_fault() -> None:
    assert faults(source("a.yaml", "name: x"), source("b.yaml", "memory: 1\nname: x")) == [
        "a.yaml:1:7: name: x is the name of b.yaml too, change one of them",
        "b.yaml:2:7: name: x is the name of a.yaml too, change one of them",
    ]


def test_a_longer_circle_is_found_at_the_file_that_closes_it() -> None:
    found = faults(
        source("a.yaml", "after: [b]"),
        source("b.yaml", "after: [c]"),
        source("c.yaml", "after: [a]"),
    )

    assert found == ["c.yaml:1:9: after[0]: a waits for c itself, remove one of the two"]


def test_a_file_at_fault_claims_nothing() -> None:
    found = faults(
        source("a.yaml", "disks: [{path: x}]"),
        source("b.yaml", "disks: [{path: x}, {path: y}]"),
        source("c.yaml", "disks: [{path: y}]"),
    )

    assert [fault[:7] for fault in found] == ["b.yaml:"]


def test_the_version_that_runs_on_keeps_what_it_has() -> None:
    found = faults(
        source("a.yaml", "disks: [{path: x}]"),
        source("b.yaml", "disks: [{path: x}]", standing="disks: [{path: y}]"),
        source("c.yaml", "disks: [{path: y}]"),
    )

    assert [fault[:7] for fault in found] == ["b.yaml:", "c.yaml:"]


@pytest.mark.parametrize(
    ("one", "other", "shared"),
    [
        ("disks: [{path: x}]", "disks: [{path: /images/x}]", "image x"),
        ("cdroms: [x]", "cdroms: [x]", ""),
        (
            "networks: [{forwards: ['tcp::80:80']}]",
            "networks: [{forwards: ['tcp:127.0.0.1:80:81']}]",
            "tcp port 80 of the host",
        ),
        (f"uuid: {UUID}", f"uuid: {UUID}", f"uuid {UUID}"),
    ],
)
def test_what_a_running_version_has_is_named_to_who_wants_it(
    one: str, other: str, shared: str
) -> None:
    first, second = (
        load_vm(text, Path(name), MACHINE) for name, text in (("a.yaml", one), ("b.yaml", other))
    )

    assert find_shared(first, second, lambda path: str(Path("/images") / path)) == shared
