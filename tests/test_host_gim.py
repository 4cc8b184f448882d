"""What AMD's GIM tells of the virtual functions of an MxGPU card."""

from pathlib import Path

import pytest

from arcsup.host.gim import GimVf, parse_gpuvf
from arcsup.host.inventory import observe_inventory
from arcsup.host.pci_ids import PciIds
from arcsup.host.surroundings import Surroundings
from arcsup.host.sysfs import Sysfs
from arcsup.model import MiB
from tests.trees import Tree

CARD = "0000:03:00.0"
VFS = ["0000:03:02.0", "0000:03:02.1"]


def gpuvf(*sizes: int, type_: str = "S7150") -> str:
    """Return the file of a card whose virtual functions are so large."""
    return "".join(
        f"VF #{number}\n\tType:{type_}\n\tBusId:{VFS[number]}\n\tName:MxGPU_V1_{len(sizes)}\n"
        f"\tVF State:Available\n\tVF Size:{size} M\n\tGFX engine partition:{100 // len(sizes)}%\n"
        for number, size in enumerate(sizes)
    )


def test_each_function_has_its_type_and_size() -> None:
    assert list(parse_gpuvf(gpuvf(3968, 3968))) == [
        GimVf(address, "S7150", MiB(3968)) for address in VFS
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("Error: unexpected error.\n", []),
        ("VF #0\n\tType:S7150\n", []),
        ("VF #0\n\tBusId:0000:03:02.0\n\tVF Size:-1 M\n", [GimVf(VFS[0], "", None)]),
        ("VF #0\n\tBusId:0000:03:02.0\n\tVF Size:9", [GimVf(VFS[0], "", None)]),
        ("VF #0\n\tVF Size:16 M\n\tBusId:0000:03:02.0", [GimVf(VFS[0], "", MiB(16))]),
    ],
)
def test_what_is_cut_short_or_no_number_is_not_known(text: str, expected: list[GimVf]) -> None:
    assert list(parse_gpuvf(text)) == expected


@pytest.mark.parametrize(
    ("text", "kind", "sizes"),
    [
        (gpuvf(3968, 3968), "S7150", [3968, 3968]),
        (gpuvf(3968), "S7150", [3968, None]),
        ("", "", [None, None]),
    ],
)
def test_a_card_of_gim_has_functions_of_known_type_and_size(
    tmp_path: Path, text: str, kind: str, sizes: list[int | None]
) -> None:
    tree = Tree(tmp_path / "sys")
    files = {"sriov_totalvfs": "16\n", "gpuvf": text}
    pf = tree.populate_pci(CARD, ids="1002:6929", driver="gim", group=1, files=files)
    tree.populate_vfs(pf, VFS, first_group=2)

    inventory = observe_inventory(Sysfs(tree.root), Surroundings(PciIds(())))

    (card,) = inventory.cards
    assert card.vf_type == kind
    assert [vf.vram_mib for vf in card.vfs] == sizes
    assert inventory.faults == ()
