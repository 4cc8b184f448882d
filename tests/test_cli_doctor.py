"""The verb doctor, on the trees of hosts and on this one."""

from pathlib import Path

import pytest

from arcsup.setup.checks import places
from tests.cli_runner import Cli
from tests.fake_supervisor import FakeSupervisor, serve_in_thread
from tests.host_tree import create_host, read_tree, write


@pytest.fixture
def cli(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(FakeSupervisor(), tmp_path / "nowhere", capsys)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    create_host(tmp_path / "host")
    return tmp_path / "host"


def test_each_finding_has_its_mark_its_reason_and_its_remedy(cli: Cli, root: Path) -> None:
    result = cli("doctor", "--root", str(root))

    assert result.code == 1
    assert "  ✓ /dev/kvm can be opened\n" in result.out
    assert "  ✗ no QEMU is installed\n      it is what runs VMs\n      → install QEMU" in result.out
    assert "  ! no swtpm is installed\n" in result.out
    assert result.out.splitlines()[0] == "Processor"
    assert result.out.splitlines()[-1].startswith("✗ 1  ! ")
    assert "\x1b" not in result.out


def test_json_is_one_entry_for_each_finding(cli: Cli, root: Path) -> None:
    result = cli("doctor", "--root", str(root), "-o", "json")

    [error] = [finding for finding in result.json if finding["level"] == "error"]
    assert set(error) == {"check", "title", "level", "what", "why", "do"}
    assert (result.code, error["check"], error["title"]) == (1, "qemu", "QEMU")
    assert cli("doctor", "--root", str(root), "-o", "name").out == "qemu\n"


def test_without_errors_it_is_0(cli: Cli, root: Path) -> None:
    script = "#!/bin/sh\n[ $1 != -help ] || echo QEMU emulator version 9.1.0\n"
    write(root, "usr/bin/qemu-system-x86_64", script, 0o755)
    (root / "dev/kvm").unlink()
    write(root, "dev/kvm")

    result = cli("doctor", "--root", str(root), "--json")

    # The fake QEMU runs no guest, with KVM or without.
    assert {finding["level"] for finding in result.json} == {"ok", "info", "warning"}
    assert result.code == 0


def test_options_name_other_places(cli: Cli, root: Path, tmp_path: Path) -> None:
    (tmp_path / "vms").mkdir()
    (tmp_path / "vms/a.yaml").write_text("memory: lots\n")
    (tmp_path / "sys").mkdir()
    options = ["--vms", str(tmp_path / "vms"), "--sysfs", str(tmp_path / "sys")]

    result = cli("doctor", "--root", str(root), *options, "--json")

    told = {finding["what"] for finding in result.json if finding["check"] == "vm-files"}
    assert any(text.startswith(f"{tmp_path}/vms/a.yaml:1:9: memory") for text in told)
    [groups] = [finding for finding in result.json if finding["check"] == "iommu"]
    assert groups["level"] == "warning"


def test_the_configuration_of_the_root_says_where_its_vm_files_are(cli: Cli, root: Path) -> None:
    write(root, "etc/arcsup/arcsup.yaml", "vmDir: /srv/vms\n")
    write(root, "srv/vms/a.yaml", "memory: lots\n")

    result = cli("doctor", "--root", str(root), "--json")

    assert any(f"{root}/srv/vms/a.yaml:1:9" in finding["what"] for finding in result.json)


@pytest.mark.parametrize(("program", "level"), [("0.1.0", "ok"), ("9.9.9", "warning")])
def test_a_daemon_that_answers_is_to_be_of_the_same_version(
    program: str,
    level: str,
    short_dir: Path,
    cli: Cli,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(places, "__version__", program)
    with serve_in_thread(FakeSupervisor(), short_dir):
        result = cli("doctor", "--root", str(root), "--run", str(short_dir), "--json")

    daemon = [finding for finding in result.json if finding["check"] == "daemon"]
    assert daemon[0]["level"] == level
    assert "arcsup 0.1.0" in daemon[0]["what"]


def test_this_host_is_examined_without_changing_its_places(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {"--vms": "vms", "--run": "run", "--state": "state", "--log-dir": "log"}
    options = [word for option, name in names.items() for word in (option, str(tmp_path / name))]
    before = read_tree(tmp_path)

    result = cli("doctor", *options, "--json")

    assert result.code in {0, 1}
    assert {finding["check"] for finding in result.json} >= {"kvm-guest", "qemu", "places"}
    assert read_tree(tmp_path) == before
