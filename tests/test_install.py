"""The scripts that install arcsup: make install, contrib/install.sh, each with fake programs."""

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from arcsup.spec.config import load_config
from tests.host_tree import write

TOP = Path(__file__).parent.parent

PYTHON = """#!/bin/sh
[ -z "$RECORD" ] || echo "$*" >>"$RECORD"
case "$1 $2" in
"-c import sys; print"*) echo "$0" ;;
"-m venv") mkdir -p "$4/bin"; echo "home = $4" >"$4/pyvenv.cfg"
    cp "$0" "$4/bin/python"; cp "$0" "$4/bin/arcsup" ;;
esac
"""

APT_CACHE = """#!/bin/sh
[ "$LC_ALL" = C ] && echo '  Candidate: 3.13.5-1' || echo '  Installationskandidat: 3.13.5-1'
"""

RECORDING = """#!/bin/sh
echo "${0##*/} $*" >>"$RECORD"
"""


def make_install(tmp_path: Path) -> Path:
    """Install below a directory and return the configuration there."""
    python = write(tmp_path, "bin/python", PYTHON, 0o755)
    target = tmp_path / "target"
    environment = os.environ | {"ARCSUP_PYTHON": str(python), "DESTDIR": str(target)}
    subprocess.run([TOP / "contrib/install"], env=environment, check=True, capture_output=True)
    return target / "etc/arcsup/arcsup.yaml"


def test_members_of_the_group_may_use_the_socket_after_make_install(tmp_path: Path) -> None:
    config = make_install(tmp_path)

    assert load_config(config).group == "arcsup"
    assert config.stat().st_mode & 0o777 == 0o644


def test_make_install_leaves_a_configuration_that_is_there(tmp_path: Path) -> None:
    write(tmp_path, "target/etc/arcsup/arcsup.yaml", "resync: 5s\n")

    assert make_install(tmp_path).read_text() == "resync: 5s\n"


def test_make_install_takes_nothing_without_a_hash_that_the_project_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECORD", str(tmp_path / "record"))

    make_install(tmp_path)

    calls = (tmp_path / "record").read_text().splitlines()
    fetching = [call for call in calls if "-m pip" in call and "--no-index" not in call]
    assert len(fetching) == 3
    for call in fetching:
        assert "--require-hashes" in call or {"--no-deps", "--no-build-isolation"} <= {
            *call.split()
        }


def normalized(name: str) -> str:
    """Return a distribution's name as indexes write it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("lock", ["runtime", "build", "development"])
def test_every_library_is_pinned_with_hashes(lock: str) -> None:
    project = tomllib.loads((TOP / "pyproject.toml").read_text())
    needed = {
        "runtime": project["project"]["dependencies"],
        "build": project["dependency-groups"]["build"],
        "development": [
            *project["project"]["dependencies"],
            *project["project"]["optional-dependencies"]["test"],
            *project["project"]["optional-dependencies"]["lab"],
            *project["dependency-groups"]["build"],
        ],
    }
    entries = re.split(r"\n(?=\S)", (TOP / f"contrib/lock/{lock}.txt").read_text())
    pinned = {}
    for entry in entries:
        if not entry.startswith("#"):
            name, _, rest = entry.partition("==")
            pinned[normalized(name)] = rest
            assert "--hash=sha256:" in rest, name

    names = {normalized(re.split(r"[\[<>=~! ]", it)[0]) for it in needed[lock]}
    assert names <= pinned.keys()


@pytest.mark.skipif(os.geteuid() != 0, reason="the script asks sudo for root first")
def test_the_script_installs_the_package_whatever_language_apt_speaks(tmp_path: Path) -> None:
    folder = tmp_path / "arcsup"
    write(folder, "dist/arcsup_1.0_amd64.deb")
    (folder / "contrib").mkdir()
    shutil.copy(TOP / "contrib/install.sh", folder / "contrib")
    write(tmp_path, "bin/apt-cache", APT_CACHE, 0o755)
    for name in ("apt-get", "dpkg", "make", "arcsup"):
        write(tmp_path, f"bin/{name}", RECORDING, 0o755)
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    environment = {"PATH": path, "RECORD": str(tmp_path / "record"), "LANG": "de_DE.UTF-8"}

    script = folder / "contrib/install.sh"
    subprocess.run([script], env=environment, check=True, stdin=subprocess.DEVNULL)

    calls = (tmp_path / "record").read_text().splitlines()
    assert calls[1] == "dpkg --compare-versions 3.13.5-1 ge 3.11"
    assert calls[2].endswith("/arcsup.deb")
    assert calls[3:] == ["arcsup setup", "arcsup setup --apply"]
