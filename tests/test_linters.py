"""The linters, and what must be true of the project as a whole. ``make lint`` runs this file."""

import email
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

import arcsup
from tests.guest import TOP

BIN = Path(sys.executable).parent


def run(*argv: str | Path, environment: dict[str, str] | None = None, text: str = "") -> str:
    """Run a program on the checkout; its findings are the failure's message."""
    result = subprocess.run(
        argv,
        cwd=TOP,
        env=os.environ | (environment or {}),
        input=text,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if result.returncode != 0:
        pytest.fail(f"{' '.join(map(str, argv[:3]))}:\n{result.stdout}", pytrace=False)
    return result.stdout


def tool(name: str) -> str:
    """Find a tool that a distribution may not have; contrib/dev/setup installs those of Debian."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def test_ruff_finds_nothing() -> None:
    run(BIN / "ruff", "check", ".")


def test_the_code_is_formatted() -> None:
    run(BIN / "ruff", "format", "--check", ".")


def test_mypy_finds_nothing() -> None:
    run(BIN / "mypy")


def test_imports_point_one_way() -> None:
    run(BIN / "lint-imports")


def test_shellcheck_finds_nothing_in_scripts() -> None:
    scripts = run(TOP / "contrib/dev/shell-scripts").split()
    assert "contrib/dev/setup" in scripts
    run(tool("shellcheck"), "--external-sources", "--source-path=SCRIPTDIR", *scripts)


def test_shellcheck_finds_nothing_in_the_completion() -> None:
    completion = run(BIN / "arcsup", "completion", "bash")
    # Click writes it so: read without -r, and words unquoted where they may be split.
    accepted = "--exclude=SC2086,SC2162,SC2206,SC2207"
    run(tool("shellcheck"), "--shell=bash", accepted, "-", text=completion)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_is_no_syntax_error(shell: str) -> None:
    completion = run(BIN / "arcsup", "completion", shell)
    # Not /dev/stdin: zsh and fish take standard input for a script without an argument.
    run(tool(shell), "-n", text=completion)


def test_make_help_lists_every_target() -> None:
    makefile = (TOP / "Makefile").read_text()
    targets = set(re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE))
    assert targets == set(re.findall(r"^make ([a-z-]+)  +\w", run("make"), re.MULTILINE))
    assert {"help", "demo", "test", "lint", "bench", "lab", "lab-shell", "install"} <= targets


@pytest.mark.parametrize(
    ("unit", "option"),
    [("arcsup.service", "--system"), ("user/arcsup.service", "--user")],
)
def test_systemd_accepts_the_unit(unit: str, option: str, tmp_path: Path) -> None:
    analyze = tool("systemd-analyze")
    text = (TOP / "contrib/systemd" / unit).read_text()
    copy = tmp_path / "arcsup.service"
    # systemd looks whether the program is there.
    copy.write_text(text.replace("/usr/bin/arcsup", "/bin/true"))
    output = run(
        analyze, option, "--man=no", "verify", copy, environment={"XDG_RUNTIME_DIR": str(tmp_path)}
    )
    assert "arcsup.service" not in output, output


def test_the_daemons_unit_gives_up_what_the_job_does_not_need() -> None:
    analyze = tool("systemd-analyze")

    # Tenths of the exposure that systemd-analyze computes: 0 is all walls, 100 none.
    checked = [analyze, "security", "--offline=true", "--threshold=76"]
    finished = subprocess.run(
        [*checked, TOP / "contrib/systemd/arcsup.service"], capture_output=True, text=True
    )

    assert finished.returncode == 0, finished.stdout[-2000:]


def test_the_unit_lets_vms_outlive_the_daemon() -> None:
    unit = (TOP / "contrib/systemd/arcsup.service").read_text().splitlines()
    assert {"KillMode=process", "RuntimeDirectoryPreserve=yes", "Delegate=yes"} <= set(unit)
    # Each of these takes away something that the daemon needs; the unit says what.
    harmful = ("ProtectKernelTunables", "PrivateDevices", "PrivateNetwork", "ProtectClock")
    assert not [line for line in unit if line.startswith(harmful)]


def test_every_python_file_has_a_docstring_that_says_what_it_is() -> None:
    for file in sorted(TOP.glob("arcsup/**/*.py")):
        assert file.read_text().lstrip("#! \n").startswith('"""'), file


def test_the_licence_is_what_the_metadata_says() -> None:
    project = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
    assert project["license"] == {"text": "Apache-2.0"}
    assert "Apache License" in (TOP / "LICENSE").read_text()[:200]
    # An upper bound would keep arcsup from the next Python before anybody has tried.
    assert project["requires-python"] == ">=3.11"


def test_the_changelog_begins_with_what_is_not_released_or_is_this_version() -> None:
    headings = re.findall(r"^## \[(.*?)\]", (TOP / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] in {"Unreleased", arcsup.__version__}


def build(kind: str, directory: Path) -> Path:
    """Build a ``wheel`` or ``sdist`` with the build backend, which the test extra installs."""
    program = "import sys, hatchling.build as b; print(getattr(b, sys.argv[1])(sys.argv[2]))"
    name = run(sys.executable, "-c", program, f"build_{kind}", str(directory)).split()[-1]
    return directory / name


def files_of(names: Sequence[str], prefix: str) -> set[str]:
    return {name.removeprefix(prefix) for name in names if not name.endswith("/")}


def test_the_wheel_has_the_package_its_scripts_and_nothing_else(tmp_path: Path) -> None:
    with zipfile.ZipFile(build("wheel", tmp_path)) as wheel:
        names = wheel.namelist()
        info = f"arcsup-{arcsup.__version__}.dist-info"
        metadata = email.message_from_bytes(wheel.read(f"{info}/METADATA"))
        scripts = wheel.read(f"{info}/entry_points.txt").decode()
    assert {name.split("/")[0] for name in names} == {"arcsup", info}
    assert {"arcsup/__main__.py", "arcsup/daemon.py", "arcsup/py.typed"} <= set(names)
    assert (metadata["Name"], metadata["Version"]) == ("arcsup", arcsup.__version__)
    assert metadata["Requires-Python"] == ">=3.11"
    assert "arcsup = arcsup.__main__:main" in scripts
    assert "arcd = arcsup.__main__:main" in scripts


def test_the_sdist_has_what_make_test_needs(tmp_path: Path) -> None:
    with tarfile.open(build("sdist", tmp_path)) as archive:
        names = files_of(archive.getnames(), f"arcsup-{arcsup.__version__}/")
    wanted = {"Makefile", "LICENSE", "contrib/dev/setup", "contrib/guest/init"}
    assert wanted | {"tests/guest.py", "config/arcsup.yaml"} <= names
