"""Every check of doctor: on a host where it is well, and on one where it is not."""

import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from attrs import evolve

from arcsup.host.scopes import SYSTEM_BUS, find_user_bus
from arcsup.setup.checks import confinement, cpu, kernel, places, qemu
from arcsup.setup.doctor import CHECKS, examine
from arcsup.setup.findings import Check, Finding, Level, ok
from arcsup.setup.host import Host
from tests.host_tree import AMD, RELEASE, create_host, host_of, read_tree, write

LEVELS = [Level.OK, Level.INFO, Level.WARNING, Level.ERROR]

BY_ID = {check.id: check for group in CHECKS.values() for check in group}

FAKE_QEMU = r"""#!/bin/sh
case "$1" in
-help) echo 'QEMU emulator version VERSION'; echo '-netdev user,id=str' ;;
-device) echo 'name "vfio-pci", bus PCI'; echo 'name "virtio-vga-gl", bus PCI' ;;
-object) echo iommufd ;;
-display) echo gtk ;;
-audiodev) echo spice ;;
esac
"""


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return create_host(tmp_path)


def find(check: str, host: Host) -> list[Finding]:
    return list(BY_ID[check].run(host))


def worst(findings: list[Finding]) -> Level:
    return max((finding.level for finding in findings), key=LEVELS.index)


def add_qemu(host: Host, version: str = "9.1.0") -> None:
    write(host.root, "usr/bin/qemu-system-x86_64", FAKE_QEMU.replace("VERSION", version), 0o755)


def add_firmware(host: Host, name: str, features: str) -> None:
    files = [write(host.root, f"usr/share/OVMF/{name}_{part}.fd") for part in ("CODE", "VARS")]
    descriptor = f"""{{
        "interface-types": ["uefi"],
        "mapping": {{"device": "flash", "executable": {{"filename": "{files[0]}", "format": "raw"}},
            "nvram-template": {{"filename": "{files[1]}", "format": "raw"}}}},
        "targets": [{{"architecture": "x86_64", "machines": ["pc-q35-*"]}}],
        "features": [{features}]
    }}"""
    write(host.root, f"usr/share/qemu/firmware/{name}.json", descriptor)


def add_all_firmware(host: Host) -> None:
    add_firmware(host, "plain", "")
    add_firmware(host, "secure", '"secure-boot", "enrolled-keys"')


def add_virtiofsd(host: Host) -> None:
    script = "#!/bin/sh\necho --fd --shared-dir --readonly --uid-map\n"
    write(host.root, "usr/libexec/virtiofsd", script, 0o755)


def add_vm(host: Host, text: str, name: str = "web") -> None:
    write(host.root, f"etc/arcsup/vms/{name}.yaml", text)


def add_bridge(host: Host, rule: str = "allow br0") -> None:
    add_vm(host, "networks: [{type: bridge, bridge: br0}]\n")
    write(host.root, "etc/qemu/bridge.conf", rule)
    write(host.root, "usr/lib/qemu/qemu-bridge-helper", mode=0o4755)


def add_bus(host: Host) -> None:
    """Add a systemd with the bus of the system, or of the user that these tests run as."""
    write(host.root, "run/systemd/system/x")
    address = SYSTEM_BUS if host.uid == 0 else find_user_bus()
    write(host.root, address.removeprefix("unix:path=/").partition(",")[0])


def add_control_groups(host: Host) -> None:
    add_bus(host)
    write(host.root, "sys/fs/cgroup/cgroup.controllers", "cpu memory pids\n")


def remove(path: str) -> Callable[[Host], None]:
    def spoil(host: Host) -> None:
        file = host.path(path)
        if file.is_dir():
            shutil.rmtree(file)
        else:
            file.unlink()

    return spoil


def put(path: str, text: str) -> Callable[[Host], None]:
    return lambda host: void(write(host.root, path, text))


def void(_: object) -> None:
    return None


def fine(host: Host) -> None:
    """Leave the host as it is."""


GOOD: list[tuple[str, Callable[[Host], None]]] = [
    ("cpu-flags", fine),
    ("cpu-flags", put("/proc/cpuinfo", AMD)),
    ("kvm-device", fine),
    ("iommu", fine),
    ("interrupt-remapping", fine),
    ("command-line", fine),
    ("modules", fine),
    ("iommufd", fine),
    ("hugepages", fine),
    ("memlock", fine),
    ("qemu", add_qemu),
    ("firmware", add_all_firmware),
    ("swtpm", lambda host: void(write(host.root, "usr/bin/swtpm", mode=0o755))),
    ("virtiofsd", add_virtiofsd),
    ("places", fine),
    ("configuration", fine),
    ("configuration", put("/etc/arcsup/arcsup.yaml", "resync: 10s\n")),
    ("vm-files", lambda host: add_vm(host, "memory: 256MiB\n")),
    ("escape-hatch", lambda host: add_vm(host, "memory: 256MiB\n")),
    ("bridges", fine),
    ("bridges", add_bridge),
    ("libvirt", fine),
    ("mdevctl", fine),
    ("proxmox", fine),
    ("control-groups", add_control_groups),
    ("control-groups", put("/sys/fs/cgroup/cgroup.controllers", "memory pids\n")),
    ("private-tmp", fine),
]


@pytest.mark.parametrize(("check", "prepare"), GOOD, ids=[check for check, _ in GOOD])
def test_what_is_well_is_ok(check: str, prepare: Callable[[Host], None], host: Host) -> None:
    prepare(host)

    found = find(check, host)

    # A user who is not root can run no virtiofsd where user namespaces are forbidden.
    shown = [finding for finding in found if finding.level is not Level.INFO]
    assert {finding.level for finding in shown} <= {Level.OK}
    assert found


BAD: list[tuple[str, Callable[[Host], None], Level, str]] = [
    ("cpu-flags", put("/proc/cpuinfo", "flags\t: fpu\n"), Level.ERROR, "firmware"),
    ("cpu-flags", put("/proc/cpuinfo", "flags\t: hypervisor\n"), Level.WARNING, "nested"),
    ("kvm-device", remove("/dev/kvm"), Level.ERROR, "modprobe kvm_intel"),
    ("iommu", remove("/sys/kernel/iommu_groups"), Level.WARNING, "dmesg"),
    ("command-line", put("/proc/cmdline", "pcie_acs_override=downstream"), Level.WARNING, "slots"),
    ("command-line", put("/proc/cmdline", "ro nomodule"), Level.WARNING, "nomodule"),
    ("modules", remove("/sys/module/mdev"), Level.INFO, "modprobe mdev"),
    ("iommufd", remove("/dev/iommu"), Level.INFO, "CONFIG_IOMMUFD"),
    ("iommufd", put("/proc/devices", "236 vfio\n"), Level.INFO, "modprobe vfio"),
    ("hugepages", remove("/sys/kernel/mm/hugepages"), Level.INFO, "sysctl"),
    ("qemu", fine, Level.ERROR, "install QEMU"),
    ("qemu", lambda host: add_qemu(host, "6.2.0"), Level.WARNING, "later"),
    ("qemu", put("/usr/bin/qemu-system-x86_64", ""), Level.ERROR, "install QEMU"),
    ("firmware", fine, Level.WARNING, "ovmf"),
    ("firmware", lambda host: add_firmware(host, "plain", ""), Level.WARNING, "ovmf"),
    ("swtpm", fine, Level.WARNING, "swtpm"),
    ("virtiofsd", fine, Level.INFO, "virtiofsd"),
    ("places", remove("/etc/arcsup/vms"), Level.WARNING, "arcsup setup"),
    ("places", remove("/run/arcsup"), Level.INFO, ""),
    ("places", lambda host: host.places.vms.chmod(0o777), Level.ERROR, "chmod go-w"),
    ("configuration", put("/etc/arcsup/arcsup.yaml", "resink: 1\n"), Level.ERROR, "correct"),
    ("vm-files", lambda host: add_vm(host, "memory: lots\n"), Level.ERROR, "correct the file"),
    ("vm-files", remove("/etc/arcsup/vms"), Level.INFO, ""),
    ("bridges", lambda host: add_bridge(host, "allow br1"), Level.ERROR, '"allow br0"'),
    ("daemon", fine, Level.WARNING, "arcsup daemon"),
    ("control-groups", put("/run/systemd/system/x", ""), Level.WARNING, "install dbus"),
    ("control-groups", add_bus, Level.WARNING, "systemd.unified_cgroup_hierarchy=1"),
    ("libvirt", put("/proc/77/comm", "virtqemud\n"), Level.WARNING, "exclude"),
    ("proxmox", put("/usr/bin/pvesh", ""), Level.WARNING, "mappings"),
    (
        "mdevctl",
        put("/etc/mdevctl.d/0000:00:02.0/1f47e1c4", '{"mdev_type": "x", "start": "auto"}'),
        Level.WARNING,
        "--manual",
    ),
]


@pytest.mark.parametrize(
    ("check", "spoil", "level", "do"), BAD, ids=[f"{check}-{do}" for check, _, _, do in BAD]
)
def test_what_is_not_well_is_told_with_what_to_do(
    check: str, spoil: Callable[[Host], None], level: Level, do: str, host: Host
) -> None:
    spoil(host)

    found = find(check, host)

    assert worst(found) is level
    told = [finding for finding in found if finding.level is level]
    assert any(do in finding.do for finding in told)
    assert all(finding.why for finding in told)


GPUS = {"gpus", "gpu-entries", "device-files", "nvidia-services", "nouveau", "nvidia-states"}
"""Those of test_setup_gpus.py and test_plan_entries.py."""


def test_every_check_has_a_good_and_a_bad_host_here() -> None:
    elsewhere = {"kvm-guest", "space", "interrupt-remapping", "memlock", "escape-hatch"}
    elsewhere |= {"private-tmp", "loopback"}
    well = {check for check, _ in GOOD} | {"kvm-guest", "space", "daemon", "loopback"}
    assert well == set(BY_ID) - GPUS
    assert {check for check, _, _, _ in BAD} | elsewhere == set(BY_ID) - GPUS


def test_an_iommu_that_the_command_line_turned_off_is_told_as_such(host: Host) -> None:
    remove("/sys/kernel/iommu_groups")(host)
    write(host.root, "/proc/cmdline", "quiet intel_iommu=off")

    assert "intel_iommu=off" in find("iommu", host_of(host.root))[0].do


def test_an_iommu_that_waits_to_be_asked_for_is_what_setup_does(host: Host) -> None:
    remove("/sys/kernel/iommu_groups")(host)
    write(host.root, "/proc/cmdline", "quiet")

    assert "adds intel_iommu=on iommu=pt" in find("iommu", host_of(host.root))[0].do


def test_groups_of_emulated_devices_are_no_iommu(host: Host) -> None:
    for group in range(3):
        write(host.root, f"/sys/kernel/iommu_groups/{group}/name", "vfio-noiommu\n")

    assert worst(find("iommu", host)) is Level.WARNING


def test_interrupts_that_are_not_remapped_are_told_by_what_vfio_does(host: Host) -> None:
    write(host.root, "/proc/interrupts", "  9:  0  IO-APIC  9-fasteoi  acpi\n")
    assert "refuses" in find("interrupt-remapping", host)[0].why

    parameter = "/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts"
    write(host.root, parameter, "Y\n")
    assert "trust" in find("interrupt-remapping", host)[0].do


def test_a_user_who_may_lock_little_memory_is_warned(host: Host) -> None:
    user = Host(host.places, root=host.root, uid=1000, memlock=8 << 20)

    assert "8192 KiB" in find("memlock", user)[0].what
    assert worst(find("memlock", user)) is Level.WARNING


def test_guests_of_a_users_own_daemon_are_told_to_reach_the_loopback(host: Host) -> None:
    add_control_groups(host)
    user = Host(host.places, root=host.root, uid=1000)

    assert "only root" in find("loopback", user)[0].what
    assert worst(find("loopback", user)) is Level.WARNING


def test_guests_without_control_groups_are_told_to_reach_the_loopback(host: Host) -> None:
    system = Host(host.places, root=host.root, uid=0)

    assert "no control groups" in find("loopback", system)[0].what
    assert worst(find("loopback", system)) is Level.WARNING


def test_a_filter_that_the_kernel_refuses_is_told(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(confinement, "check_control_groups", lambda _: iter([ok("groups")]))
    monkeypatch.setattr("os.geteuid", lambda: 0)
    here = Host(host.places, uid=0)
    said = {}
    for obstacle in ("", "Operation not permitted"):
        monkeypatch.setattr(confinement, "find_obstacle_to_filter", lambda it=obstacle: it)
        [said[obstacle]] = find("loopback", here)

    assert said[""].level is Level.OK
    assert said["Operation not permitted"].level is Level.WARNING
    assert "Operation not permitted" in said["Operation not permitted"].what


def test_a_directory_of_somebody_else_is_an_error(host: Host) -> None:
    other = Host(host.places, root=host.root, uid=host.uid + 1)

    assert "belongs to user" in find("places", other)[0].what


def test_vms_that_use_the_escape_hatch_are_listed(host: Host) -> None:
    add_vm(host, "qemu: {args: [-device, edu], binary: /opt/qemu}\n")

    found = find("escape-hatch", host)

    assert [finding.level for finding in found] == [Level.INFO, Level.INFO]
    assert "-device edu" in found[0].what
    assert "/opt/qemu" in found[1].what


def test_a_full_disk_is_an_error_before_guests_notice(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    for limit, level in ((0, Level.OK), (1 << 62, Level.ERROR)):
        monkeypatch.setattr(places, "NO_SPACE", limit)
        monkeypatch.setattr(places, "LITTLE_SPACE", limit)
        assert worst(find("space", host)) is level
    monkeypatch.setattr(places, "NO_SPACE", 0)
    assert worst(find("space", host)) is Level.WARNING


def test_modules_are_found_loaded_built_in_packed_or_not_at_all(host: Host) -> None:
    shutil.rmtree(host.root / "sys/module")

    assert kernel.find_module(host, "vfio_pci") is kernel.ModuleState.LOADABLE
    assert kernel.find_module(host, "vfio_iommu_type1") is kernel.ModuleState.LOADABLE
    assert kernel.find_module(host, "iommufd") is kernel.ModuleState.LOADED
    assert kernel.find_module(host, "kvmgt") is kernel.ModuleState.MISSING
    write(host.root, f"/lib/modules/{RELEASE}/modules.dep", "")
    assert worst(find("modules", host)) is Level.WARNING


def test_a_user_who_may_not_open_iommufd_is_told_that_groups_do(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Root may open what nobody may: the answer is given by somebody else.
    monkeypatch.setattr("os.access", lambda *_: False)

    [finding] = find("iommufd", host)

    assert (finding.level, finding.what) == (
        Level.INFO,
        "/dev/iommu cannot be opened by this user",
    )
    assert "IOMMU groups" in finding.why


@pytest.mark.parametrize(
    ("answers", "level"),
    [
        ({"kvm": ""}, Level.OK),
        ({"kvm": "it hung", "tcg": ""}, Level.ERROR),
        ({"kvm": "it hung", "tcg": "it hung"}, Level.WARNING),
    ],
)
def test_kvm_counts_when_a_guest_ran_under_it(
    answers: dict[str, str], level: Level, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def try_guest(_qemu: Path, accel: str, _boot: str) -> str:
        return answers[accel]

    monkeypatch.setattr(cpu, "try_guest", try_guest)
    add_qemu(host)

    assert worst(find("kvm-guest", host)) is level


def test_without_a_qemu_no_guest_is_tried(host: Host) -> None:
    assert worst(find("kvm-guest", host)) is Level.INFO


def test_a_socket_that_nobody_answers_at_is_no_daemon(short_dir: Path) -> None:
    host = create_host(short_dir / "host")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(host.places.socket))

        assert "no daemon" in find("daemon", host)[0].what


def test_a_check_that_fails_does_not_hide_the_others(host: Host) -> None:
    def fail(_host: Host) -> list[Finding]:
        raise PermissionError(13, "Permission denied", "/proc/secret")

    checks = (
        Check("a", "A", lambda host: iter(fail(host))),
        Check("b", "B", lambda _: iter([ok("b")])),
    )

    first, second = examine(host, {"All": checks})

    assert first.findings[0].level is Level.ERROR
    assert "/proc/secret" in first.findings[0].what
    assert second.findings == (ok("b"),)


def test_doctor_changes_nothing(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    async def try_guest(_qemu: Path, _accel: str, _boot: str) -> str:
        return ""

    monkeypatch.setattr(cpu, "try_guest", try_guest)
    add_qemu(host)
    add_virtiofsd(host)
    add_vm(host, "memory: 256MiB\n")
    before = read_tree(host.root)

    headings = [examined.heading for examined in examine(host)]

    assert set(headings) == set(CHECKS)
    assert read_tree(host.root) == before


def test_programs_of_another_root_are_not_those_of_this_host(host: Host) -> None:
    assert host.find_program("sh") is None
    assert evolve(host, root=Path("/")).find_program("sh") is not None
    assert qemu.find_host_qemu(host) is None
