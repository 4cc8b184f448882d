"""What the README says is true."""

import os
import re
from pathlib import Path

import click

from arcsup.cli.main import cli
from arcsup.errors import ExitCode
from arcsup.spec.schema import vm_reference

TOP = Path(__file__).parent.parent
BEGIN, END = "<!-- reference: begin -->\n", "<!-- reference: end -->\n"


def test_the_reference_of_the_vm_file_is_the_readers_own_table() -> None:
    readme = TOP / "README.md"
    text = readme.read_text()
    before, _, rest = text.partition(BEGIN)
    old, _, after = rest.partition(END)
    wanted = f"\n{vm_reference().strip()}\n\n"
    if os.environ.get("ARCSUP_WRITE_GOLDEN"):
        readme.write_text(before + BEGIN + wanted + END + after)
        old = wanted

    assert old == wanted, "run this test with ARCSUP_WRITE_GOLDEN=1"


def test_every_verb_that_it_names_is_there() -> None:
    table = (TOP / "README.md").read_text().partition("## The verbs")[2].partition("\n\nNames")[0]
    named = set(re.findall(r"`([a-z-]+)", table))

    assert named <= set(cli.list_commands(click.Context(cli)))
    assert {"list", "why", "stop", "kill", "check"} <= named


def test_every_exit_code_is_told() -> None:
    told = re.search(r"Exit codes: (.*)", (TOP / "README.md").read_text())
    assert told is not None
    numbers = {int(number) for number in re.findall(r"\b(\d+) [a-z]", told[1])}

    assert numbers == set(ExitCode)


def test_what_it_links_to_is_there() -> None:
    for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"):
        for target in re.findall(r"\]\(([^)#:]+)\)", (TOP / name).read_text()):
            assert (TOP / target).exists(), f"{name} links to {target}"


def test_every_room_that_the_architecture_names_is_there() -> None:
    text = (TOP / "ARCHITECTURE.md").read_text()
    for path in re.findall(r"`((?:[a-z_]+/)+(?:[a-z_]+\.py)?|[a-z_]+\.py)`", text):
        assert (TOP / "arcsup" / path).exists() or (TOP / path).exists(), path
