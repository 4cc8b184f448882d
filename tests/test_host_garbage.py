"""Whatever a device tree has, looking at it never raises, and what is seen can be written down."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from arcsup.control.gpus import view_inventory
from arcsup.control.inventory_file import read_inventory
from arcsup.devices import Inventory
from arcsup.host.inventory import observe_inventory
from arcsup.host.pci_ids import PciIds
from arcsup.host.surroundings import Surroundings
from arcsup.host.sysfs import Sysfs
from tests.shortages import without_descriptors
from tests.trees import MBOCHS, P4, Tree

GOOD = "0000:07:00.0"


def populate(root: Path) -> None:
    """A tree with something of everything."""
    tree = Tree(root)
    tree.populate_node(0, "0-1", 1024)
    tree.populate_pci(GOOD, group=9)
    card = tree.populate_pci(
        "0000:01:00.0",
        driver="nvidia",
        group=1,
        files={"sriov_totalvfs": "4\n", "boot_vga": "1\n", "reset_method": "bus\n"},
    )
    tree.populate_pci("0000:01:00.1", pci_class="0x040300", driver="snd", group=1)
    tree.populate_types(card, P4)
    tree.populate_mdev(card, "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001", "nvidia-64", group=5)
    tree.write(f"{card}/drm/card0/card0-DP-1/status", "connected\n")
    tree.write(f"{card}/drm/card0/card0-DP-1/enabled", "enabled\n")
    tree.link("class/graphics/fb0/device", card)
    pf = tree.populate_pci("0000:02:00.0", driver="nvidia", files={"sriov_totalvfs": "2\n"})
    first, second = tree.populate_vfs(pf, ["0000:02:00.4", "0000:02:00.5"], driver="nvidia")
    tree.populate_vendor(first, current="1148")
    tree.populate_vendor(second)
    tree.populate_sample("mbochs", MBOCHS)


def entries(root: Path) -> list[Path]:
    """Everything that a broken driver may spoil without touching the good card."""
    good = [path for path in root.rglob("*") if GOOD in str(path)]
    good.append(root / "kernel/iommu_groups/9")
    kept = {above for path in good for above in (path, *path.parents)}
    return sorted(path for path in root.rglob("*") if path not in kept)


def destroy(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def make_fifo(path: Path, _data: bytes) -> None:
    os.mkfifo(path)


def make_link(path: Path, data: bytes) -> None:
    targets = [b"..", b".", b"/", b"/etc", os.fsencode(path.name), data.replace(b"\0", b"") or b"x"]
    os.symlink(targets[len(data) % len(targets)][:200], os.fsencode(path))


def make_file(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def make_folder(path: Path, data: bytes) -> None:
    path.mkdir()
    name = data.replace(b"\0", b"").replace(b"/", b"")[:100]
    if name not in {b"", b".", b".."}:
        open(os.path.join(os.fsencode(path), name), "wb").close()


def make_nothing(path: Path, _data: bytes) -> None:
    pass


MAKERS: list[Callable[[Path, bytes], None]] = [
    make_file,
    make_folder,
    make_link,
    make_fifo,
    make_nothing,
]


def look(root: Path) -> Inventory:
    return observe_inventory(Sysfs(root), Surroundings(PciIds(())))


changes = st.lists(
    st.tuples(st.integers(0, 10_000), st.sampled_from(MAKERS), st.binary(max_size=40)),
    min_size=1,
    max_size=12,
)


# Making a tree takes longer than looking at it: shrinking would take minutes.
@settings(max_examples=40, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(changes)
def test_no_tree_raises_and_a_good_card_stays(
    changes: list[tuple[int, Callable[[Path, bytes], None], bytes]],
) -> None:
    root = Path(tempfile.mkdtemp(prefix="tree"))
    try:
        populate(root)
        before = [card for card in look(root).cards if card.address == GOOD]
        candidates = entries(root)
        for number, make, data in changes:
            victim = candidates[number % len(candidates)]
            if victim.parent.is_dir():
                destroy(victim)
                make(victim, data)
        inventory = look(root)
        assert [card for card in inventory.cards if card.address == GOOD] == before
        assert not any("\n" in fault for fault in inventory.faults)
        text = json.dumps(view_inventory(inventory), ensure_ascii=False).encode().decode()
        assert read_inventory(text) == inventory
    finally:
        shutil.rmtree(root)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_no_attribute_raises(data: bytes) -> None:
    with tempfile.TemporaryDirectory(prefix="tree") as folder:
        Path(folder, "file").write_bytes(data)
        sysfs = Sysfs(Path(folder))
        for read in (sysfs.text, sysfs.count, sysfs.cpus, sysfs.link_name, sysfs.real, sysfs.names):
            read("file")
        sysfs.hex_digits("file", 4)
        assert not any("\n" in fault for fault in sysfs.faults)


@pytest.mark.parametrize(
    ("text", "digits"), [("0x10de\n", "10de"), ("10DE", "10de"), ("0x3", "0003"), ("0x12345", "")]
)
def test_hexadecimal_numbers_have_their_digits(tmp_path: Path, text: str, digits: str) -> None:
    (tmp_path / "vendor").write_text(text)
    assert Sysfs(tmp_path).hex_digits("vendor", 4) == digits


def test_a_tree_that_no_descriptor_is_left_for_is_not_taken_for_an_empty_one(
    tmp_path: Path,
) -> None:
    sysfs = Sysfs(tmp_path)
    with without_descriptors():
        with pytest.raises(OSError, match="Too many open files"):
            sysfs.names(".")
        with pytest.raises(OSError, match="Too many open files"):
            sysfs.text("vendor")
    assert sysfs.names("nothing") == []
