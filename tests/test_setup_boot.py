"""The kernel's command line: by each boot loader's own means, and only where it helps."""

import shutil
from pathlib import Path

import pytest

from arcsup.setup.actions import CreateFile, ReplaceFile, RunCommand
from arcsup.setup.boot import LOADER_INFO, REBOOT, plan_parameters
from arcsup.setup.host import Host
from arcsup.setup.iommu import INTEL_PARAMETERS, find_parameters
from tests.host_programs import add_grub, add_program, add_systemd_boot
from tests.host_tree import RELEASE, create_host, host_of, write

WORDS = " ".join(INTEL_PARAMETERS)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    create_host(tmp_path)
    shutil.rmtree(tmp_path / "sys/kernel/iommu_groups")
    write(tmp_path, "proc/cmdline", "BOOT_IMAGE=/vmlinuz root=/dev/sda1 initrd=/initrd quiet\n")
    return host_of(tmp_path)


def test_an_iommu_that_is_off_but_there_is_asked_for(host: Host) -> None:
    assert find_parameters(host) == INTEL_PARAMETERS


def test_an_iommu_that_is_on_needs_no_parameters(host: Host) -> None:
    (host.root / "sys/kernel/iommu_groups/0").mkdir(parents=True)

    assert find_parameters(host) == ()
    assert plan_parameters(host, ()).actions == ()


@pytest.mark.parametrize("table", ["IVRS", ""])
def test_where_parameters_would_not_help_none_are_added(table: str, host: Host) -> None:
    tables = host.root / "sys/firmware/acpi/tables"
    (tables / "DMAR").unlink()
    if table:
        write(tables, table)

    assert find_parameters(host) == ()


def test_a_kernel_that_was_asked_already_is_not_asked_again(host: Host) -> None:
    write(host.root, "proc/cmdline", "intel_iommu=on\n")

    assert find_parameters(host_of(host.root)) == ()


def test_grub_gets_a_drop_in_that_adds_to_what_is_there(host: Host) -> None:
    add_grub(host.root)

    plan = plan_parameters(host, INTEL_PARAMETERS)

    [file] = [action for action in plan.actions if isinstance(action, CreateFile)]
    assert file.path == str(host.root / "etc/default/grub.d/arcsup.cfg")
    line = f'GRUB_CMDLINE_LINUX_DEFAULT="$GRUB_CMDLINE_LINUX_DEFAULT {WORDS}"'
    assert file.content.splitlines()[1] == line
    assert file.then == (("update-grub",),)
    assert plan.notes == (REBOOT,)


def test_a_drop_in_that_is_there_waits_for_the_reboot(host: Host) -> None:
    add_grub(host.root)
    write(host.root, "etc/default/grub.d/arcsup.cfg")

    plan = plan_parameters(host, INTEL_PARAMETERS)

    assert (plan.actions, plan.notes) == ((), (REBOOT,))


def test_a_grub_that_reads_no_drop_ins_is_left_to_the_user(host: Host) -> None:
    add_grub(host.root)
    write(host.root, "usr/bin/grub-mkconfig", ". ${sysconfdir}/default/grub\n", 0o755)

    plan = plan_parameters(host, INTEL_PARAMETERS)

    assert plan.actions == ()
    assert plan.notes == (f"add to the kernel's command line and reboot: {WORDS}",)


def test_the_command_line_of_kernel_install_is_added_to(host: Host) -> None:
    add_systemd_boot(host.root, RELEASE, "root=/dev/sda1 iommu=pt")

    plan = plan_parameters(host, INTEL_PARAMETERS)

    [edit] = [action for action in plan.actions if isinstance(action, ReplaceFile)]
    assert edit.after == "root=/dev/sda1 iommu=pt intel_iommu=on\n"
    assert edit.then == (("kernel-install", "add", RELEASE, f"/boot/vmlinuz-{RELEASE}"),)


def test_without_that_file_the_running_command_line_is_the_base(host: Host) -> None:
    add_systemd_boot(host.root, RELEASE)

    plan = plan_parameters(host, INTEL_PARAMETERS)

    [file] = [action for action in plan.actions if isinstance(action, CreateFile)]
    assert file.content == f"root=/dev/sda1 quiet {WORDS}\n"


def test_a_command_line_that_is_changed_already_waits_for_the_reboot(host: Host) -> None:
    add_systemd_boot(host.root, RELEASE, f"root=/dev/sda1 {WORDS}")

    assert plan_parameters(host, INTEL_PARAMETERS).actions == ()


def add_loader(root: Path, name: str) -> None:
    """Have the firmware know which boot loader has started the host."""
    file = write(root, f"sys/{LOADER_INFO}")
    file.write_bytes(b"\x06\x00\x00\x00" + f"{name}\0".encode("utf-16-le"))


def test_beside_a_grub_that_did_not_start_the_host_systemd_boot_gets_the_parameters(
    host: Host,
) -> None:
    add_grub(host.root)
    add_systemd_boot(host.root, RELEASE, "root=/dev/sda1")
    add_loader(host.root, "systemd-boot 252.39-1~deb12u1")

    [edit] = plan_parameters(host, INTEL_PARAMETERS).actions

    assert isinstance(edit, ReplaceFile)
    assert edit.path.endswith("/etc/kernel/cmdline")


def test_beside_a_systemd_boot_that_did_not_start_the_host_grub_gets_the_parameters(
    host: Host,
) -> None:
    add_grub(host.root)
    add_systemd_boot(host.root, RELEASE, "root=/dev/sda1")
    add_loader(host.root, "GRUB 2.12")

    [*_, file] = plan_parameters(host, INTEL_PARAMETERS).actions

    assert isinstance(file, CreateFile)
    assert file.path.endswith("/etc/default/grub.d/arcsup.cfg")


def add_proxmox(root: Path) -> None:
    add_program(root, "proxmox-boot-tool", "")
    write(root, "etc/kernel/proxmox-boot-uuids", "ABCD-1234\n")


def test_on_proxmox_the_boot_loader_that_started_the_host_gets_the_parameters(host: Host) -> None:
    add_grub(host.root)
    add_proxmox(host.root)
    [*_, file] = plan_parameters(host, INTEL_PARAMETERS).actions
    assert isinstance(file, CreateFile)
    assert file.path.endswith("/etc/default/grub.d/arcsup.cfg")
    # What update-grub writes is not on the partitions that Proxmox boots from.
    assert file.then == (("proxmox-boot-tool", "refresh"),)
    add_loader(host.root, "systemd-boot 257")

    [*_, file] = plan_parameters(host, INTEL_PARAMETERS).actions

    assert isinstance(file, CreateFile)
    assert file.path.endswith("/etc/kernel/cmdline")
    assert file.then == (("proxmox-boot-tool", "refresh"),)


def test_proxmox_refreshes_with_its_own_tool(host: Host) -> None:
    add_systemd_boot(host.root, RELEASE, "root=ZFS=rpool")
    add_proxmox(host.root)

    plan = plan_parameters(host, INTEL_PARAMETERS)

    [edit] = [action for action in plan.actions if isinstance(action, ReplaceFile)]
    assert edit.then == (("proxmox-boot-tool", "refresh"),)


def test_without_a_way_to_refresh_the_line_is_told(host: Host) -> None:
    write(host.root, "etc/kernel/cmdline", "root=/dev/sda1\n")

    [note] = plan_parameters(host, INTEL_PARAMETERS).notes

    assert f"make the line read root=/dev/sda1 {WORDS}" in note


EDITORS = [
    (
        "grubby",
        "--update-kernel=ALL --args=",
        "--update-kernel=ALL --remove-args=",
        "etc/default/grub",
    ),
    ("kernelstub", "--add-options ", "--delete-options ", "etc/kernelstub/configuration"),
]


@pytest.mark.parametrize(("program", "add", "remove", "file"), EDITORS)
def test_a_program_that_changes_entries_is_run_and_can_take_the_change_back(
    program: str, add: str, remove: str, file: str, host: Host
) -> None:
    add_program(host.root, program, "")
    add_grub(host.root)

    plan = plan_parameters(host, INTEL_PARAMETERS)

    [change] = plan.actions
    assert isinstance(change, RunCommand)
    assert " ".join(change.apply) == f"{program} {add}{WORDS}"
    assert " ".join(change.undo) == f"{program} {remove}{WORDS}"
    assert plan.notes == (REBOOT,)


@pytest.mark.parametrize(("program", "add", "remove", "file"), EDITORS)
def test_what_entries_have_already_is_neither_added_nor_taken_back(
    program: str, add: str, remove: str, file: str, host: Host
) -> None:
    add_program(host.root, program, "")
    write(host.root, file, '"kernel_options": ["quiet", "intel_iommu=on"]\n')

    [change] = plan_parameters(host, INTEL_PARAMETERS).actions

    assert isinstance(change, RunCommand)
    assert " ".join(change.apply) == f"{program} {add}iommu=pt"
    assert " ".join(change.undo) == f"{program} {remove}iommu=pt"
    write(host.root, file, '"kernel_options": ["iommu=pt", "intel_iommu=on"]\n')
    again = plan_parameters(host, INTEL_PARAMETERS)
    assert (again.actions, again.notes) == ((), (REBOOT,))
