"""Packages: the real code with an apt-get that records, and what is said to dnf and pacman."""

import shutil
from pathlib import Path

import pytest

from arcsup.errors import Terminal
from arcsup.setup.actions import InstallPackages
from arcsup.setup.host import Host
from arcsup.setup.packages import (
    APT,
    DNF,
    MANAGERS,
    PACMAN,
    Manager,
    find_manager,
    install_packages,
    list_packages,
    plan_packages,
    remove_packages,
)
from tests.host_programs import Recorder, add_program, add_programs, record
from tests.host_tree import create_host, write


@pytest.fixture
def recorder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recorder:
    return record(tmp_path, monkeypatch)


@pytest.fixture
def host(tmp_path: Path, recorder: Recorder) -> Host:
    host = create_host(tmp_path / "host")
    add_programs(host.root)
    return host


def names(host: Host) -> set[str]:
    return set((host.root / "var/lib/dpkg/names").read_text().split())


def test_only_missing_packages_are_installed(host: Host, recorder: Recorder) -> None:
    write(host.root, "var/lib/dpkg/names", "ovmf\nqemu-utils\n")
    action = plan_packages(host, APT)
    assert action is not None
    assert action.packages == ("qemu-system-x86", "swtpm")

    came = install_packages(host, action)

    [call] = recorder.calls("apt-get")
    assert call.endswith(" qemu-system-x86 swtpm virtiofsd")
    assert came == (
        *("libqemu-system-x86", "libswtpm", "libvirtiofsd"),
        *("qemu-system-x86", "swtpm", "virtiofsd"),
    )


def test_nothing_is_upgraded_and_nothing_removed_to_make_room(
    host: Host, recorder: Recorder
) -> None:
    action = plan_packages(host, APT)
    assert action is not None
    install_packages(host, action)

    words = " ".join(recorder.calls("apt-get")).split()
    assert {"--no-upgrade", "--no-remove", "--no-install-recommends"} <= set(words)
    assert not {"upgrade", "dist-upgrade", "full-upgrade"} & set(words)


def test_with_everything_there_nothing_is_planned(host: Host) -> None:
    write(host.root, "var/lib/dpkg/names", "\n".join((*APT.packages, *APT.optional)))

    assert plan_packages(host, APT) is None


def test_lists_are_fetched_only_when_they_lack_something(host: Host, recorder: Recorder) -> None:
    write(host.root, "var/lib/apt/known", "")
    action = plan_packages(host, APT)
    assert action is not None

    install_packages(host, action)

    update, install = recorder.calls("apt-get")
    assert update.endswith("update")
    # Known only since the lists are fresh.
    assert install.endswith("swtpm virtiofsd")


def test_an_optional_package_that_a_suite_lacks_is_no_reason_to_do_anything(host: Host) -> None:
    write(host.root, "var/lib/dpkg/names", "\n".join(APT.packages))
    write(host.root, "var/lib/apt/known", "\n".join(APT.packages))

    assert plan_packages(host, APT) is None


def test_a_name_that_other_packages_only_mention_is_no_package(host: Host) -> None:
    write(host.root, "var/lib/dpkg/names", "\n".join(APT.packages))
    write(host.root, "var/lib/apt/known", "qemu-utils\n")
    write(host.root, "var/lib/apt/mentioned", "virtiofsd\n")

    assert plan_packages(host, APT) is None


def test_taking_back_removes_what_came_and_nothing_else(host: Host, recorder: Recorder) -> None:
    before = names(host)
    action = plan_packages(host, APT)
    assert action is not None
    came = install_packages(host, action)
    write(host.root, "var/lib/dpkg/names", "\n".join([*names(host), "tree"]) + "\n")

    remove_packages(host, action, came)

    assert names(host) == before | {"tree"}
    assert recorder.calls("dpkg ")[0].startswith("dpkg --remove lib")


def test_packages_that_others_need_now_stay(host: Host) -> None:
    action = plan_packages(host, APT)
    assert action is not None
    came = install_packages(host, action)
    write(host.root, "needed")

    with pytest.raises(Terminal, match="dpkg --remove") as caught:
        remove_packages(host, action, came)
    assert "installed since may need them" in caught.value.hint


def test_what_is_gone_already_needs_no_removing(host: Host, recorder: Recorder) -> None:
    remove_packages(host, InstallPackages("apt-get", ("ovmf",)), ("ovmf",))

    assert recorder.calls() == []


@pytest.mark.parametrize(
    ("release", "program", "manager"),
    [
        ("ID=debian", "apt-get", APT),
        ('ID=linuxmint\nID_LIKE="ubuntu debian"', "apt-get", APT),
        ("ID=fedora", "dnf", DNF),
        ('ID="rocky"\nID_LIKE="rhel centos fedora"', "dnf", DNF),
        ("ID=arch", "pacman", PACMAN),
        ("ID=debian", "dnf", None),
        ("ID=gentoo", "apt-get", None),
    ],
)
def test_the_distribution_says_which_manager_it_has(
    release: str, program: str, manager: Manager | None, host: Host
) -> None:
    shutil.rmtree(host.root / "usr/bin")
    write(host.root, "etc/os-release", f"{release}\n")
    write(host.root, f"usr/bin/{program}", mode=0o755)

    assert find_manager(host) is manager


@pytest.mark.parametrize(
    ("manager", "lister", "listing"),
    [
        (DNF, "rpm", "printf 'installed swtpm\\ninstalled bash\\n'"),
        (PACMAN, "pacman", "[ $1 != --query ] || printf 'swtpm\\nbash\\n'"),
    ],
    ids=["dnf", "pacman"],
)
def test_the_others_are_asked_for_what_is_missing_too(
    manager: Manager, lister: str, listing: str, host: Host, recorder: Recorder
) -> None:
    add_program(host.root, manager.name, "")
    add_program(host.root, lister, listing)
    assert list_packages(host, manager) == {"swtpm", "bash"}
    action = plan_packages(host, manager)
    assert action is not None
    assert "swtpm" not in action.packages

    install_packages(host, action)

    calls = [call for call in recorder.calls(manager.name) if "install" in call or "sync" in call]
    assert calls == [" ".join((*manager.install, *action.packages))]
    assert not {"upgrade", "--sysupgrade", "-Syu", "--refresh"} & set(calls[0].split())


def test_every_manager_has_what_a_vm_needs() -> None:
    for manager in MANAGERS.values():
        text = " ".join(manager.packages)
        assert all(word in text for word in ("qemu-system-x86", "ovmf", "swtpm"))
