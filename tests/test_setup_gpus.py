"""What doctor tells of GPUs: on trees of cards, each with one thing missing, and on captures."""

from collections.abc import Callable
from pathlib import Path

import pytest
from attrs import frozen

from arcsup.setup.doctor import CHECKS
from arcsup.setup.findings import Finding, Level
from arcsup.setup.host import Host
from tests.host_tree import create_host, write
from tests.trees import CAPTURES, GVTG_4, P4, Tree, TypeFiles, populate_listing

ADDRESS = "0000:01:00.0"

BY_ID = {check.id: check for group in CHECKS.values() for check in group}

GVTG_TYPES = (TypeFiles("i915-GVTg_V5_4", "GVTg_V5_4", GVTG_4, "1"),)

MIG = (TypeFiles("nvidia-474", "A100-1-5C", "framebuffer=4864M, max_instance=7", "7"),)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return create_host(tmp_path)


@pytest.fixture
def tree(host: Host) -> Tree:
    return Tree(host.sysfs)


def find(check: str, host: Host) -> list[Finding]:
    return list(BY_ID[check].run(host))


def load(host: Host, module: str, **parameters: str) -> None:
    (host.sysfs / "module" / module).mkdir(parents=True, exist_ok=True)
    for name, value in parameters.items():
        write(host.sysfs, f"module/{module}/parameters/{name}", f"{value}\n")


@frozen
class CardCase:
    """A card: ids and driver, what else there is, what it can do, and what is missing."""

    name: str
    ids: str
    driver: str | None
    can: str
    missing: str
    do: str
    prepare: Callable[[Host, Tree, str], None] = lambda _host, _tree, _path: None
    group: int | None = 7
    files: tuple[tuple[str, str], ...] = ()


def vgpu_manager(host: Host, _tree: Tree, _path: str) -> None:
    load(host, "nvidia_vgpu_vfio")


def used_up(host: Host, tree: Tree, path: str) -> None:
    load(host, "nvidia_vgpu_vfio")
    tree.populate_types(path, [TypeFiles("nvidia-63", "GRID P4-1Q", None, "0")])


def gvtg_off(host: Host, _tree: Tree, _path: str) -> None:
    load(host, "i915", enable_gvt="N")


def gvtg_without_kvmgt(host: Host, _tree: Tree, _path: str) -> None:
    load(host, "i915", enable_gvt="Y")


def gvtg_without_types(host: Host, _tree: Tree, _path: str) -> None:
    load(host, "i915", enable_gvt="Y")
    load(host, "kvmgt")


def shared_group(_host: Host, tree: Tree, _path: str) -> None:
    tree.populate_pci("0000:02:00.0", pci_class="0x020000", driver="e1000e", group=7)


def totals(number: int) -> tuple[tuple[str, str], ...]:
    return (("sriov_totalvfs", f"{number}\n"),)


CASES = [
    CardCase("nouveau", "10de:1bb3", "nouveau", "passthrough", "nouveau", "/var/lib/arcsup/vendor"),
    CardCase("desktop", "10de:1bb3", "nvidia", "passthrough", "vGPU host driver", "vendor"),
    CardCase(
        "no-vfs", "10de:26b9", "nvidia", "passthrough", "virtual functions are not enabled",
        f"sriov-manage -e {ADDRESS}", vgpu_manager, files=totals(32),
    ),
    CardCase(
        "no-types", "10de:1bb3", "nvidia", "passthrough", "no vGPU types",
        "restart nvidia-vgpud", vgpu_manager,
    ),
    CardCase(
        "all-zero", "10de:1bb3", "nvidia", "mdev, passthrough", "none of its vGPU types",
        f"nvidia-smi -q -i {ADDRESS}", used_up,
    ),
    CardCase(
        "gvt-off", "8086:5917", "i915", "passthrough", "enable_gvt", "--gpu-sharing gvt-g", gvtg_off
    ),
    CardCase(
        "no-kvmgt", "8086:3e92", "i915", "passthrough", "kvmgt", "modprobe kvmgt",
        gvtg_without_kvmgt,
    ),
    CardCase(
        "guc", "8086:9bc5", "i915", "passthrough", "no types", "enable_guc=0", gvtg_without_types
    ),
    CardCase(
        "i915", "8086:46a6", "i915", "SR-IOV (0 of 7", "cannot make virtual functions", "xe",
        files=totals(7),
    ),
    CardCase(
        "xe", "8086:e20b", "xe", "SR-IOV (0 of 12 functions enabled), passthrough",
        "none of its 12 virtual functions", f"{{match: '{ADDRESS}', vfs: 12}}", files=totals(12),
    ),
    CardCase(
        "amdgpu", "1002:74a1", "amdgpu", "SR-IOV (0 of 8", "no virtual functions", "GIM",
        files=totals(8),
    ),
    CardCase(
        "no-iommu", "1002:73bf", "amdgpu", "nothing for VMs", "no IOMMU group", "arcsup setup",
        group=None,
    ),
    CardCase(
        "group", "1002:73bf", "amdgpu", "nothing for VMs", "shares IOMMU group 7", "another slot",
        shared_group,
    ),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_each_card_is_told_with_what_it_can_do_and_the_one_thing_that_is_missing(
    case: CardCase, host: Host, tree: Tree
) -> None:
    path = tree.populate_pci(
        ADDRESS, ids=case.ids, driver=case.driver, group=case.group, files=dict(case.files)
    )
    case.prepare(host, tree, path)

    able, missing = find("gpus", host)

    assert case.can in able.what
    assert case.missing in missing.what
    assert case.do in missing.do
    assert missing.why
    # A card that does something already is no fault of the host.
    assert missing.level is (Level.INFO if able.level is Level.OK else Level.WARNING)


GOOD: list[tuple[str, str, str, str, Callable[[Tree, str], object]]] = [
    ("gvt-g", "8086:5917", "i915", "GVT-g (mdev)", lambda t, p: t.populate_types(p, GVTG_TYPES)),
    ("mdev", "10de:1bb3", "nvidia", "mdev, passthrough", lambda t, p: t.populate_types(p, P4)),
    ("mig", "10de:20b0", "nvidia", "MIG-backed vGPUs", lambda t, p: t.populate_types(p, MIG)),
    ("vendor", "10de:26b9", "nvidia", "vendor VFIO", lambda t, p: add_vendor_vf(t, p)),
    ("sriov", "8086:e20b", "xe", "SR-IOV (1 of 1", lambda t, p: add_vf(t, p)),
]


def add_vf(tree: Tree, path: str) -> str:
    tree.write(f"{path}/sriov_totalvfs", "1\n")
    return tree.populate_vfs(path, ["0000:01:00.1"], driver="vfio-pci", first_group=8)[0]


def add_vendor_vf(tree: Tree, path: str) -> None:
    tree.write(f"{path}/sriov_totalvfs", "1\n")
    tree.populate_vendor(tree.populate_vfs(path, ["0000:01:00.4"], driver="nvidia")[0])


@pytest.mark.parametrize(
    ("ids", "driver", "can", "prepare"), [case[1:] for case in GOOD], ids=[case[0] for case in GOOD]
)
def test_a_card_that_has_all_it_needs_is_told_in_one_line(
    ids: str,
    driver: str,
    can: str,
    prepare: Callable[[Tree, str], object],
    host: Host,
    tree: Tree,
) -> None:
    prepare(tree, tree.populate_pci(ADDRESS, ids=ids, driver=driver, group=7))

    [found] = find("gpus", host)

    assert found.level is Level.OK
    assert can in found.what


def test_a_card_that_draws_the_hosts_screen_is_for_virgl_only(host: Host, tree: Tree) -> None:
    files = {"boot_vga": "1\n", "drm/renderD128/dev": "226:128\n"}
    tree.populate_pci(ADDRESS, ids="1002:73bf", driver="amdgpu", group=7, files=files)
    write(host.root, "/dev/dri/renderD128")

    [found] = find("gpus", host)

    assert (found.level, "VirGL only" in found.what) == (Level.INFO, True)


def test_the_screen_of_a_servers_controller_is_nothing_for_vms(host: Host, tree: Tree) -> None:
    tree.populate_pci(ADDRESS, ids="1a03:2000", driver="ast", group=7)

    found = find("gpus", host)

    assert "nothing for VMs as it is" in found[0].what
    assert "no GPU" in found[0].why


def test_a_host_without_gpus_is_told_so(host: Host) -> None:
    [found] = find("gpus", host)

    assert (found.level, "no GPU" in found.what) == (Level.INFO, True)


@pytest.mark.skipif(not CAPTURES.is_dir(), reason="the captures are not beside the checkout")
@pytest.mark.parametrize(
    ("capture", "can"),
    [("G01-gvtg-v5-uhd620-6.14.txt", "mdev"), ("N01-rtxa6000-525-one-2Q.txt", "mdev")],
)
def test_cards_of_captured_hosts_are_told(capture: str, can: str, host: Host, tree: Tree) -> None:
    parents = populate_listing(tree, (CAPTURES / capture).read_text())

    found = find("gpus", host)

    for parent in parents:
        [line] = [finding.what for finding in found if finding.what.startswith(parent)][:1]
        assert can in line


def test_device_files_are_to_be_opened_by_the_daemons_user(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find("device-files", host)[0].level is Level.INFO
    files = [write(host.root, "/dev/vfio/vfio"), write(host.root, "/dev/dri/renderD128")]
    assert [finding.level for finding in find("device-files", host)] == [Level.OK, Level.OK]

    # Root may open what nobody may: the answer is given by somebody else.
    monkeypatch.setattr("os.access", lambda file, _mode: file not in files)

    told = find("device-files", host)
    assert [finding.level for finding in told] == [Level.WARNING, Level.WARNING]
    assert ["chmod 0666 /dev/vfio/vfio" in told[0].do, "render" in told[1].do] == [True, True]


def test_the_services_of_the_vgpu_host_driver_are_to_run(host: Host) -> None:
    assert [finding.level for finding in find("nvidia-services", host)] == [Level.OK]
    load(host, "nvidia_vgpu_vfio")
    assert all("not installed" in finding.what for finding in find("nvidia-services", host))
    for name in ("nvidia-vgpud", "nvidia-vgpu-mgr"):
        write(host.root, f"/usr/lib/systemd/system/{name}.service")

    told = find("nvidia-services", host)
    assert [finding.level for finding in told] == [Level.WARNING, Level.WARNING]
    assert "systemctl enable --now nvidia-vgpu-mgr" in told[1].do

    write(host.root, "/proc/88/comm", "nvidia-vgpu-mgr\n")
    tree = Tree(host.sysfs)
    tree.populate_types(tree.populate_pci(ADDRESS, driver="nvidia"), P4)
    assert [finding.level for finding in find("nvidia-services", host)] == [Level.OK, Level.OK]


def test_nouveau_is_told_by_whether_another_driver_is_to_have_its_cards(
    host: Host, tree: Tree
) -> None:
    assert find("nouveau", host)[0].level is Level.OK
    path = tree.populate_pci(ADDRESS, driver="nouveau")
    tree.link(f"bus/pci/drivers/nouveau/{ADDRESS}", path)
    assert find("nouveau", host)[0].level is Level.INFO

    load(host, "nvidia")

    [told] = find("nouveau", host)
    assert (told.level, ADDRESS in told.what) == (Level.WARNING, True)


SMI = """00000000:01:00.0, Enabled, Disabled
00000000:41:00.0, [N/A], Enabled
"""

LICENCES = """    vGPU ID                   : 3251634213
        License Status            : Licensed (Expiry: 2027-1-1 0:0:0 GMT)
    vGPU ID                   : 3251634214
        License Status            : Unlicensed (Restricted)
"""


def test_ecc_mig_and_licences_are_what_nvidia_smi_says(
    host: Host, tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find("nvidia-states", host)[0].level is Level.OK
    path = tree.populate_pci(ADDRESS, driver="nvidia")
    tree.link(f"bus/pci/drivers/nvidia/{ADDRESS}", path)
    write(host.root, "/usr/bin/nvidia-smi", mode=0o755)
    answers = {"--query-gpu": SMI, "vgpu": LICENCES}
    monkeypatch.setattr(
        "arcsup.setup.checks.nvidia.ask_command",
        lambda _host, argv, _patience: answers.get(argv[1].partition("=")[0]),
    )

    told = find("nvidia-states", host)

    assert [finding.what for finding in told if finding.level is Level.OK] == [
        "00000000:01:00.0: ECC Enabled, MIG Disabled",
        "00000000:41:00.0: ECC [N/A], MIG Enabled",
    ]
    assert "00000000:41:00.0 is in MIG mode" in [finding.what for finding in told]
    assert told[-1].what == "1 of 2 vGPUs: Unlicensed (Restricted)"
    answers.clear()
    assert "does not answer" in find("nvidia-states", host)[0].what


def test_vms_of_other_managers_that_ask_for_devices_are_listed(host: Host) -> None:
    write(host.root, "/etc/libvirt/qemu/win.xml", "<domain><hostdev mode='subsystem'/></domain>")
    write(host.root, "/etc/libvirt/qemu/web.xml", "<domain/>")
    write(host.root, "/usr/bin/pvesh")
    write(host.root, "/etc/pve/qemu-server/101.conf", "cores: 4\nhostpci0: 0000:01:00.0\n")

    assert "devices of the host: win" in find("libvirt", host)[-1].what
    assert "devices of the host: 101" in find("proxmox", host)[-1].what


@pytest.mark.parametrize(("methods", "level"), [("flr bus\n", Level.OK), ("\n", Level.WARNING)])
def test_a_card_that_the_kernel_cannot_reset_is_warned_of(
    methods: str, level: Level, host: Host, tree: Tree
) -> None:
    files = {"reset_method": methods}
    tree.populate_pci(ADDRESS, ids="1002:73bf", driver="amdgpu", group=7, files=files)
    found = find("gpus", host)
    assert {it.level for it in found} == {Level.OK, level}
    assert any("passthrough" in it.what for it in found), "it is no refusal"
    told = [it for it in found if f"no reset_method for {ADDRESS}: unless" in it.what]
    assert [it.level for it in told] == ([level] if level is Level.WARNING else [])


def test_cards_that_go_only_together_are_told_so_and_are_no_dead_end(
    host: Host, tree: Tree
) -> None:
    pair = ("0000:43:00.0", "0000:44:00.0")
    for address in pair:
        tree.populate_pci(address, ids="1002:73bf", driver="amdgpu", group=7)
    found = [f"{it.level}: {it.what} {it.do}" for it in find("gpus", host)]
    for address, other in (pair, pair[::-1]):
        assert any(f"passthrough together with {other}" in it for it in found)
        hint = "let one VM ask for all of them, or put the card into another slot"
        assert f"info: {address}: it shares IOMMU group 7 with {other} {hint}" in found
