"""What ip(8) is asked and says."""

from pathlib import Path

import pytest
import trio

from arcsup.devices import Backend
from arcsup.errors import Refused, Transient
from arcsup.host.holders import Holders
from arcsup.host.network_vfs import observe_vf_mac, return_vf_mac, set_vf_mac
from arcsup.host.owned import OwnedSlice
from arcsup.host.sysfs import Sysfs
from tests.trees import Tree

CARD = "0000:41:00.0"
VFS = ["0000:41:00.4", "0000:41:00.5"]
OURS, FORMER = "52:54:00:aa:bb:cc", "52:54:00:00:00:05"


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path / "sys")


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def fake_ip(folder: Path, mac: str, refused: str = "none") -> Path:
    """Return an ip(8) for VF 1, which has an address and takes every other but ``refused``."""
    (folder / "mac").write_text(mac)
    text = f"""
if [ "$1" = link ]; then [ "$8" = {refused} ] || printf %s "$8" >{folder}/mac; exit; fi
echo '[{{"vfinfo_list":[{{"vf":0}},{{"vf":1,"address":"'$(cat {folder}/mac)'"}}]}}]'
"""
    return script(folder / "ip", text)


def owned(former: str | None) -> OwnedSlice:
    path = f"/sys/bus/pci/devices/{VFS[1]}"
    return OwnedSlice(
        Backend.SRIOV, 0, VFS[1], CARD, VFS[1], None, path, mac=OURS, former_mac=former
    )


@pytest.fixture
def network_vfs(tree: Tree) -> Tree:
    pf = tree.populate_pci(CARD, pci_class="0x020000", driver="igb")
    tree.populate_vfs(pf, VFS, pci_class="0x020000")
    tree.write(f"{pf}/net/enp65s0/address", "52:54:00:00:00:01\n")
    return tree


@pytest.mark.parametrize("key", ["mac", "address"])
async def test_a_network_vfs_address_is_set_and_seen(
    network_vfs: Tree, tmp_path: Path, key: str
) -> None:
    seen = f'[{{"vfinfo_list":[{{"vf":0}},{{"vf":1,"{key}":"52:54:00:aa:bb:cc"}}]}}]'
    ip = script(tmp_path / "ip", f"echo \"$@\" >>{tmp_path}/said\n[ $1 = link ] || echo '{seen}'")
    await set_vf_mac(Sysfs(network_vfs.root), VFS[1], "52:54:00:AA:BB:CC", ip=str(ip))
    said = (tmp_path / "said").read_text().splitlines()
    assert said == [
        "link set dev enp65s0 vf 1 mac 52:54:00:AA:BB:CC",
        "-json link show dev enp65s0",
    ]


async def test_an_address_that_the_driver_refuses_is_said(
    network_vfs: Tree, tmp_path: Path
) -> None:
    refusal = "RTNETLINK answers: Operation not permitted"
    ip = script(tmp_path / "ip", f"[ $1 = link ] && echo {refusal}; exit 2")
    with pytest.raises(Transient, match="MAC address unknown") as caught:
        await set_vf_mac(Sysfs(network_vfs.root), VFS[0], "52:54:00:aa:bb:cc", ip=str(ip))
    assert caught.value.hint == f"ip said: {refusal}"


async def test_only_a_vf_of_a_network_interface_gets_an_address(tree: Tree) -> None:
    tree.populate_vfs(tree.populate_pci(CARD, driver="nvidia"), VFS)
    with trio.fail_after(30), pytest.raises(Transient, match="no virtual function of a network"):
        await set_vf_mac(Sysfs(tree.root), VFS[0], "52:54:00:aa:bb:cc")


@pytest.mark.parametrize(
    ("now", "former", "refused", "afterwards"),
    [
        (OURS, FORMER, "none", FORMER),
        (FORMER, FORMER, "none", FORMER),
        ("52:54:00:12:34:56", FORMER, "none", "52:54:00:12:34:56"),
        (OURS, None, "none", OURS),
        (OURS, "00:00:00:00:00:00", "00:00:00:00:00:00", OURS),
    ],
    ids=["ours", "gone already", "another's", "untold", "not to be taken away"],
)
async def test_a_vf_gets_its_former_address_back(
    network_vfs: Tree, tmp_path: Path, now: str, former: str | None, refused: str, afterwards: str
) -> None:
    sysfs, ip = Sysfs(network_vfs.root), str(fake_ip(tmp_path, now, refused))

    await return_vf_mac(owned(former), sysfs, Holders, ip=ip)

    assert await observe_vf_mac(sysfs, VFS[1], ip=ip) == afterwards


async def test_an_address_is_not_changed_under_who_holds_the_vf(
    network_vfs: Tree, tmp_path: Path
) -> None:
    network_vfs.join_group(f"devices/pci0000:00/{VFS[1]}", 5)
    ip = str(fake_ip(tmp_path, OURS))
    with pytest.raises(Refused, match="in use by process 77"):
        await return_vf_mac(
            owned(FORMER), Sysfs(network_vfs.root), lambda: Holders({"5": (77,)}), ip=ip
        )
    assert (tmp_path / "mac").read_text() == OURS


async def test_an_address_that_a_driver_does_not_take_back_is_said(
    network_vfs: Tree, tmp_path: Path
) -> None:
    ip = str(fake_ip(tmp_path, OURS, refused=FORMER))
    with pytest.raises(Transient, match=f"has the MAC address {OURS}, not {FORMER}"):
        await return_vf_mac(owned(FORMER), Sysfs(network_vfs.root), Holders, ip=ip)
