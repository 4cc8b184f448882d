"""What the files and tools say; how the kernel behaves is shown in tests/lab/test_backends.py."""

import errno
from collections.abc import Collection
from contextlib import nullcontext
from pathlib import Path

import pytest

from arcsup.errors import ArcsupError, Refused, Terminal, Transient
from arcsup.host import sriov
from arcsup.host.host_use import find_host_use
from arcsup.host.sriov import enable_vfs, find_vfs
from arcsup.host.sysfs import Sysfs
from tests.trees import L40S, Tree

CARD = "0000:41:00.0"
VFS = ["0000:41:00.4", "0000:41:00.5"]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path / "sys")


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def add_card(tree: Tree, driver: str = "nvidia", total: int = 2) -> str:
    return tree.populate_pci(CARD, driver=driver, files={"sriov_totalvfs": f"{total}\n"})


def add_idle_vfs(tree: Tree) -> None:
    """Make NVIDIA's VFs, which nothing links to yet."""
    for vf in VFS:
        tree.populate_vendor(tree.populate_pci(vf, driver="nvidia"), L40S)


def linking_tool(tree: Tree, card: str, path: Path, before: str = "") -> Path:
    """Return a tool that makes the links to the VFs, as the vendor's makes the VFs."""
    links = "\n".join(
        f"ln -s ../{vf} {tree.root}/{card}/virtfn{number}" for number, vf in enumerate(VFS)
    )
    return script(path, f'{before}\necho "$@" >>{path}.said\n{links}')


async def answer(tree: Tree, count: int, tool: Path) -> ArcsupError:
    with pytest.raises(ArcsupError) as caught:
        await enable_vfs(CARD, count, Sysfs(tree.root), sriov_manage=tool)
    return caught.value


def test_vfs_are_counted_by_their_links_in_order(tree: Tree) -> None:
    pf = add_card(tree)
    tree.populate_vfs(pf, [f"0000:41:01.{number}" for number in range(3)])
    tree.link(f"{pf}/virtfn10", "devices/pci0000:00/0000:41:02.2")
    assert list(find_vfs(Sysfs(tree.root), CARD)) == [0, 1, 2, 10]


async def test_the_vendors_tool_makes_vfs_where_a_write_is_refused(
    tree: Tree, tmp_path: Path
) -> None:
    card = add_card(tree)
    add_idle_vfs(tree)
    tool = linking_tool(tree, card, tmp_path / "sriov-manage")
    await enable_vfs(CARD, 1, Sysfs(tree.root), sriov_manage=tool)
    assert Path(f"{tool}.said").read_text() == f"-e {CARD}\n"
    await enable_vfs(CARD, 2, Sysfs(tree.root), sriov_manage=tool)
    assert Path(f"{tool}.said").read_text() == f"-e {CARD}\n", "they are there: not again"


async def test_a_tool_that_ends_well_and_does_nothing_is_not_believed(
    tree: Tree, tmp_path: Path
) -> None:
    add_card(tree)
    error = await answer(tree, 2, script(tmp_path / "sriov-manage", "echo skipped; exit 0"))
    assert isinstance(error, Transient)
    assert str(error) == (
        f"{CARD}: its virtual functions did not change; sriov-manage said: skipped"
    )


async def test_a_lock_that_somebody_has_is_tried_again(
    tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sriov, "_LOCK_PAUSE", 0.0)
    card = add_card(tree)
    add_idle_vfs(tree)
    once, refusal = tmp_path / "once", "echo Cannot obtain unbindLock; exit 1"
    locked = f"[ -e {once} ] || {{ touch {once}; {refusal}; }}"
    tool = linking_tool(tree, card, tmp_path / "sriov-manage", before=locked)
    await enable_vfs(CARD, 2, Sysfs(tree.root), sriov_manage=tool)
    always = script(tmp_path / "locked", refusal)
    for number in range(2):
        (tree.root / card / f"virtfn{number}").unlink()
    error = await answer(tree, 2, always)
    assert isinstance(error, Transient)
    assert "nvidia-persistenced" in error.hint


async def test_a_tool_that_is_not_installed_is_said(tree: Tree, tmp_path: Path) -> None:
    add_card(tree)
    error = await answer(tree, 2, tmp_path / "sriov-manage")
    assert isinstance(error, Terminal)
    assert f"{tmp_path}/sriov-manage is not there" in str(error)


async def test_vfs_that_do_not_get_their_files_are_waited_for_only_so_long(
    tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sriov, "_READY_SECONDS", 0.1)
    tree.populate_vfs(add_card(tree), VFS)
    error = await answer(tree, 2, tmp_path / "sriov-manage")
    assert str(error) == f"{VFS[0]} is not usable yet: its driver has not taken it"


async def test_sriov_that_the_driver_has_off_is_told_from_none(tree: Tree, tmp_path: Path) -> None:
    add_card(tree, driver="xe", total=0)
    error = await answer(tree, 1, tmp_path)
    assert isinstance(error, Terminal)
    assert "switched off" in str(error)
    assert "max_vfs" in error.hint


async def test_fewer_vfs_than_asked_for_are_not_passed_off_as_enough(
    tree: Tree, tmp_path: Path
) -> None:
    card = add_card(tree, driver="xe", total=7)
    tree.write(f"{card}/sriov_numvfs", "0\n")
    error = await answer(tree, 4, tmp_path)
    assert (tree.root / card / "sriov_numvfs").read_text() == "4"
    assert str(error) == f"{CARD}: 4 virtual functions were asked for and 0 were made"


async def test_vfs_are_left_while_the_hosts_network_is_on_one(tree: Tree) -> None:
    card = add_card(tree, driver="igb", total=7)
    (first, second) = tree.populate_vfs(card, VFS, driver="igbvf")
    tree.write(f"{card}/sriov_numvfs", "2\n")
    tree.write(f"{first}/net/enp0/operstate", "down\n")
    tree.write(f"{second}/net/enp1/operstate", "up\n")
    with pytest.raises(Refused, match=f"{VFS[1]} is the host's network interface enp1"):
        await enable_vfs(CARD, 4, Sysfs(tree.root))
    assert (tree.root / card / "sriov_numvfs").read_text() == "2\n"


async def test_vfs_are_left_while_a_container_has_the_interface_of_one(tree: Tree) -> None:
    card = add_card(tree, driver="igb", total=7)
    (first, second) = tree.populate_vfs(card, VFS, driver="igbvf")
    tree.write(f"{card}/sriov_numvfs", "2\n")
    tree.write(f"{first}/net/enp0/operstate", "down\n")
    (tree.root / second / "net").mkdir()
    in_container = f"{VFS[1]} has its interface in another network namespace"
    with pytest.raises(Refused, match=in_container):
        await enable_vfs(CARD, 4, Sysfs(tree.root))
    assert (tree.root / card / "sriov_numvfs").read_text() == "2\n"


@pytest.mark.parametrize(
    ("driver", "refused", "written"),
    [
        ("xe", False, ["0 to autoprobe", "2 to numvfs", "1 to autoprobe"]),
        ("i915", True, ["0 to autoprobe", "2 to numvfs", "1 to autoprobe"]),
        ("nvidia", False, ["2 to numvfs"]),
    ],
)
async def test_no_driver_of_the_host_takes_new_vfs_but_nvidias(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, driver: str, refused: bool, written: list[str]
) -> None:
    files = {"sriov_totalvfs": "2\n", "sriov_drivers_autoprobe": "1\n"}
    card = tree.populate_pci(CARD, driver=driver, files=files)
    seen = []

    async def write_sysfs(path: str, text: str, *, seconds: float) -> None:
        seen.append(f"{text} to {path.rpartition('_')[2]}")
        if path.endswith("numvfs"):
            if refused:
                raise OSError(errno.EBUSY, "busy")
            for vf in tree.populate_vfs(card, VFS, driver="nvidia" if driver == "nvidia" else None):
                tree.populate_vendor(vf, L40S)

    monkeypatch.setattr(sriov, "write_sysfs", write_sysfs)
    with pytest.raises(Transient) if refused else nullcontext():
        await enable_vfs(CARD, 2, Sysfs(tree.root))
    assert seen == written


async def test_vfs_are_left_while_a_program_of_the_host_uses_one(tree: Tree) -> None:
    card = add_card(tree, driver="xe", total=7)
    (_, second) = tree.populate_vfs(card, VFS, driver="xe")
    tree.write(f"{card}/sriov_numvfs", "2\n")
    tree.write(f"{second}/drm/renderD130/uevent", "DEVNAME=dri/renderD130\n")
    proc = tree.root.parent / "proc"
    (proc / "4711/fd").mkdir(parents=True)
    (proc / "4711/comm").write_text("gnome-shell\n")
    (proc / "4711/fd/9").symlink_to("/dev/dri/renderD130")

    def find(sysfs: Sysfs, addresses: Collection[str]) -> dict[str, str]:
        return find_host_use(sysfs, addresses, proc=proc)

    for count in (0, 4):
        with pytest.raises(Refused) as caught:
            await enable_vfs(CARD, count, Sysfs(tree.root), find_use=find)
        assert str(caught.value) == (
            f"the virtual functions of {CARD} cannot be changed: {VFS[1]} is used by "
            "process 4711 (gnome-shell) through /dev/dri/renderD130"
        )
        assert (tree.root / card / "sriov_numvfs").read_text() == "2\n"
