from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

from arcsup.spec.config import Config, read_config
from arcsup.spec.native import read_vm
from arcsup.spec.schema import vm_schema
from arcsup.spec.together import Source, check_together

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_an_example_is_read_without_fault_or_doubt(file: Path) -> None:
    parsed = read_vm(file.read_bytes(), file, "0")

    assert (parsed.faults, parsed.warnings) == ((), ())
    assert parsed.name == file.stem


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_an_example_fits_the_schema_that_it_names(file: Path) -> None:
    text = file.read_text()
    schema = text.splitlines()[0].partition("$schema=")[2]

    assert (file.parent / schema).resolve() == ROOT / "config" / "vm.schema.json"
    Draft202012Validator(vm_schema()).validate(yaml.safe_load(text))


def test_all_examples_can_be_dropped_in_at_once() -> None:
    sources = []
    for file in EXAMPLES:
        parsed = read_vm(file.read_bytes(), file, "0")
        sources.append(Source(file, parsed.name, file.read_text(), parsed.vm))

    assert check_together(sources, str) == {}


def test_the_configuration_that_is_installed_says_the_defaults() -> None:
    file = ROOT / "config" / "arcsup.yaml"

    assert read_config(file.read_bytes(), file) == Config()


def test_what_the_configuration_has_in_comments_can_be_uncommented() -> None:
    file = ROOT / "config" / "arcsup.yaml"
    lines = file.read_text().replace("gpus: []", "gpus:").replace("usb: []", "usb:").splitlines()
    keys = [line[1:] if line.startswith("#") and _is_key(line) else line for line in lines]

    config = read_config("\n".join(keys), file)

    assert config.vm_dir == Path("/etc/arcsup/vms")
    matches = [policy.match for policy in config.gpus]
    assert matches == ["0000:01:00.0", "10de:2230", "8086:e20b"]


def _is_key(line: str) -> bool:
    return line[1:2].isalpha() or line.startswith("#  ")
