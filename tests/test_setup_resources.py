"""What setup puts on a host is the same in a checkout and in an installed wheel."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

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


def test_the_wheel_works_without_the_checkout(tmp_path: Path) -> None:
    build = "import sys, hatchling.build as b; print(b.build_wheel(sys.argv[1]))"
    subprocess.run(
        [sys.executable, "-c", build, str(tmp_path)], cwd=TOP, check=True, capture_output=True
    )
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    program = (
        "import sys; from arcsup.setup.resources import read_resource, FOLDERS;"
        "assert 'installed' in str(FOLDERS[0]), FOLDERS;"
        "print(*(read_resource(name) for name in sys.argv[1:]), sep='', end='')"
    )

    done = subprocess.run(
        [sys.executable, "-c", program, *NAMES],
        cwd=tmp_path / "installed",
        env={"PYTHONPATH": str(tmp_path / "installed")},
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.stdout, done.stderr) == ("".join((TOP / name).read_text() for name in NAMES), "")
