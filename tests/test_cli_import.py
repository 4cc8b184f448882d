from pathlib import Path

import pytest

from arcsup.cli.main import run
from arcsup.spec.native import load_vm

DATA = Path(__file__).parent / "data" / "import"


def test_the_file_goes_to_stdout_and_what_changed_to_stderr(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = run(["import", str(DATA / "first.yaml")])

    out, err = capsys.readouterr()
    assert code == 0
    assert load_vm(out, Path("first.yaml"), "0").name == "first"
    assert f"{DATA / 'first.yaml'}:22:7: sudo: is not carried over" in err


@pytest.mark.parametrize("name", ["first.yaml", "build.xml", "104.conf"])
def test_a_file_is_written_once_and_replaced_only_by_force(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "box.yaml"
    arguments = ["import", str(DATA / name), "-o", str(out)]

    assert run(arguments) == 0
    written = out.read_text()
    load_vm(written, out, "0")
    assert out.stat().st_mode & 0o777 == 0o644
    out.write_text("mine")
    assert run(arguments) == 6
    assert "is there already" in capsys.readouterr().err
    assert out.read_text() == "mine"
    assert run([*arguments, "--force"]) == 0
    assert out.read_text() == written
    assert [file.name for file in tmp_path.iterdir()] == ["box.yaml"]


def test_faults_are_told_with_their_places(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "box.yaml"
    file.write_text("root: /x\ncontainer: {kernal: a}\n")

    assert run(["import", str(file)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert f"{file}:2:13: container.kernal: unknown key, did you mean kernel?" in err


def test_what_is_not_there_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["import", str(tmp_path / "none.yaml")]) == 4
    assert run(["import", str(DATA / "first.yaml"), "-o", str(tmp_path / "no/x.yaml")]) == 4
    assert "there is no folder" in capsys.readouterr().err


def test_whose_file_it_is_can_be_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["import", "--from", "libvirt", str(DATA / "first.yaml")]) == 1
    assert "no XML" in capsys.readouterr().err
