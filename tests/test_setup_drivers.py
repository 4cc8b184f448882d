"""Drivers of GPUs: what setup keeps from being loaded, has loaded, installs and signs."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from arcsup.setup.actions import (
    Action,
    CreateFile,
    CreateUser,
    InstallPackages,
    ReplaceFile,
    RunCommand,
)
from arcsup.setup.carry_out import apply_all, journal_of, undo_all
from arcsup.setup.choices import Choices, GpuSharing
from arcsup.setup.host import Host
from arcsup.setup.plan import plan_setup
from arcsup.setup.steps import SetupPlan
from tests.host_programs import Recorder, add_program, add_programs, record
from tests.host_tree import MODULES_DEP, RELEASE, create_host, host_of, read_tree, write
from tests.trees import Tree

ADDRESS = "0000:01:00.0"
INSTALLER = "NVIDIA-Linux-x86_64-550.90.05-vgpu-kvm.run"
SECURE_BOOT = "firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"


@pytest.fixture
def recorder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    return record(tmp_path, monkeypatch)


@pytest.fixture
def host(tmp_path: Path, recorder: Recorder) -> Host:
    """A Debian whose IOMMU is on and whose packages are there, with all drivers of GPUs."""
    root = tmp_path / "host"
    create_host(root)
    add_programs(root)
    add_program(root, "update-initramfs", "")
    names = ("nouveau", "kvmgt", "amdgpu", "i915", "xe")
    lines = "".join(f"kernel/drivers/gpu/drm/{name}/{name}.ko:\n" for name in names)
    write(root, f"/lib/modules/{RELEASE}/modules.dep", MODULES_DEP + lines)
    return host_of(root)


def plan(host: Host, choices: Choices | None = None) -> SetupPlan:
    return plan_setup(host_of(host.root), Path("/usr/bin/arcsup"), choices)


def files(found: SetupPlan) -> dict[str, str]:
    """The drop-ins of a plan by name, without the line that says who made them."""
    actions = [action for action in found.actions if isinstance(action, CreateFile)]
    return {Path(action.path).name: action.content.partition("\n")[2] for action in actions}


def commands(actions: tuple[Action, ...]) -> list[str]:
    return [" ".join(action.apply) for action in actions if isinstance(action, RunCommand)]


def put_vendor(host: Host, name: str) -> Path:
    return write(host.root, f"var/lib/arcsup/vendor/{name}")


def load(host: Host, module: str, **parameters: str) -> None:
    (host.sysfs / "module" / module).mkdir(parents=True, exist_ok=True)
    for name, value in parameters.items():
        write(host.sysfs, f"module/{module}/parameters/{name}", f"{value}\n")


# --- nouveau and amdgpu --------------------------------------------------------------------------


def test_nouveau_is_left_alone_where_no_driver_of_nvidias_is_to_come(host: Host) -> None:
    load(host, "nouveau")

    assert "arcsup-nouveau.conf" not in files(plan(host))


def test_nouveau_gives_way_to_nvidias_driver_which_is_installed_after_the_reboot(
    host: Host, recorder: Recorder
) -> None:
    put_vendor(host, INSTALLER)
    load(host, "nouveau")

    first = plan(host)

    assert files(first)["arcsup-nouveau.conf"].startswith("blacklist nouveau\n")
    assert f"after the reboot, setup installs {INSTALLER}" in first.notes
    assert "systemctl enable arcsup-setup.service" in commands(first.actions)
    apply_all(host, journal_of(host), first.actions, lambda _: None)
    assert recorder.calls("update-initramfs") == ["update-initramfs -u -k all"]
    # The next boot: nouveau is not there.
    (host.sysfs / "module/nouveau").rmdir()
    assert commands(plan(host).actions) == [
        f"sh /var/lib/arcsup/vendor/{INSTALLER} --silent --dkms"
    ]


def test_nouveau_stays_while_it_draws_the_hosts_screen(host: Host) -> None:
    put_vendor(host, INSTALLER)
    load(host, "nouveau")
    screen = {
        "drm/card0/card0-DP-1/status": "connected\n",
        "drm/card0/card0-DP-1/enabled": "enabled",
    }
    Tree(host.sysfs).populate_pci(ADDRESS, driver="nouveau", files=screen)

    found = plan(host)

    assert "arcsup-nouveau.conf" not in files(found)
    assert any("nouveau stays" in note and ADDRESS in note for note in found.notes)


def test_amdgpu_gives_way_where_gim_is_installed(host: Host) -> None:
    modules = host.root / f"lib/modules/{RELEASE}/modules.dep"
    modules.write_text(modules.read_text() + "updates/dkms/gim.ko:\n")

    found = files(plan(host))

    assert found["arcsup-amdgpu.conf"] == "blacklist amdgpu\n"
    assert "gim" in found["arcsup.conf"].split()


# --- Intel ---------------------------------------------------------------------------------------


def test_gvt_g_is_switched_on_where_the_user_wants_it_and_the_card_has_it(host: Host) -> None:
    Tree(host.sysfs).populate_pci(ADDRESS, ids="8086:5917", driver="i915")
    load(host, "i915", enable_gvt="N")
    assert "arcsup-i915.conf" not in files(plan(host))
    choices = Choices(GpuSharing.GVT_G)

    found = plan(host, choices)

    assert files(found)["arcsup-i915.conf"] == "options i915 enable_gvt=1 enable_guc=0\n"
    assert "kvmgt" in files(found)["arcsup.conf"].split()
    assert found.reboot
    load(host, "i915", enable_gvt="Y")
    assert "arcsup-i915.conf" not in files(plan(host, choices))


def test_a_module_that_is_wanted_later_is_added_to_those_of_the_first_time(host: Host) -> None:
    before = read_tree(host.root)
    Tree(host.sysfs).populate_pci(ADDRESS, ids="8086:5917", driver="i915")
    apply_all(host, journal_of(host), plan(host).actions, lambda _: None)
    choices = Choices(GpuSharing.GVT_G)

    found = plan(host, choices)

    [change] = [action for action in found.actions if isinstance(action, ReplaceFile)]
    assert change.path.endswith("/modules-load.d/arcsup.conf")
    assert change.after == f"{change.before}kvmgt\n"
    assert "modules are loaded at the next boot; now: modprobe -a kvmgt" in found.notes
    apply_all(host, journal_of(host), found.actions, lambda _: None)
    assert plan(host, choices).actions == ()
    assert list(undo_all(host, journal_of(host), lambda _: None)) == []
    shutil.rmtree(host.sysfs / "bus")
    shutil.rmtree(host.sysfs / "devices")
    assert read_tree(host.root) == before


def test_a_list_of_modules_that_somebody_else_made_is_left_and_what_it_lacks_is_told(
    host: Host,
) -> None:
    write(host.root, "etc/modules-load.d/arcsup.conf", "vfio\nvfio_iommu_type1\nmdev\n")

    found = plan(host)

    assert "arcsup.conf" not in files(found)
    assert not any(isinstance(action, ReplaceFile) for action in found.actions)
    lack = "/etc/modules-load.d/arcsup.conf lacks vfio_pci: add what is missing, or remove the file"
    assert lack in found.notes


def test_sr_iov_of_i915_takes_the_driver_that_has_it(host: Host) -> None:
    Tree(host.sysfs).populate_pci(ADDRESS, ids="8086:46a6", driver="i915")
    load(host, "i915", max_vfs="0")

    found = files(plan(host, Choices(GpuSharing.SRIOV)))

    assert found["arcsup-i915.conf"] == "options i915 enable_guc=3 max_vfs=7\nblacklist xe\n"


@pytest.mark.parametrize(
    ("sharing", "ids", "driver", "why"),
    [
        (GpuSharing.GVT_G, "8086:46a6", "i915", "no card here has GVT-g"),
        (GpuSharing.SRIOV, "8086:46a6", "i915", "makes no virtual functions"),
        (GpuSharing.SRIOV, "8086:e20b", "xe", "without options"),
    ],
)
def test_what_would_not_help_is_not_done_and_told(
    sharing: GpuSharing, ids: str, driver: str, why: str, host: Host
) -> None:
    files_of_card = {"sriov_totalvfs": "7\n"}
    Tree(host.sysfs).populate_pci(ADDRESS, ids=ids, driver=driver, files=files_of_card)

    found = plan(host, Choices(sharing))

    assert "arcsup-i915.conf" not in files(found)
    assert any(why in note for note in found.notes)


# --- a vendor's package --------------------------------------------------------------------------


def test_a_debian_package_is_installed_by_apt_once_and_removed_by_its_name(
    host: Host, recorder: Recorder
) -> None:
    put_vendor(host, "gim-dkms_1.0_all.deb")
    add_program(host.root, "dpkg-deb", "echo gim-dkms\n")
    add_program(
        host.root,
        "apt-get",
        'case "$*" in *gim*) echo gim-dkms ;; esac >>"$ROOT/var/lib/dpkg/names"\n',
    )

    first = plan(host)

    [build] = [
        action
        for action in first.actions
        if isinstance(action, InstallPackages) and "dkms" in action.packages
    ]
    assert f"linux-headers-{RELEASE}" in build.packages
    [install] = [action for action in first.actions if isinstance(action, RunCommand)][:1]
    assert install.apply[-1] == "/var/lib/arcsup/vendor/gim-dkms_1.0_all.deb"
    assert install.undo == ("dpkg", "--remove", "gim-dkms")
    apply_all(host, journal_of(host), (install,), lambda _: None)
    assert install not in plan(host).actions
    assert list(undo_all(host, journal_of(host), lambda _: None)) == []
    assert recorder.calls("dpkg ") == ["dpkg --remove gim-dkms"]


def open_to_others(file: Path) -> None:
    file.chmod(0o666)


def open_folder_to_others(file: Path) -> None:
    file.parent.chmod(0o777)


def make_link(file: Path) -> None:
    file.rename(file.with_name("elsewhere"))
    file.symlink_to("elsewhere")


@pytest.mark.parametrize("spoil", [open_to_others, open_folder_to_others, make_link])
def test_a_package_that_others_could_have_put_there_is_not_run(
    spoil: Callable[[Path], None], host: Host
) -> None:
    spoil(put_vendor(host, INSTALLER))

    found = plan(host)

    assert not any("sh /var" in command for command in commands(found.actions))
    assert any("is not installed" in note for note in found.notes)


def test_with_secure_boot_a_key_is_made_and_its_enrolment_explained(host: Host) -> None:
    put_vendor(host, INSTALLER)
    write(host.sysfs, SECURE_BOOT, "\x06\x00\x00\x00\x01")
    add_program(host.root, "mokutil", 'cat "$ROOT/enrolled" 2>/dev/null\n')

    found = plan(host)

    [dkms] = [
        action
        for action in found.actions
        if isinstance(action, CreateFile) and "dkms" in action.path
    ]
    assert "mok_certificate=/var/lib/arcsup/mok/MOK.der" in dkms.content
    steps = commands(found.actions)
    assert [command.split()[0] for command in steps[:2]] == ["openssl", "sh"]
    assert any(note.startswith("3. choose Enroll MOK") for note in found.notes)
    write(host.root, "enrolled", "Subject: CN=arcsup machine owner key\n")
    assert not any("Enroll MOK" in note for note in plan(host).notes)


def test_a_key_that_the_distribution_made_is_used(host: Host) -> None:
    put_vendor(host, INSTALLER)
    write(host.sysfs, SECURE_BOOT, "\x06\x00\x00\x00\x01")
    add_program(host.root, "mokutil", "")
    for name in ("mok.key", "mok.pub"):
        write(host.root, f"var/lib/dkms/{name}")

    found = plan(host)

    assert not any("openssl" in command for command in commands(found.actions))
    assert any("mokutil --import /var/lib/dkms/mok.pub" in note for note in found.notes)


# --- the rest ------------------------------------------------------------------------------------


def test_the_user_that_qemu_runs_as_is_in_the_groups_that_there_are(host: Host) -> None:
    found = plan(host)
    assert CreateUser("arcsup-qemu", ("kvm",)) in found.actions
    before = read_tree(host.root)

    apply_all(host, journal_of(host), found.actions, lambda _: None)
    assert "arcsup-qemu:x:998:" in (host.root / "etc/passwd").read_text()
    list(undo_all(host, journal_of(host), lambda _: None))

    assert read_tree(host.root) == before


def test_huge_pages_are_set_aside_at_each_boot(host: Host) -> None:
    choices = Choices(hugepages=8193)

    found = plan(host, choices)

    assert files(found)["60-arcsup.conf"] == "vm.nr_hugepages = 4097\n"
    apply_all(host, journal_of(host), found.actions, lambda _: None)
    assert plan(host, choices).actions == ()
    assert any("something else" in note for note in plan(host, Choices(hugepages=2)).notes)


def test_apparmor_lets_users_share_folders_where_it_forbids_user_namespaces(host: Host) -> None:
    (host.root / "etc/apparmor.d").mkdir()
    assert "arcsup-virtiofsd" not in files(plan(host))
    write(host.root, "proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1\n")

    assert "userns," in files(plan(host))["arcsup-virtiofsd"]
