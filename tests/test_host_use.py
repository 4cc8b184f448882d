"""What of the host uses a function is seen before a driver is taken from it."""

import os
from contextlib import nullcontext
from pathlib import Path

import pytest
from attrs import evolve

from arcsup.devices import Backend
from arcsup.errors import Refused, Transient
from arcsup.host.binding import bind_slice, require_unused
from arcsup.host.holders import Holders
from arcsup.host.host_use import find_host_use, is_claimed
from arcsup.host.in_use import require_free
from arcsup.host.owned import OwnedSlice, Rebinding, SliceChoice
from arcsup.host.slices import prepare_slice
from arcsup.host.sysfs import Sysfs
from tests.trees import Tree

CARD, AUDIO, USB, DISK = "0000:01:00.0", "0000:01:00.1", "0000:01:00.2", "0000:01:00.3"


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Build a card with its DRM nodes, and a /proc of one process that has nothing open."""
    tree = Tree(tmp_path / "sys")
    card = tree.populate_pci(CARD, driver="amdgpu", files={"driver_override": "(null)\n"})
    for node in ("card0", "renderD128"):
        tree.write(f"{card}/drm/{node}/uevent", f"MAJOR=226\nDEVNAME=dri/{node}\n")
    populate_process(tmp_path / "proc", 10, "bash", "/dev/null")
    return tree


def populate_process(proc: Path, pid: int, program: str, *targets: str) -> None:
    folder = proc / str(pid) / "fd"
    folder.mkdir(parents=True)
    (proc / str(pid) / "comm").write_text(f"{program}\n")
    for number, target in enumerate(targets):
        (folder / str(number)).symlink_to(target)


def look(tree: Tree, *addresses: str) -> dict[str, str]:
    return find_host_use(Sysfs(tree.root), addresses, proc=tree.root.parent / "proc")


@pytest.mark.parametrize("node", ["/dev/dri/card0", "/srv/root/dev/dri/renderD128"])
def test_the_process_that_has_a_card_open_is_named_with_its_program(tree: Tree, node: str) -> None:
    assert look(tree, CARD) == {}
    proc = tree.root.parent / "proc"
    populate_process(proc, 4711, "Xorg", node)
    # systemd keeps descriptors for a session's manager.
    populate_process(proc, 1, "systemd", node)
    known = node[node.index("/dev/") :]
    assert look(tree, CARD) == {CARD: f"is used by process 4711 (Xorg) through {known} and 1 more"}


def test_a_card_of_nvidias_is_found_by_its_minor_number(tmp_path: Path) -> None:
    tree, proc = Tree(tmp_path / "sys"), tmp_path / "proc"
    for number, address in enumerate([CARD, AUDIO]):
        tree.populate_pci(address, driver="nvidia")
        file = proc / f"driver/nvidia/gpus/{address}/information"
        file.parent.mkdir(parents=True)
        file.write_text(f"Model: \t\t A\nDevice Minor: \t {number}\n")
    populate_process(proc, 7, "nvidia-persiste", "/dev/nvidiactl", "/dev/nvidia1")
    assert look(tree, CARD, AUDIO) == {
        AUDIO: "is used by process 7 (nvidia-persiste) through /dev/nvidia1"
    }


def test_a_process_that_may_not_be_looked_into_may_use_it_and_is_named(tree: Tree) -> None:
    proc = tree.root.parent / "proc"
    (proc / "11").mkdir()
    (proc / "11/fd").symlink_to("fd")  # ELOOP
    (proc / "11/comm").write_text("sealed\n")
    used = "may be used by process 11 (sealed), which may not be looked into"
    assert look(tree, CARD) == {CARD: used}
    tree.populate_pci(AUDIO, driver="snd_hda_intel")
    assert look(tree, AUDIO) == {}, "it has no node that anybody could have open"


def test_a_sound_card_is_used_by_who_plays_and_not_by_who_watches_its_mixer(tree: Tree) -> None:
    audio = tree.populate_pci(AUDIO, pci_class="0x040300", driver="snd_hda_intel")
    for node in ("controlC1", "pcmC1D3p"):
        tree.write(f"{audio}/sound/card1/{node}/uevent", f"DEVNAME=snd/{node}\n")
    proc = tree.root.parent / "proc"
    populate_process(proc, 20, "wireplumber", "/dev/snd/controlC1")
    assert look(tree, AUDIO) == {}
    populate_process(proc, 21, "mpv", "/dev/snd/pcmC1D3p")
    assert look(tree, AUDIO) == {AUDIO: "is used by process 21 (mpv) through /dev/snd/pcmC1D3p"}


def test_a_usb_controller_with_a_keyboard_or_the_hosts_network_is_used(tree: Tree) -> None:
    usb = tree.populate_pci(USB, pci_class="0x0c0330", driver="xhci_hcd")
    port = f"{usb}/usb1/1-1/1-1:1.0"
    tree.write(f"{port}/net/enx0/operstate", "down\n")
    assert look(tree, USB) == {}
    tree.write(f"{port}/net/enx0/operstate", "unknown\n")
    assert look(tree, USB) == {USB: "has the host's network interface enx0"}
    tree.write(f"{port}/net/enx0/operstate", "down\n")
    tree.write(f"{usb}/usb1/1-2/1-2:1.0/0003:046D:C31C.0001/input/input9/name", "USB Keyboard\n")
    assert look(tree, USB) == {USB: "has the host's input device 'USB Keyboard'"}


@pytest.mark.parametrize(
    ("mounts", "swaps", "holder", "used"),
    [
        ("", "", "", ""),
        (
            "30 1 259:2 / /home rw - ext4 /dev/mapper/other rw\n", "", "",
            "has the file system at /home (on nvme0n1p2)",
        ),
        (
            "30 1 0:33 / /data rw shared:1 - btrfs /dev/nvme0n1p2 rw\n", "", "",
            "has the file system at /data (on nvme0n1p2)",
        ),
        (
            "", "Filename\tType\n/dev/nvme0n1p2   partition 1 0 -2\n", "",
            "has swap space of the host (on nvme0n1p2)",
        ),
        ("", "", "dm-0", "has the disk nvme0n1p2, which dm-0 is made of"),
    ],
)  # fmt: skip
def test_a_disk_that_the_host_has_mounted_or_built_upon_is_used(
    tree: Tree, mounts: str, swaps: str, holder: str, used: str
) -> None:
    disk = tree.populate_pci(DISK, pci_class="0x010802", driver="nvme")
    part = f"{disk}/nvme/nvme0/nvme0n1/nvme0n1p2"
    tree.write(f"{part}/dev", "259:2\n")
    tree.link(f"{part}/subsystem", "class/block")
    if holder:
        tree.write(f"{part}/holders/{holder}", "")
    proc = tree.root.parent / "proc"
    (proc / "self").mkdir()
    (proc / "self/mountinfo").write_text(mounts)
    (proc / "swaps").write_text(swaps)
    assert look(tree, DISK) == ({DISK: used} if used else {})


def test_a_disk_that_somebody_has_for_himself_is_used_wherever_it_is_mounted(
    tmp_path: Path,
) -> None:
    loop = next((it for it in sorted(Path("/dev").glob("loop[0-9]*"), reverse=True)), None)
    if loop is None or not os.access(loop, os.R_OK):
        pytest.skip("there is no loop device that we may open")
    number = f"{os.major(loop.stat().st_rdev)}:{os.minor(loop.stat().st_rdev)}"
    tree, proc = Tree(tmp_path / "sys"), tmp_path / "proc"
    usb = tree.populate_pci(DISK, pci_class="0x0c0330", driver="xhci_hcd")
    part = f"{usb}/usb1/1-1/1-1:1.0/host0/block/{loop.name}"
    tree.write(f"{part}/dev", f"{number}\n")
    tree.link(f"{part}/subsystem", "class/block")
    populate_process(proc, 10, "bash", "/dev/null")
    assert look(tree, DISK) == {}
    descriptor = os.open(loop, os.O_RDONLY | os.O_EXCL | os.O_NONBLOCK)
    try:
        used = f"has the disk {loop.name}, which a file system or a program has for itself"
        assert look(tree, DISK) == {DISK: used}
        assert not is_claimed(loop, "8:0"), "another device has that name here"
    finally:
        os.close(descriptor)
    assert not is_claimed(tmp_path / "sda", "8:0")


def test_what_vfio_has_is_used_by_no_program_of_the_host(tree: Tree) -> None:
    (tree.root / tree.pci(CARD) / "driver").unlink()
    tree.bind(tree.pci(CARD), "vfio-pci")
    populate_process(tree.root.parent / "proc", 4711, "Xorg", "/dev/dri/card0")
    assert look(tree, CARD) == {}


async def test_a_card_that_is_used_is_refused_before_anything_is_written(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    usb = tree.populate_pci(
        USB, pci_class="0x0c0330", driver="xhci_hcd", files={"driver_override": "(null)\n"}
    )
    tree.write(f"{usb}/usb1/1-2/1-2:1.0/0003:0001/input/input9/name", "USB Keyboard\n")
    for path in (tree.pci(CARD), usb):
        tree.join_group(path, 7)
    tree.write("bus/pci/drivers/vfio-pci/bind", "")
    sysfs, said = Sysfs(tree.root), f"{USB} has the host's input device 'USB Keyboard'"
    proc = tree.root.parent / "proc"

    def find(sysfs: Sysfs, addresses: list[str]) -> dict[str, str]:
        return find_host_use(sysfs, addresses, proc=proc)

    monkeypatch.setattr(require_unused, "__kwdefaults__", {"find": find})
    choice = SliceChoice(
        Backend.PASSTHROUGH, 0, CARD, CARD, None, CARD, companions=(USB,), forced=True
    )
    with pytest.raises(Transient) as caught:
        await prepare_slice(choice, sysfs)
    assert str(caught.value) == said
    rebindings = (Rebinding(CARD, "amdgpu", None), Rebinding(USB, "xhci_hcd", None))
    owned = OwnedSlice(Backend.PASSTHROUGH, 0, CARD, CARD, CARD, None, "", rebindings)
    with pytest.raises(Transient) as caught:
        await bind_slice(owned, sysfs)
    assert str(caught.value) == said
    for path in (tree.pci(CARD), usb):
        assert (tree.root / path / "driver_override").read_text() == "(null)\n"

    taken = await prepare_slice(evolve(choice, force=True), sysfs)
    assert taken.force


@pytest.mark.parametrize(
    ("driver", "has_node", "is_busy", "refused"),
    [
        ("vfio-pci", True, False, False),
        ("vfio-pci", True, True, True),
        ("vfio-pci", False, False, True),
        ("nouveau", False, False, False),
        (None, False, False, False),
    ],
    ids=["nobody has the group", "somebody has", "no node", "on the host's driver", "no driver"],
)
async def test_a_process_that_cannot_be_looked_into_keeps_only_what_the_kernel_shows_in_use(
    tmp_path: Path,
    driver: str | None,
    has_node: bool,
    is_busy: bool,
    refused: bool,
) -> None:
    tree = Tree(tmp_path / "sys")
    tree.populate_pci(CARD, driver=driver, group=7)
    node = tmp_path / "dev/vfio/7"
    node.parent.mkdir(parents=True)
    if is_busy:
        node.mkdir()  # Cannot be opened for writing either.
    elif has_node:
        node.touch()
    unseen = Holders(unseen=(os.getpid(), 11))
    with pytest.raises(Refused) if refused else nullcontext() as caught:
        await require_free(Sysfs(tree.root), [tree.pci(CARD)], lambda: unseen, dev=tmp_path / "dev")
    if caught is not None:
        program = Path("/proc/self/comm").read_text().strip()
        assert str(caught.value) == (
            f"who uses {CARD} cannot be told: process {os.getpid()} ({program}) and 1 more could "
            "not be looked into"
        )
