"""`arcsup qemu FILE`: the command line with the slices that a VM would get, or why not."""

import json
import os
from itertools import pairwise
from pathlib import Path

import pytest

from tests.cli_runner import Cli
from tests.fake_supervisor import FakeSupervisor
from tests.libvfio_files import EXAMPLES
from tests.trees import GVTG_4, P4, Tree, TypeFiles

NVIDIA, INTEL = "0000:41:00.0", "0000:00:02.0"


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    tree = Tree(tmp_path / "sys")
    card = tree.populate_pci(NVIDIA, driver="nvidia", group=4)
    tree.populate_types(card, P4)
    graphics = tree.populate_pci(INTEL, ids="8086:5917", driver="i915", group=5)
    tree.populate_types(graphics, [TypeFiles("i915-GVTg_V5_4", "GVTg_V5_4", GVTG_4)])
    return tree


class Verb:
    def __init__(self, top: Path, tree: Tree, capsys: pytest.CaptureFixture[str]) -> None:
        self.top = top
        self.tree = tree
        self._cli = Cli(FakeSupervisor(), top / "nowhere", capsys)

    def __call__(self, text: str, *options: str) -> tuple[int, list[str], str]:
        """Return the exit code, QEMU's arguments and what was said."""
        file = self.top / "guest.yaml"
        file.write_text(text)
        (self.top / "vms").mkdir(exist_ok=True)
        places = ["--sysfs", str(self.tree.root), "--state", str(self.top / "state")]
        places += ["--vms", str(self.top / "vms"), "--log-dir", str(self.top / "log")]
        result = self._cli("qemu", str(file), *places, "-o", "json", *options)
        return result.code, json.loads(result.out) if result.out else [], result.err


@pytest.fixture
def verb(tmp_path: Path, tree: Tree, capsys: pytest.CaptureFixture[str]) -> Verb:
    return Verb(tmp_path, tree, capsys)


def value_of(argv: list[str], option: str, beginning: str) -> str:
    """Return the one value of an option that begins so."""
    [found] = [it for it in values_of(argv, option) if it.startswith(beginning)]
    return found


def values_of(argv: list[str], option: str) -> list[str]:
    return [value for word, value in pairwise(argv) if word == option]


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_libvfio_file_has_its_gpu_in_the_command_line(name: str, verb: Verb) -> None:
    example = EXAMPLES[name]
    before = sorted(verb.tree.root.rglob("*"))

    code, argv, said = verb(example.text(str(verb.top / "images")))

    assert code == 0, said
    device = value_of(argv, "-device", "vfio-pci,")
    assert ",id=gpu0" in f",{device}"
    assert f"sysfsdev={verb.tree.root}/bus/mdev/devices/" in device
    assert "spice" in " ".join(argv)
    assert value_of(argv, "-device", "ivshmem-plain,id=looking-glass")
    given = values_of(argv, "-set")
    assert all(value.startswith("device.gpu0.x-pci-") for value in given)
    assert len(given) == (2 if "ids" in name else 0)
    assert sorted(verb.tree.root.rglob("*")) == before, "something was made"
    # The same each time: the uuid is made from the VM's own.
    assert verb(example.text(str(verb.top / "images")))[1] == argv


def test_a_device_that_is_not_there_is_3_and_told(verb: Verb) -> None:
    text = "networks: []\ngpus: [{mdevType: nvidia-999}]\n"

    code, argv, said = verb(text)

    assert (code, argv) == (3, [])
    assert "guest waits for a device: gpus[0]: " in said
    assert "not the type asked for" in said
    assert "arcsup gpu types --for" in said
    assert verb(text, "--disable-gpu")[0] == 0


def test_no_directory_of_the_daemons_is_made(verb: Verb, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("arcsup.vm.capabilities._in_memory", {})

    assert verb("accel: auto\ndisplay: {type: vnc}\n")[0] == 0
    assert sorted(path.name for path in verb.top.iterdir()) == ["guest.yaml", "sys", "vms"]


def test_an_optional_gpu_that_is_not_there_is_left_away(verb: Verb) -> None:
    code, argv, _ = verb("networks: []\ngpus: [{mdevType: nvidia-999, optional: true}]\n")

    assert code == 0
    assert not [word for word in argv if word.startswith("vfio-pci")]


def test_a_whole_card_is_named_by_its_address(verb: Verb) -> None:
    card = {"driver_override": "(null)\n"}
    verb.tree.populate_pci(
        "0000:42:00.0", pci_class="0x030200", driver="nvidia", group=6, files=card
    )

    code, argv, said = verb("networks: []\ngpus: [{kind: passthrough, address: 42:00.0}]\n")

    assert code == 0, said
    device = value_of(argv, "-device", "vfio-pci,")
    assert f"sysfsdev={verb.tree.root}/bus/pci/devices/0000:42:00.0" in device
    assert os.readlink(verb.tree.root / "bus/pci/devices/0000:42:00.0/driver").endswith("nvidia")
