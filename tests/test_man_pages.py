"""The man pages are made from the command line: every verb has one, and man(1) reads it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from arcsup.cli.main import VERBS
from tests.guest import TOP


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("man")
    subprocess.run([sys.executable, TOP / "contrib/man/make_pages.py", folder], check=True)
    return {page.name: page for page in folder.iterdir()}


def test_every_verb_has_a_page_with_its_summary_and_example(pages: dict[str, Path]) -> None:
    names = [name for verbs in VERBS.values() for name in verbs]

    assert {f"arcsup-{name}.1" for name in names} | {"arcsup.1"} <= set(pages)
    assert "arcsup-gpu-list.1" in pages
    listed = pages["arcsup.1"].read_text()
    escaped = [f"arcsup-{name}".replace("-", r"\-") for name in names]
    assert all(f".BR {name} (1)" in listed for name in escaped)
    stop = pages["arcsup-stop.1"].read_text()
    assert ".SH EXAMPLE\n" in stop
    assert "\\-\\-timeout" in stop


@pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not installed")
def test_groff_has_nothing_to_say_against_them(pages: dict[str, Path]) -> None:
    for page in pages.values():
        done = subprocess.run(
            ["groff", "-man", "-ww", "-Kutf8", "-Tutf8", "-z", page],
            capture_output=True,
            check=True,
        )
        assert done.stderr == b"", page.name
