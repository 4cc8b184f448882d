import json
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

from arcsup.model import Vm
from arcsup.spec.native import read_vm, vm_to_native
from arcsup.spec.schema import vm_reference, vm_schema
from arcsup.spec.tables import VM

ROOT = Path(__file__).parent.parent


def is_valid(text: str) -> bool:
    return Draft202012Validator(vm_schema()).is_valid(yaml.safe_load(text))


def test_the_schema_in_config_is_that_of_the_reader() -> None:
    kept = json.loads((ROOT / "config" / "vm.schema.json").read_text())

    assert kept == vm_schema(), "run: arcsup schema > config/vm.schema.json"


def test_the_schema_is_a_schema() -> None:
    Draft202012Validator.check_schema(vm_schema())


def test_every_field_of_a_vm_has_a_key() -> None:
    assert {key.target for key in VM.keys} == set(Vm.__annotations__)


@pytest.mark.parametrize(
    "text",
    [
        "memory: 2048",
        "memory: 1.5GiB",
        "display: spice",
        "display: {type: vnc, port: 5901}",
        "lookingGlass: {hdr: true}",
        "numa: 1",
        "cpus: {pin: [0, 2-3]}",
        "usb: [{bus: 1, port: 1.2}]",
        "networks: [{forwards: ['udp:[::1]:53:53'], mac: '52:54:00:12:34:56'}]",
    ],
)
def test_what_the_reader_takes_the_schema_takes(text: str) -> None:
    assert read_vm(text, Path("box.yaml"), "0").faults == ()
    assert is_valid(text)


@pytest.mark.parametrize(
    "text",
    ["memroy: 1", "memory: lots", "disks: [{}]", "display: {}", "accel: hvf", "cpus: {cores: 0}"],
)
def test_what_the_reader_refuses_by_its_form_the_schema_refuses(text: str) -> None:
    assert read_vm(text, Path("box.yaml"), "0").faults
    assert not is_valid(text)


def test_a_vm_that_was_written_fits_the_schema() -> None:
    parsed = read_vm("disks: [{path: a, size: 1G}]\ngpus: [{kind: virtio}]", Path("a.yaml"), "0")
    assert parsed.vm is not None

    Draft202012Validator(vm_schema()).validate(vm_to_native(parsed.vm))


def test_the_reference_has_a_row_for_every_key() -> None:
    rows = vm_reference().splitlines()

    assert rows[0] == "| key | type | default | meaning |"
    assert all(row.count(" | ") == 3 for row in rows)
    assert {key.name for key in VM.keys} <= {row.split("`")[1] for row in rows[2:]}
    assert "| `disks[].path` |" in vm_reference()
