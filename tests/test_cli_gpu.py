"""The verbs gpu and inventory, from a fake daemon and from device trees without one."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from arcsup.cli.fullness import Fullness, measure_fullness
from arcsup.cli.gpu import normalise
from arcsup.control.gpus import view_card, view_inventory
from arcsup.control.inventory_file import read_inventory
from arcsup.devices import Backend, Card, Inventory, Slice, SliceType
from arcsup.host.inventory import observe_host
from arcsup.model import MiB, VmName
from tests.cli_runner import Cli
from tests.fake_supervisor import FakeSupervisor, serve_in_thread
from tests.trees import MBOCHS, MTTY, P4, Tree

UUID = "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001"
CARD = "0000:41:00.0"


@pytest.fixture
def cli(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Cli]:
    supervisor = FakeSupervisor()
    with serve_in_thread(supervisor, tmp_path):
        yield Cli(supervisor, tmp_path, capsys)


@pytest.fixture
def alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Cli:
    """The command line where no daemon runs."""
    return Cli(FakeSupervisor(), tmp_path, capsys)


@pytest.fixture
def sysfs(tmp_path: Path) -> str:
    tree = Tree(tmp_path / "sys")
    tree.populate_node(0, "0-3", 1 << 20)
    tree.populate_node(1, "4-7", 1 << 20)
    path = tree.populate_pci(CARD, driver="nvidia", group=4, files={"numa_node": "1\n"})
    tree.populate_types(path, P4)
    tree.populate_mdev(path, UUID, "nvidia-64", group=30)
    tree.populate_sample("mbochs", MBOCHS)
    return str(tree.root)


def test_the_list_without_a_daemon_is_of_the_device_tree(alone: Cli, sysfs: str) -> None:
    result = alone("gpu", "list", "--offline", "--sysfs", sysfs)

    assert result.code == 0
    lines = result.out.splitlines()
    assert lines[0].split() == ["ADDRESS", "NAME", "DRIVER", "NODE", "OFFERS", "FULL", "STATE"]
    assert lines[1].startswith(f"{CARD}   ")
    assert "mdev, passthrough   2 of 8 GiB" in lines[1]
    assert lines[2].split("   ")[0] == "mbochs"


def test_without_offline_the_daemon_is_needed(alone: Cli, sysfs: str) -> None:
    assert alone("gpu", "list").code == 69


def test_the_list_of_a_daemon_says_whose_slices_are(cli: Cli) -> None:
    piece = Slice(Backend.MDEV, UUID, "nvidia-64", CARD, "/p", VmName("web"), ours=True)
    cli.supervisor.devices = Inventory(cards=(Card(CARD, "/p", "Tesla P4", slices=(piece,)),))

    (shown,) = cli("gpu", "list", "-o", "json").json

    assert (shown["address"], shown["name"]) == (CARD, "Tesla P4")
    (shown_slice,) = shown["slices"]
    assert shown_slice["kind"] == "vgpu"
    assert (shown_slice["vm"], shown_slice["ours"]) == ("web", True)
    assert cli("gpu", "list", "-o", "name").out == f"{CARD}\n"
    assert "web" in cli("gpu", "list", "--tree").out


def test_the_list_has_every_key_of_the_contract(alone: Cli, sysfs: str) -> None:
    first, second = alone("gpu", "list", "--sysfs", sysfs, "--json").json

    assert set(first) >= {
        *("address", "vendor", "device", "subsystem", "name", "class", "driver", "numaNode"),
        *("iommuGroup", "backends", "vfs", "types", "slices", "usable", "why"),
    }
    assert first["vfs"] == {"total": 0, "enabled": 0, "type": "", "functions": []}
    assert second["types"][0] == {
        "id": "mbochs-large",
        "name": "mbochs-large",
        "vramMiB": 64,
        "available": 4,
        "max": None,
        "deviceApi": "vfio-pci",
        "parent": "mbochs",
        "backend": "mdev",
    }


def test_the_tree_goes_by_numa_node_and_card(alone: Cli, sysfs: str) -> None:
    result = alone("gpu", "list", "--tree", "--sysfs", sysfs)

    _, *lines = result.out.splitlines()
    assert lines[0] == "├─ NUMA node 0 (CPUs 0-3)"
    assert lines[1] == "├─ NUMA node 1 (CPUs 4-7)"
    assert lines[2].startswith(f"│  └─ {CARD}")
    assert lines[2].endswith("██░░░░░░░░  2 of 8 GiB")
    assert lines[3] == f"│     └─ nvidia-64 {UUID} on {CARD} (not ours)"
    assert lines[4] == "└─ no NUMA node of its own"
    assert lines[5].startswith("   └─ mbochs ")


def test_wide_adds_what_else_is_known(alone: Cli, sysfs: str) -> None:
    out = alone("gpu", "list", "-o", "wide", "--sysfs", sysfs).out
    assert "10de:1bb3" in out
    assert "mixed" in out  # other sizes are left beside the one that is taken


def test_types_are_listed_with_what_is_left(alone: Cli, sysfs: str) -> None:
    out = alone("gpu", "types", "--sysfs", sysfs).out
    assert f"nvidia-64       GRID P4-2Q      2048 MiB   4           4     {CARD}" in out
    assert alone("gpu", "types", "--sysfs", sysfs, "--json").json[0]["card"] == CARD


def test_a_card_is_shown_in_full(alone: Cli, sysfs: str) -> None:
    result = alone("gpu", "show", "41:00.0", "--sysfs", sysfs)

    assert result.code == 0
    assert result.out.startswith(f"● {CARD}")
    for text in ("Driver: nvidia", "IOMMU group: 4, viable", "nvidia-64 GRID P4-2Q, 2048 MiB"):
        assert text in result.out


@pytest.mark.parametrize("name", [CARD, "41:00.0", "00000000:41:00.0", "0000:41:00.0", UUID])
def test_a_card_is_found_by_any_form_of_its_address(alone: Cli, sysfs: str, name: str) -> None:
    assert alone("gpu", "show", name, "--sysfs", sysfs, "-o", "name").out == f"{CARD}\n"


def test_what_of_the_host_uses_a_card_is_shown(alone: Cli, tmp_path: Path) -> None:
    tree = Tree(tmp_path / "used")
    nic = tree.populate_pci("0000:05:00.1", pci_class="0x0c0330", driver="xhci_hcd", group=5)
    tree.populate_pci("0000:05:00.0", driver="amdgpu", group=5)
    tree.write(f"{nic}/usb1/1-1/1-1:1.0/net/enx0/operstate", "up\n")
    result = alone("gpu", "show", "05:00.0", "--sysfs", str(tree.root))
    told = "Host's use: 0000:05:00.1 (USB controller) has the host's network interface enx0"
    assert told in result.out


def test_a_card_that_is_not_there_is_4(alone: Cli, sysfs: str) -> None:
    result = alone("gpu", "show", "0000:01:00.0", "--sysfs", sysfs)
    assert (result.code, result.out) == (4, "")


def test_addresses_are_normalised() -> None:
    assert normalise("00000001:C8:02.4") == "0001:c8:02.4"
    assert normalise("C8:02.4") == "0000:c8:02.4"
    assert normalise("MTTY") == "mtty"


def test_an_inventory_is_written_without_a_daemon_and_read_back(alone: Cli, sysfs: str) -> None:
    result = alone("inventory", "--sysfs", sysfs, "-o", "json")

    assert result.code == 0
    assert read_inventory(result.out) == observe_host(Path(sysfs))


def test_an_inventory_comes_from_the_daemon_where_there_is_one(cli: Cli) -> None:
    cli.supervisor.devices = Inventory(hostname="far", cards=(Card("mtty", "/p", "mtty"),))
    assert read_inventory(cli("inventory", "--json").out) == cli.supervisor.devices


def test_an_inventory_needs_no_daemon(alone: Cli) -> None:
    assert alone("inventory", "--json").json["version"] == 1


def test_faults_go_to_stderr_and_nothing_else_is_broken(alone: Cli, tmp_path: Path) -> None:
    tree = Tree(tmp_path / "sys")
    tree.populate_pci(CARD, files={"numa_node": "north\n"})
    tree.populate_sample("mtty", MTTY)
    result = alone("gpu", "list", "--sysfs", str(tree.root))
    assert result.code == 0
    assert "mtty" in result.out
    assert "numa_node: expected a number, found 'north'" in result.err


def test_nothing_is_nothing_and_no_tree_is_4(alone: Cli, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = alone("gpu", "list", "--sysfs", str(tmp_path / "empty"))
    assert (result.code, result.out) == (0, "")
    assert alone("gpu", "types", "--sysfs", str(tmp_path / "empty")).code == 0
    assert alone("gpu", "list", "--sysfs", str(tmp_path / "missing")).code == 4


def test_gpu_without_a_verb_shows_its_help(alone: Cli) -> None:
    result = alone("gpu")
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("Usage: arcsup gpu")


# --- how full a card is -------------------------------------------------------------------------


def kind(mib: int | None, available: int, most: int | None = None) -> SliceType:
    size = None if mib is None else MiB(mib)
    return SliceType(f"t-{mib}", "", size, available, most, "vfio-pci", "c", Backend.MDEV)


def piece(backend: Backend, mib: int | None = None) -> Slice:
    return Slice(backend, "id", None, "c", "/p", vram_mib=None if mib is None else MiB(mib))


def make_card(
    backend: Backend, *slices: Slice, types: tuple[SliceType, ...] = (), vfs: int = 0
) -> Card:
    return Card("c", "/p", "c", backends=(backend,), types=types, slices=slices, vfs_total=vfs)


@pytest.mark.parametrize(
    ("card", "full"),
    [
        (
            make_card(Backend.MDEV, piece(Backend.MDEV, 64), types=(kind(64, 3), kind(4, 48))),
            Fullness(64, 256, "MiB"),
        ),
        (
            make_card(Backend.MDEV, piece(Backend.MDEV, 2048), types=(kind(2048, 0, 4),)),
            Fullness(2048, 8192, "MiB"),
        ),
        (
            make_card(Backend.MDEV, piece(Backend.MDEV), types=(kind(None, 3),)),
            Fullness(1, 4, "slices"),
        ),
        (make_card(Backend.SRIOV, piece(Backend.SRIOV), vfs=7), Fullness(1, 7, "VFs")),
        (make_card(Backend.VENDOR_VFIO), Fullness(0, 0, "VFs")),
        (make_card(Backend.PASSTHROUGH), Fullness(0, 1, "card")),
        (make_card(Backend.PASSTHROUGH, piece(Backend.PASSTHROUGH)), Fullness(1, 1, "card")),
        (make_card(Backend.MDEV), None),
    ],
)
def test_fullness_is_in_what_the_card_is_measured_in(card: Card, full: Fullness | None) -> None:
    assert measure_fullness(view_card(card)) == full


@pytest.mark.parametrize(
    ("used", "total", "bar"),
    [(0, 9, "░" * 10), (1, 100, "█" + "░" * 9), (99, 100, "█" * 9 + "░"), (4, 4, "█" * 10)],
)
def test_a_bar_never_shows_a_little_as_nothing(used: int, total: int, bar: str) -> None:
    assert Fullness(used, total, "MiB").draw() == bar


def test_sizes_are_told_in_gib_where_they_are_large() -> None:
    assert Fullness(2048, 49152, "MiB").describe() == "2 of 48 GiB"
    assert Fullness(4, 256, "MiB").describe() == "4 of 256 MiB"
    assert Fullness(1, 1, "card").describe() == "taken"


def test_the_view_of_an_empty_host_is_drawn(cli: Cli) -> None:
    assert view_inventory(cli.supervisor.devices)["gpus"] == []
    assert cli("inventory").out == "host (no IOMMU)\n"
