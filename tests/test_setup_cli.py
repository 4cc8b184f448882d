"""The verb setup: plan, apply, undo, and what each says."""

from pathlib import Path

import pytest

from arcsup.setup.lock import hold_setup
from tests.cli_runner import Cli
from tests.fake_supervisor import FakeSupervisor
from tests.host_programs import Recorder, add_grub, add_programs, record
from tests.host_tree import host_of, read_tree, write


@pytest.fixture
def cli(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(FakeSupervisor(), tmp_path / "nowhere", capsys)


@pytest.fixture
def recorder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    return record(tmp_path, monkeypatch)


@pytest.fixture
def root(tmp_path: Path, recorder: Recorder) -> Path:
    root = tmp_path / "host"
    write(root, "etc/os-release", "ID=debian\n")
    add_programs(root)
    return root


def test_without_apply_the_plan_is_shown_and_nothing_done(
    cli: Cli, root: Path, recorder: Recorder
) -> None:
    before = read_tree(root)

    result = cli("setup", "--root", str(root))

    assert result.code == 0
    assert result.out.splitlines()[0] == f"  1. make {root}/var/lib/arcsup (mode 711)"
    assert "install with apt-get: qemu-system-x86 qemu-utils ovmf swtpm" in result.out
    assert "arcsup setup --apply" in result.err
    assert read_tree(root) == before
    assert recorder.calls() == []


def test_apply_tells_each_step_and_what_is_left_to_the_user(
    cli: Cli, root: Path, recorder: Recorder
) -> None:
    result = cli("setup", "--root", str(root), "--apply")

    assert result.code == 0
    assert f"setup: write {root}/etc/arcsup/arcsup.yaml\n" in result.err
    assert "usermod -aG arcsup" in result.out
    assert len(recorder.calls("apt-get")) == 1
    again = cli("setup", "--root", str(root), "--apply")
    assert (again.code, again.err) == (0, "nothing is missing that setup can do\n")


def test_undo_tells_what_it_takes_back_and_what_it_keeps(cli: Cli, root: Path) -> None:
    before = read_tree(root)
    cli("setup", "--root", str(root), "--apply")
    write(root, "var/lib/arcsup/images/disk", "data")

    result = cli("setup", "--root", str(root), "--undo")

    assert result.code == 0
    assert f"setup: undo: write {root}/etc/arcsup/arcsup.yaml\n" in result.err
    assert f"kept: make {root}/var/lib/arcsup/images (mode 711): it is not empty\n" in result.out
    # The lock's file lies where the next boot begins without it.
    assert set(read_tree(root)) - set(before) - {"run/arcsup-setup.lock"} == {
        *("var/lib/arcsup", "var/lib/arcsup/images", "var/lib/arcsup/images/disk"),
    }
    assert cli("setup", "--root", str(root), "--undo").err == "setup has done nothing here\n"


def test_json_goes_alone_to_stdout(cli: Cli, root: Path) -> None:
    plan = cli("setup", "--root", str(root), "--json").json
    done = cli("setup", "--root", str(root), "--apply", "--json").json
    undone = cli("setup", "--root", str(root), "--undo", "--json").json

    assert plan == done
    assert {action["kind"] for action in plan["actions"]} == {
        *("CreateDirectory", "InstallPackages", "CreateGroup", "CreateUser", "CreateFile"),
        "RunCommand",
    }
    assert len(undone["actions"]) == len(done["actions"])
    assert undone["kept"] == []


def test_what_did_not_end_is_in_the_plan(cli: Cli, root: Path) -> None:
    write(root, "broken")

    failed = cli("setup", "--root", str(root), "--apply")

    assert failed.code == 1
    assert "failed: install with apt-get: " in failed.out
    assert "ended with 100" in failed.out
    assert failed.err.endswith("`arcsup setup --apply` tries again\n")
    first = cli("setup", "--root", str(root)).out.splitlines()[0]
    assert first.startswith("  1. install with apt-get: ")
    assert first.endswith("(again)")


def test_what_cannot_be_taken_back_is_told_with_what_to_do(cli: Cli, root: Path) -> None:
    cli("setup", "--root", str(root), "--apply")
    write(root, "needed")

    failed = cli("setup", "--root", str(root), "--undo")

    assert failed.code == 1
    assert failed.out.startswith("failed: install with apt-get: ")
    journal = root / "var/lib/arcsup/setup.json"
    assert failed.err.endswith(f"`arcsup setup --undo` tries again; remove {journal} to give up\n")
    again = cli("setup", "--root", str(root), "--undo", "--json")
    assert again.code == 1
    assert [action["kind"] for action in again.json["failed"]] == ["InstallPackages"]
    assert (again.json["actions"], again.json["kept"]) == ([], [])
    (root / "needed").unlink()
    assert cli("setup", "--root", str(root), "--undo").code == 0
    assert not journal.parent.exists()


def test_apply_and_undo_do_not_go_together(cli: Cli, root: Path) -> None:
    assert cli("setup", "--root", str(root), "--apply", "--undo").code == 2


def test_a_root_that_is_not_there_is_wrong_usage(cli: Cli, tmp_path: Path) -> None:
    assert cli("setup", "--root", str(tmp_path / "missing")).code == 2


def test_two_at_once_are_refused(cli: Cli, root: Path) -> None:
    with hold_setup(host_of(root)):
        refused = cli("setup", "--root", str(root), "--apply")

        assert (refused.code, refused.err.splitlines()[0]) == (
            6,
            "arcsup: another setup of this host runs",
        )
        assert cli("setup", "--root", str(root)).code == 0
    assert cli("setup", "--root", str(root), "--apply").code == 0


def test_a_size_that_is_none_is_wrong_usage(cli: Cli, root: Path) -> None:
    refused = cli("setup", "--root", str(root), "--hugepages", "many")

    assert (refused.code, "expected a size" in refused.err) == (2, True)


def test_after_a_reboot_it_goes_on_with_the_same_choices_and_once(
    cli: Cli, root: Path, recorder: Recorder
) -> None:
    write(root, "sys/firmware/acpi/tables/DMAR")
    add_grub(root)
    cli("setup", "--root", str(root), "--apply", "--hugepages", "1GiB")
    unit = root / "etc/systemd/system/arcsup-setup.service"
    start = "ExecStart=/usr/bin/arcsup setup --resume --hugepages 1024MiB"
    assert start in unit.read_text().splitlines()
    assert "systemctl enable arcsup-setup.service" in recorder.calls("systemctl")
    assert cli("setup", "--root", str(root), "--apply", "--hugepages", "1GiB").code == 0
    # The reboot: the kernel has got its parameters, and made groups of them.
    write(root, "proc/cmdline", "quiet intel_iommu=on iommu=pt\n")
    (root / "sys/kernel/iommu_groups/0").mkdir(parents=True)

    resumed = cli("setup", "--root", str(root), "--resume", "--hugepages", "1GiB")

    assert resumed.code == 0
    assert not unit.exists()
    assert "systemctl disable arcsup-setup.service" in recorder.calls("systemctl")
    assert cli("setup", "--root", str(root), "--hugepages", "1GiB").out == ""
    assert cli("setup", "--root", str(root), "--undo").code == 0
    assert not (root / "etc/default/grub.d/arcsup.cfg").exists()
    assert not (root / "etc/sysctl.d/60-arcsup.conf").exists()
