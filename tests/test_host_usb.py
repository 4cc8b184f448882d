"""USB devices of the host: not those that are excluded, nor those that the host itself uses."""

from pathlib import Path

import pytest
from attrs import evolve

from arcsup.host.sysfs import Sysfs
from arcsup.host.usb import observe_usb
from arcsup.model import UsbByPort, UsbByProduct, VmName
from arcsup.offline import plan_offline
from arcsup.plan.usb import find_usb_entry
from arcsup.spec.config import Config, UsbPolicy
from arcsup.vm.slices import DeviceTrouble
from arcsup.vm.usb import find_usb, judge_usb
from tests.small_host import SmallHost
from tests.trees import Tree
from tests.vm_samples import make_vm

STICK, KEYBOARD = UsbByPort(1, "2"), UsbByProduct(0x046D, 0xC31C)
TOLD = "1-2 (0781:5581 Ultra)"
CONTROLLER = "devices/pci0000:00/0000:00:14.0/usb1"
ALL_KEYS = "1000000000007 ff9f207ac14057ff febeffdfffefffff fffffffffffffffe"


def add_device(tree: Tree, port: str, ids: str, title: str, device_class: str = "00") -> str:
    path = f"{CONTROLLER}/1-{port}"
    number = len(list((tree.root / "bus/usb/devices").glob("*"))) + 2
    files = {
        "busnum": "1",
        "devnum": str(number),
        "devpath": port,
        "bDeviceClass": device_class,
        "idVendor": ids[:4],
        "idProduct": ids[5:],
        "product": title,
        "uevent": f"DEVTYPE=usb_device\nDEVNAME=bus/usb/001/{number:03}",
    }
    for name, text in files.items():
        tree.write(f"{path}/{name}", f"{text}\n")
    tree.link(f"bus/usb/devices/1-{port}", path)
    tree.write(f"{path}/1-{port}:1.0/bInterfaceNumber", "00\n")
    tree.link(f"bus/usb/devices/1-{port}:1.0", f"{path}/1-{port}:1.0")
    return f"{path}/1-{port}:1.0"


def add_keyboard(tree: Tree, interface: str, number: int = 9, keys: str = ALL_KEYS) -> None:
    path = f"{interface}/input/input{number}"
    tree.write(f"{path}/name", f"Keyboard {number}\n")
    tree.write(f"{path}/capabilities/key", f"{keys}\n")
    tree.link(f"class/input/input{number}", path)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Build a host with a memory stick that nothing uses, and a process that has nothing open."""
    tree = Tree(tmp_path / "sys")
    interface = add_device(tree, "2", "0781:5581", "Ultra")
    disk = f"{interface}/host6/target6:0:0/6:0:0:0/block/sda"
    tree.write(f"{disk}/dev", "8:0\n")
    tree.write(f"{disk}/uevent", "DEVNAME=sda\n")
    tree.link(f"{disk}/subsystem", "class/block")
    populate_process(tmp_path / "proc", 10, "bash", "/dev/null")
    (tmp_path / "proc/self").mkdir()
    return tree


def populate_process(proc: Path, pid: int, program: str, target: str) -> None:
    (proc / f"{pid}/fd").mkdir(parents=True)
    (proc / f"{pid}/comm").write_text(f"{program}\n")
    (proc / f"{pid}/fd/3").symlink_to(target)


def judge(
    tree: Tree, *requests: UsbByPort | UsbByProduct, entries: tuple[UsbPolicy, ...] = ()
) -> str:
    """Return what speaks against giving a VM what it asks for; "" where it gets all."""
    found, why = judge_usb(requests, entries, tree.root, tree.root.parent / "proc")
    assert not (found and why), "all or nothing"
    return why


def way(name: str) -> str:
    return f"; `usb: [{{match: {name}, force: true}}]` in arcsup.yaml gives it all the same"


def test_what_nothing_uses_is_given_with_its_node(tree: Tree) -> None:
    found, why = judge_usb((STICK,), (), tree.root, tree.root.parent / "proc")
    assert why == ""
    assert [(index, it.node) for index, it in found] == [(0, "/dev/bus/usb/001/002")]


def test_a_disk_that_the_host_has_mounted_is_not_given(tree: Tree) -> None:
    (tree.root.parent / "proc/self/mountinfo").write_text("30 1 8:0 / /srv rw - ext4 /dev/sda rw\n")
    assert judge(tree, STICK) == f"usb[0]: {TOLD} has the file system at /srv (on sda){way('1-2')}"
    by_ids = UsbByProduct(0x0781, 0x5581)
    assert "has the file system at /srv" in judge(tree, by_ids)
    assert judge(tree, STICK, entries=(UsbPolicy("1-2", force=True),)) == ""


@pytest.mark.parametrize("node", ["/dev/sda", "/dev/bus/usb/001/002"])
def test_what_a_program_has_open_is_not_given_and_the_program_is_named(
    tree: Tree, node: str
) -> None:
    populate_process(tree.root.parent / "proc", 4711, "dd", node)
    assert f"{TOLD} is used by process 4711 (dd) through {node}" in judge(tree, STICK)


def test_who_is_root_does_not_take_what_an_unseen_process_may_use(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tree.root.parent / "proc/11").mkdir()
    (tree.root.parent / "proc/11/fd").symlink_to("fd")  # ELOOP
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert "may be used by process 11, which may not be looked into" in judge(tree, STICK)
    # Another user's daemon gives away nothing but what that user may open.
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert judge(tree, STICK) == ""


@pytest.mark.parametrize("state", ["up", "unknown", None])
def test_the_hosts_network_is_not_given(tree: Tree, state: str | None) -> None:
    interface = add_device(tree, "3", "0bda:8153", "LAN")
    (tree.root / interface / "net").mkdir()
    expected = "has its network interface in another network namespace"
    if state is not None:
        tree.write(f"{interface}/net/enx0/operstate", f"{state}\n")
        expected = "has the host's network interface enx0"
    assert expected in judge(tree, UsbByPort(1, "3"))
    if state is not None:
        tree.write(f"{interface}/net/enx0/operstate", "down\n")
        assert judge(tree, UsbByPort(1, "3")) == ""


def test_the_last_keyboard_stays_with_the_host(tree: Tree) -> None:
    add_keyboard(tree, add_device(tree, "4", "046d:c31c", "Keys"))
    only = "1-4 (046d:c31c Keys) has the host's only keyboard 'Keyboard 9'"
    assert judge(tree, KEYBOARD) == f"usb[0]: {only}{way('1-4')}"
    add_keyboard(tree, "devices/virtual", 10)
    add_keyboard(tree, "devices/LNXSYSTM:00/PNP0C0C:00", 11, "10000000000000 0")  # a power button
    assert only in judge(tree, KEYBOARD), "no keys that anybody could press"
    add_keyboard(tree, add_device(tree, "5", "046d:c31d", "More keys"), 12)
    assert judge(tree, KEYBOARD) == ""
    assert "only keyboard" in judge(tree, KEYBOARD, UsbByPort(1, "5")), "of two not both"


def test_a_hub_is_given_to_nobody(tree: Tree) -> None:
    add_device(tree, "6", "05e3:0608", "Hub", "09")
    assert [device.name for device in observe_usb(Sysfs(tree.root))] == ["1-2"]


@pytest.mark.parametrize("match", ["1-2", "0781", "0781:5581", "*"])
def test_what_the_operator_excludes_goes_to_nobody_however_it_is_asked_for(
    tree: Tree, match: str
) -> None:
    entries = (UsbPolicy("1-9", force=True), UsbPolicy(match, exclude=True))
    for request in (STICK, UsbByProduct(0x0781, 0x5581)):
        told = f"usb[0]: {TOLD} is excluded by `usb` in arcsup.yaml"
        assert judge(tree, request, entries=entries) == told
        assert judge(tree, request, entries=(UsbPolicy("1-2"), *entries)) == "", "the first counts"


@pytest.mark.parametrize(
    ("request_", "match"),
    [(UsbByPort(1, "7.1"), "1-7.1"), (KEYBOARD, "046d"), (KEYBOARD, "046d:c31c"), (KEYBOARD, "*")],
)
def test_what_is_excluded_is_not_waited_for_by_qemu_either(
    tree: Tree, request_: UsbByPort | UsbByProduct, match: str
) -> None:
    assert "is excluded" in judge_usb((request_,), (UsbPolicy(match, exclude=True),), tree.root)[1]
    assert judge_usb((request_,), (UsbPolicy("1-2", exclude=True),), tree.root) == ((), "")


def test_an_entry_counts_only_for_what_is_known_of_a_device() -> None:
    entries = (UsbPolicy(":"), UsbPolicy(""), UsbPolicy("*"))
    assert find_usb_entry("", "", "", entries) == UsbPolicy("*")


async def test_a_vm_waits_for_a_device_that_it_cannot_have_and_is_not_started(
    tmp_path: Path,
) -> None:
    host = SmallHost(tmp_path)
    add_device(host.tree, "3", "0bda:8153", "LAN")
    host.tree.write(f"{CONTROLLER}/1-3/1-3:1.0/net/enx0/operstate", "up\n")
    host.drop("a", "memory: 64\nnetworks: []\nusb: [{bus: 1, port: 3}]\n")
    await host.fleet.read_files()
    await host.fleet.observe_usb(anew=True)
    told = "usb[0]: 1-3 (0bda:8153 LAN) has the host's network interface enx0"
    assert told in host.fleet.look().seen[VmName("a")].awaits

    vm = evolve(make_vm("a"), usb=(UsbByPort(1, "3"),))
    with pytest.raises(DeviceTrouble) as caught:
        await find_usb(vm, host.fleet.workshop)
    assert told in str(caught.value)
    host.tree.write(f"{CONTROLLER}/1-3/1-3:1.0/net/enx0/operstate", "down\n")
    assert len(await find_usb(vm, host.fleet.workshop)) == 1
    await host.fleet.observe_usb(anew=True)
    assert host.fleet.look().seen[VmName("a")].awaits == ""


def test_a_plan_without_a_daemon_says_which_usb_device_is_waited_for_and_why(
    tmp_path: Path,
) -> None:
    host = SmallHost(tmp_path)
    add_device(host.tree, "3", "0bda:8153", "LAN")
    host.drop("a", "memory: 64\nnetworks: []\nusb: [{vendor: 0bda, product: 8153}]\n")
    config = Config(usb=(UsbPolicy("0bda", exclude=True),))
    (step,) = plan_offline(host.places, config)
    told = "usb[0]: 1-3 (0bda:8153 LAN) is excluded by `usb` in arcsup.yaml"
    assert (step.verb, step.object, step.because) == ("wait", "a", told)
    assert [step.verb for step in plan_offline(host.places, Config())] == ["start"]
