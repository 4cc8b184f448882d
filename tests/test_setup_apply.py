"""setup on the trees of hosts: what it plans, does, does not do twice, and takes back."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from arcsup.errors import NotPermitted, Terminal
from arcsup.places import Places
from arcsup.setup.actions import Action, CreateFile, CreateGroup, InstallPackages, RunCommand
from arcsup.setup.carry_out import Failed, apply_all, finish, journal_of, undo_all
from arcsup.setup.doctor import CHECKS, examine
from arcsup.setup.findings import Level
from arcsup.setup.host import Host, rebase
from arcsup.setup.journal import Journal
from arcsup.setup.packages import APT
from arcsup.setup.plan import plan_setup
from arcsup.setup.steps import SetupPlan
from arcsup.spec.config import load_config
from tests.host_programs import (
    Recorder,
    add_grub,
    add_program,
    add_programs,
    add_systemd_boot,
    record,
)
from tests.host_tree import RELEASE, create_host, host_of, read_tree, write

PROGRAM = Path("/opt/arcsup/bin/arcsup")
PLACES = ("var/lib/arcsup", "var/lib/arcsup/images", "etc/arcsup/vms")
JOURNAL = "var/lib/arcsup/setup.json"

FIRST_NOTED = 1
"""The first step makes the directory of the journal, which cannot note that before."""


@pytest.fixture
def recorder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    return record(tmp_path, monkeypatch)


@pytest.fixture
def root(tmp_path: Path, recorder: Recorder) -> Path:
    """A Debian with systemd, nothing of arcsup, and the IOMMU off."""
    root = tmp_path / "host"
    create_host(root)
    for place in ("etc/arcsup", "var/lib/arcsup", "var/log/arcsup", "sys/kernel/iommu_groups"):
        shutil.rmtree(root / place)
    write(root, "proc/cmdline", "BOOT_IMAGE=/vmlinuz root=/dev/sda1 ro quiet initrd=/initrd\n")
    add_programs(root)
    return root


def silent(_what: object) -> None:
    return None


def apply(root: Path) -> SetupPlan:
    host = host_of(root)
    journal = journal_of(host)
    finish(host, journal, silent)
    plan = plan_setup(host, PROGRAM)
    apply_all(host, journal, plan.actions, silent)
    return plan


def undo(root: Path) -> dict[str, str]:
    host = host_of(root)
    kept = undo_all(host, journal_of(host), silent)
    return {str(item.action): item.why for item in kept}


def kinds(actions: tuple[Action, ...]) -> list[str]:
    return [type(action).__name__ for action in actions]


BOOT_LOADERS: dict[str, Callable[[Path], None]] = {
    "grub": add_grub,
    "systemd-boot": lambda root: add_systemd_boot(root, RELEASE, "root=/dev/sda1 ro"),
    "systemd-boot without a file": lambda root: add_systemd_boot(root, RELEASE),
    "none that is known": lambda _root: None,
}


@pytest.fixture(params=list(BOOT_LOADERS.values()), ids=list(BOOT_LOADERS))
def any_root(root: Path, request: pytest.FixtureRequest) -> Path:
    prepare: Callable[[Path], None] = request.param
    prepare(root)
    return root


def test_planning_changes_nothing(any_root: Path) -> None:
    before = read_tree(any_root)

    assert plan_setup(host_of(any_root), PROGRAM).actions
    assert read_tree(any_root) == before


def test_applying_twice_changes_nothing_the_second_time(any_root: Path, recorder: Recorder) -> None:
    apply(any_root)
    once, calls = read_tree(any_root), recorder.calls()

    assert apply(any_root).actions == ()
    assert read_tree(any_root) == once
    assert recorder.calls() == calls


def test_undo_restores_the_tree_byte_for_byte(any_root: Path) -> None:
    before = read_tree(any_root)
    apply(any_root)
    assert read_tree(any_root) != before

    assert undo(any_root) == {}
    assert read_tree(any_root) == before


def test_undo_without_having_done_anything_does_nothing(root: Path, recorder: Recorder) -> None:
    before = read_tree(root)

    assert undo(root) == {}
    assert (read_tree(root), recorder.calls()) == (before, [])


@pytest.fixture
def steps(root: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Action, ...]:
    """Return what is planned for a host with GRUB that has its packages."""
    monkeypatch.setattr(os, "fsync", silent)  # two for each step of each run
    add_grub(root)
    write(root, "var/lib/dpkg/names", "\n".join((*APT.packages, *APT.optional)))
    return plan_setup(host_of(root), PROGRAM).actions


def stop_in(root: Path, steps: tuple[Action, ...], index: int, *, before_deed: bool) -> None:
    """Do the steps before ``index``, and that one as far as a crash lets it come."""
    host = host_of(root)
    journal = journal_of(host)
    apply_all(host, journal, steps[:index], silent)
    journal.begin(steps[index])
    if not before_deed:
        apply_all(host, Journal(root / "nowhere/lost.json"), [steps[index]], silent)


@pytest.mark.parametrize("before_deed", [True, False], ids=["noted", "done"])
def test_stopped_at_any_step_it_is_finished_by_the_next_run(
    before_deed: bool, root: Path, steps: tuple[Action, ...]
) -> None:
    before = read_tree(root)
    apply(root)
    wanted = without_journal(root)
    undo(root)

    for index in range(FIRST_NOTED, len(steps)):
        stop_in(root, steps, index, before_deed=before_deed)
        apply(root)
        assert without_journal(root) == wanted
        undo(root)
        assert read_tree(root) == before


@pytest.mark.parametrize("before_deed", [True, False], ids=["noted", "done"])
def test_undo_after_a_stop_at_any_step_restores_the_tree(
    before_deed: bool, root: Path, steps: tuple[Action, ...]
) -> None:
    before = read_tree(root)

    for index in range(FIRST_NOTED, len(steps)):
        stop_in(root, steps, index, before_deed=before_deed)
        undo(root)
        assert read_tree(root) == before


def without_journal(root: Path) -> dict[str, tuple[int, str]]:
    """Return the tree but for the journal, whose order may differ."""
    return {path: what for path, what in read_tree(root).items() if path != JOURNAL}


def test_each_step_is_in_the_journal_before_it_is_done(root: Path) -> None:
    add_grub(root)
    script = f'grep -q update-grub "$ROOT/{JOURNAL}" && touch "$ROOT/seen"\n'
    add_program(root, "update-grub", script)

    apply(root)

    assert (root / "seen").exists()
    assert all(entry.done for entry in journal_of(host_of(root)).entries)


def test_what_others_have_changed_since_is_kept_and_told(root: Path) -> None:
    apply(root)
    write(root, "etc/arcsup/arcsup.yaml", "resync: 5s\n")
    write(root, "var/lib/arcsup/images/disk.qcow2", "data")
    group = (root / "etc/group").read_text().replace("arcsup:x:999:", "arcsup:x:999:ann")
    write(root, "etc/group", group)

    kept = undo(root)

    assert set(kept.values()) == {
        "it was changed since",
        "it is not empty",
        "it has members: ann",
    }
    assert (root / "etc/arcsup/arcsup.yaml").read_text() == "resync: 5s\n"
    assert (root / "var/lib/arcsup/images/disk.qcow2").exists()
    assert not (root / "etc/arcsup/vms").exists()
    assert not (root / "var/lib/arcsup/setup.json").exists()
    assert undo(root) == {}


def test_what_is_there_is_never_overwritten(root: Path) -> None:
    write(root, "etc/arcsup/arcsup.yaml", "resync: 5s\n")
    write(root, "etc/systemd/system/arcsup.service", "[Unit]\n")
    write(root, "etc/modules-load.d/arcsup.conf", "vfio\n")

    plan = apply(root)

    assert "CreateFile" not in kinds(plan.actions)
    assert "CreateGroup" not in kinds(plan.actions)
    undo(root)
    assert (root / "etc/arcsup/arcsup.yaml").read_text() == "resync: 5s\n"


def test_the_configuration_lets_the_new_group_use_the_socket(root: Path) -> None:
    apply(root)

    assert load_config(root / "etc/arcsup/arcsup.yaml").group == "arcsup"
    assert "arcsup:x:999:" in (root / "etc/group").read_text()


def test_without_groupadd_the_configuration_names_no_group(root: Path) -> None:
    (root / "usr/bin/groupadd").unlink()

    plan = apply(root)

    assert CreateGroup("arcsup") not in plan.actions
    assert load_config(root / "etc/arcsup/arcsup.yaml").group is None


def test_the_group_that_a_configuration_names_is_made(root: Path) -> None:
    write(root, "etc/arcsup/arcsup.yaml", "group: vms\n")

    assert CreateGroup("vms") in apply(root).actions


def test_directories_have_the_modes_that_doctor_wants(root: Path) -> None:
    apply(root)

    places = [check for check in CHECKS["arcsup"] if check.id == "places"]
    [examined] = examine(host_of(root), {"Places": tuple(places)})
    assert {finding.level for finding in examined.findings} == {Level.OK}


def test_a_directory_that_others_can_write_is_closed_and_opened_again(root: Path) -> None:
    (root / "etc/arcsup/vms").mkdir(parents=True)
    (root / "etc/arcsup/vms").chmod(0o777)

    apply(root)
    assert (root / "etc/arcsup/vms").stat().st_mode & 0o777 == 0o755
    undo(root)
    assert (root / "etc/arcsup/vms").stat().st_mode & 0o777 == 0o777


def test_qemus_user_can_pass_to_images_but_not_into_what_an_administrator_closed(
    root: Path,
) -> None:
    for place, mode in (("var/lib/arcsup/images", 0o700), ("etc/arcsup/vms", 0o700)):
        (root / place).mkdir(parents=True)
        (root / place).chmod(mode)

    apply(root)

    modes = {place: (root / place).stat().st_mode & 0o777 for place in PLACES}
    assert modes == {
        "var/lib/arcsup": 0o755,
        "var/lib/arcsup/images": 0o711,
        "etc/arcsup/vms": 0o700,
    }
    undo(root)
    assert (root / "var/lib/arcsup/images").stat().st_mode & 0o777 == 0o700


def test_a_directory_whose_mode_was_changed_since_is_left(root: Path) -> None:
    (root / "etc/arcsup/vms").mkdir(parents=True)
    (root / "etc/arcsup/vms").chmod(0o777)
    apply(root)
    (root / "etc/arcsup/vms").chmod(0o700)

    assert list(undo(root).values()) == ["its owner or mode was changed since"]
    assert (root / "etc/arcsup/vms").stat().st_mode & 0o777 == 0o700


def test_the_unit_starts_this_program_and_is_enabled(root: Path, recorder: Recorder) -> None:
    apply(root)

    unit = (root / "etc/systemd/system/arcsup.service").read_text()
    assert f"ExecStart={PROGRAM} daemon" in unit.splitlines()
    reload, enable = recorder.calls("systemctl")
    assert (reload, enable) == (
        "systemctl daemon-reload",
        "systemctl enable --now arcsup.service",
    )


def test_a_unit_of_the_package_is_only_enabled(root: Path, recorder: Recorder) -> None:
    write(root, "usr/lib/systemd/system/arcsup.service", "[Unit]\n")

    apply(root)

    assert not (root / "etc/systemd/system/arcsup.service").exists()
    assert recorder.calls("systemctl") == ["systemctl enable --now arcsup.service"]


def test_where_systemd_does_not_run_its_start_is_told(root: Path, recorder: Recorder) -> None:
    shutil.rmtree(root / "run/systemd")

    plan = apply(root)

    assert recorder.calls("systemctl") == []
    assert any("enable --now" in note for note in plan.notes)
    assert (root / "etc/systemd/system/arcsup.service").exists()


def test_modules_are_loaded_at_boot_unless_something_does_that(root: Path) -> None:
    write(root, "usr/lib/modules-load.d/vfio.conf", "# ours\nvfio-pci\n")

    apply(root)

    lines = (root / "etc/modules-load.d/arcsup.conf").read_text().splitlines()
    assert lines[1:] == ["vfio", "vfio_iommu_type1", "mdev"]


def test_a_user_gets_what_a_user_may_do_and_the_rest_is_told(
    root: Path, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    for name in ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    host = Host(rebase(Places.default(system=False), root), root=root)

    plan = plan_setup(host, PROGRAM)
    apply_all(host, journal_of(host), plan.actions, silent)

    assert set(kinds(plan.actions)) == {"CreateDirectory", "CreateFile"}
    home = root / "home/ann"
    assert (home / ".config/systemd/user/arcsup.service").exists()
    assert (home / ".config/arcsup/vms").is_dir()
    assert load_config(home / ".config/arcsup/arcsup.yaml").group is None
    assert any(note.startswith("as root, run: apt-get") for note in plan.notes)
    assert recorder.calls() == []


def test_a_journal_that_cannot_be_read_stops_setup(root: Path) -> None:
    write(root, "var/lib/arcsup/setup.json", '{"version": 1, "entries": [{"action": {}}]}')
    with pytest.raises(Terminal, match=r"setup\.json cannot be read"):
        apply(root)
    write(root, "var/lib/arcsup/setup.json", '{"version": 2, "entries": []}')
    with pytest.raises(Terminal, match="later arcsup"):
        undo(root)


def test_the_journal_keeps_every_kind_of_action(root: Path) -> None:
    add_systemd_boot(root, RELEASE, "root=/dev/sda1 ro")
    (root / "etc/arcsup/vms").mkdir(parents=True)
    (root / "etc/arcsup/vms").chmod(0o777)
    apply(root)

    journal = journal_of(host_of(root))

    assert len({type(entry.action) for entry in journal.entries}) == 8
    again = Journal(root / "copy.json", list(journal.entries))
    again.save()
    assert Journal.load(root / "copy.json").entries == journal.entries


def test_what_may_not_be_written_is_told_with_what_to_do(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_path: Path, exist_ok: bool = False) -> None:
        raise PermissionError(13, "Permission denied", "/etc/arcsup")

    monkeypatch.setattr(Path, "mkdir", refuse)

    with pytest.raises(NotPermitted, match="/etc/arcsup: Permission denied"):
        apply(root)


def test_a_file_that_appears_between_plan_and_deed_is_not_overwritten(root: Path) -> None:
    host = host_of(root)
    (root / "var/lib/arcsup").mkdir(parents=True)
    action = CreateFile(str(root / "etc/new"), "ours\n")
    write(root, "etc/new", "theirs\n")

    apply_all(host, journal_of(host), [action], silent)

    assert (root / "etc/new").read_text() == "theirs\n"
    assert undo(root) == {f"write {root}/etc/new": "it was changed since"}


def test_a_step_that_fails_is_told_and_tried_again_while_the_rest_is_done(
    root: Path, recorder: Recorder
) -> None:
    write(root, "broken")
    host = host_of(root)
    journal = journal_of(host)

    [failed] = apply_all(host, journal, plan_setup(host, PROGRAM).actions, silent)

    assert isinstance(failed.action, InstallPackages)
    assert "ended with 100" in failed.why
    assert "systemctl enable --now arcsup.service" in recorder.calls("systemctl")
    pending = [entry.action for entry in journal_of(host).entries if not entry.done]
    assert pending == [failed.action]
    (root / "broken").unlink()
    apply(root)
    assert all(entry.done for entry in journal_of(host).entries)
    assert len(recorder.calls("apt-get")) == 2
    assert plan_setup(host_of(root), PROGRAM).actions == ()


def test_a_file_whose_program_fails_is_told_and_finished_later(root: Path) -> None:
    add_grub(root)
    add_program(root, "update-grub", '[ ! -e "$ROOT/broken-grub" ]\n')
    write(root, "broken-grub")
    host = host_of(root)
    journal = journal_of(host)
    [first] = apply_all(host, journal, plan_setup(host, PROGRAM).actions, silent)

    [again] = finish(host, journal, silent)

    assert (first.action, first.why) == (again.action, again.why)
    (root / "broken-grub").unlink()
    assert finish(host, journal, silent) == ()
    assert all(entry.done for entry in journal_of(host).entries)


FAILING = RunCommand(("sh", "driver.run"), ("driver-uninstall", "--silent"))


def add_failing_command(root: Path) -> None:
    """Have an earlier run tried what fails, and its undo too."""
    host = host_of(root)
    assert apply_all(host, journal_of(host), [FAILING], silent)


def test_a_command_that_failed_and_is_planned_no_more_is_not_run_again(
    root: Path, recorder: Recorder
) -> None:
    apply(root)
    add_program(root, "sh", "exit 1\n")
    add_failing_command(root)

    host = host_of(root)
    assert finish(host, journal_of(host), silent) == ()
    assert apply(root).actions == ()
    assert recorder.calls("sh ") == ["sh driver.run"]


def test_a_command_that_failed_and_cannot_be_taken_back_is_told_once_and_the_rest_is(
    root: Path,
) -> None:
    before = read_tree(root)
    apply(root)
    add_failing_command(root)

    [(what, why)] = undo(root).items()

    assert what == "run sh driver.run"
    assert why.startswith("driver-uninstall --silent ended with 127")
    assert read_tree(root) == before


def test_what_cannot_be_taken_back_now_is_told_and_tried_again_while_the_rest_is(
    root: Path,
) -> None:
    before = read_tree(root)
    apply(root)
    write(root, "needed")
    host = host_of(root)

    [failed] = undo_all(host, journal_of(host), silent)

    assert isinstance(failed, Failed)
    assert isinstance(failed.action, InstallPackages)
    assert "installed since may need them" in failed.why
    assert not (root / "etc/systemd/system/arcsup.service").exists()
    assert not (root / "etc/arcsup").exists()
    (root / "needed").unlink()
    assert undo(root) == {}
    assert read_tree(root) == before


def test_the_plan_reads_as_what_will_happen(root: Path) -> None:
    add_grub(root)
    words = [str(action) for action in plan_setup(host_of(root), PROGRAM).actions]

    assert words[0] == f"make {root}/var/lib/arcsup (mode 711)"
    assert f"write {root}/etc/default/grub.d/arcsup.cfg, then run update-grub" in words
    assert words[-1] == "run systemctl enable --now arcsup.service"
