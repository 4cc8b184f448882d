"""What setup puts on a host is the same in a checkout and in an installed wheel."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import arcsup
from arcsup.cli.main import VERBS
from arcsup.setup.resources import read_resource
from tests.guest import TOP

NAMES = [
    "config/arcsup.yaml",
    "contrib/systemd/arcsup.service",
    "contrib/systemd/arcsup-setup.service",
    "contrib/systemd/user/arcsup.service",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_checkout_has_its_own(name: str) -> None:
    assert read_resource(name) == (TOP / name).read_text()


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an unpacked wheel, where nothing of the checkout is."""
    folder = tmp_path_factory.mktemp("wheel")
    build = "import sys, hatchling.build as b; print(b.build_wheel(sys.argv[1]))"
    subprocess.run(
        [sys.executable, "-c", build, str(folder)], cwd=TOP, check=True, capture_output=True
    )
    [wheel] = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "installed")
    return folder / "installed"


def run_installed(installed: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # -P: not even the folder that it is run in is looked into.
    return subprocess.run(
        [sys.executable, "-P", *arguments],
        cwd=installed,
        env={"PYTHONPATH": str(installed), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_wheel_has_what_setup_installs(installed: Path) -> None:
    program = (
        "import sys; from arcsup.setup.resources import read_resource, FOLDERS;"
        "assert 'installed' in str(FOLDERS[0]), FOLDERS;"
        "print(*(read_resource(name) for name in sys.argv[1:]), sep='', end='')"
    )

    done = run_installed(installed, "-c", program, *NAMES)

    assert (done.stdout, done.stderr) == ("".join((TOP / name).read_text() for name in NAMES), "")


def test_a_wheel_runs_without_the_checkout(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "root/etc").mkdir(parents=True)
    (tmp_path / "one.yaml").write_text("memory: 64MiB\n")
    commands = [
        ("version",),
        ("schema",),
        ("check", str(tmp_path / "one.yaml")),
        ("setup", "--root", str(tmp_path / "root")),
    ]
    modules = {verb.partition(":")[0] for verbs in VERBS.values() for verb in verbs.values()}

    imported = run_installed(installed, "-c", f"import {', '.join(sorted(modules))}")
    done = {words: run_installed(installed, "-m", "arcsup", *words) for words in commands}

    assert imported.stderr == ""
    assert {words: each.stderr for words, each in done.items() if each.returncode} == {}
    assert done["version",].stdout == f"arcsup {arcsup.__version__}\n"
