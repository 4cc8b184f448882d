"""VM files of somebody who means harm: each is refused in one short line that says where."""

from pathlib import Path

import pytest

from arcsup.spec import nodes
from arcsup.spec.native import read_vm
from arcsup.spec.struct import MOST_HINTS

FILE = Path("/vms/one.yaml")

HOSTILE = {
    "a name that leaves the folder": "name: ../../etc/cron.d/x",
    "a name with a folder": "name: a/b",
    "a name with an option": "name: 'a,debug-threads=off'",
    "a name that is an option": "name: -daemonize",
    "a name of two lines": 'name: "a\\nb"',
    "a name of kilobytes": f"name: {'a' * 5000}",
    "a path of two lines": 'disks: [{path: "a\\nb"}]',
    "a path that commands the terminal": 'disks: [{path: "a\\e[2Jb"}]',
    "a path that ends early": 'disks: [{path: "a\\0b"}]',
    "a path of kilobytes": f"disks: [{{path: {'a' * 100_000}}}]",
    "a machine with an option": "machine: 'q35,firmware=/etc/shadow'",
    "a network card with an option": "networks: [{model: 'virtio,romfile=/etc/shadow'}]",
    "an address with an option": "networks: [{mac: '52:54:00:00:00:00,netdev=x'}]",
    "a bridge with a program": "networks: [{type: bridge, bridge: 'br0,helper=/bin/sh'}]",
    "a tap that is a path": "networks: [{type: tap, tap: ../../etc}]",
    "a forward with a program": (
        "networks: [{forwards: ['tcp:127.0.0.1:2222:22,guestfwd=tcp:10.0.2.100:1-cmd:id']}]"
    ),
    "a forward to no port": "networks: [{forwards: ['tcp:127.0.0.1:99999999999:22']}]",
    "a share's tag with an option": "shares: [{path: a, tag: 'x,security_model=none'}]",
    "a display without its password": "display: {type: vnc, listen: '0.0.0.0,password=off'}",
    "a UUID with an option": "uuid: '1,driftfix=slew'",
    "a USB device with an option": "usb: [{vendor: '1,x', product: 2}]",
    "a card that is a path": "gpus: [{kind: vgpu, parent: ../../../etc}]",
    "all memory": "memory: 99999999999TiB",
    "memory of thousands of digits": f"memory: {'9' * 5000}",
    "memory without end": "memory: .inf",
    "less than no memory": "memory: -1",
    "a billion CPUs": "cpus: {cores: 999999999}",
    "a disk of all disks": f"disks: [{{path: a, size: {'9' * 30}TiB}}]",
    "thousands of disks": f"disks: [{', '.join(['{path: a}'] * 5000)}]",
    "thousands of GPUs": f"gpus: [{', '.join(['{kind: virtio}'] * 3000)}]",
    "a billion of one GPU": "gpus: [{kind: vgpu, count: 1000000000}]",
    "thousands of VMs before it": f"after: [{', '.join(['a'] * 10_000)}]",
    "an age to stop": f"stop: {{timeout: {'9' * 400}}}",
    "restarts without end": f"restart: {{burst: {'9' * 40}}}",
    "a description of kilobytes": f"description: {'x' * 200_000}",
    "an object of Python's": "a: !!python/object/apply:os.system [id]",
    "bytes": "memory: !!binary aGk=",
    "a merged map": "<<: {memory: 64}",
    "nested without end": "[" * 5000,
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_what_means_harm_is_refused_in_one_short_line(text: str) -> None:
    parsed = read_vm(text + "\n", FILE, "machine")

    assert parsed.vm is None
    for fault in map(str, parsed.faults):
        assert fault.startswith(f"{FILE}:1:")
        assert len(fault) < 200
        assert fault.isprintable()
    assert 0 < len(parsed.faults) < 3


def test_of_thousands_of_unknown_keys_only_the_first_are_compared_with_all_known_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def look(*asked: object) -> list[str]:
        looks.append(asked)
        return []

    looks: list[object] = []
    monkeypatch.setattr("difflib.get_close_matches", look)

    text = "".join(f"k{number}: 1\n" for number in range(9000))

    assert read_vm(text, FILE, "machine").vm is None
    assert len(looks) == MOST_HINTS


def test_what_no_number_can_be_is_not_tried_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []
    monkeypatch.setattr(nodes, "_IMPLICIT", {"1": [("int", Tried(tried))]})

    assert read_vm(f"memory: {'1:' * 100_000}x\n", FILE, "machine").vm is None
    read_vm("memory: 16\n", FILE, "machine")

    assert tried == ["16"]


class Tried:
    """A pattern that notes what it is tried on."""

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts

    def match(self, text: str) -> bool:
        self.texts.append(text)
        return False


@pytest.mark.parametrize("text", ["0-8191," * 100 + "0", "0," * 100_000 + "0"])
def test_cpus_that_are_named_again_and_again_are_refused(text: str) -> None:
    parsed = read_vm(f"cpus: {{pin: '{text}'}}\n", FILE, "machine")

    assert parsed.vm is None
    assert len(parsed.faults) == 1
