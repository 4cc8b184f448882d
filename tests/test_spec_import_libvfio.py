from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from arcsup.errors import SpecError
from arcsup.spec.comments import find_comments
from arcsup.spec.imported import Form, import_vm
from arcsup.spec.native import load_vm
from tests.mutated import mutations

DATA = Path(__file__).parent / "data" / "import"


def load(name: str) -> str:
    return import_vm((DATA / name).read_bytes(), DATA / name).text


@pytest.mark.parametrize("name", ["workstation.yaml", "first.yaml"])
def test_the_native_file_is_the_same_vm(name: str) -> None:
    assert load_vm(load(name), Path(name), "0") == load_vm(
        (DATA / name).read_bytes(), DATA / name, "0"
    )


def test_comments_stay_with_their_keys() -> None:
    text = load("workstation.yaml")

    assert text.startswith("# A workstation as LibVF.IO 1.0.5 writes it")
    assert "# What people call it\ndescription: 'CAD # 1'  # third floor\n" in text
    assert "  cores: 6  # half of them\n" in text
    assert "  # the golden image\n  - path: /srv/arc/kernel/workstation.arc  # do not" in text
    assert "# from the big card\ngpus:\n  - kind: vgpu\n    # at least\n    minVRam:" in text


def test_no_comment_and_no_note_is_lost() -> None:
    source = (DATA / "workstation.yaml").read_text()
    imported = import_vm(source, DATA / "workstation.yaml")

    for _, comment in find_comments(source).take_rest():
        assert comment in imported.text
    assert imported.notes
    for note in imported.notes:
        assert str(note) in imported.text


def test_a_comment_is_no_part_of_a_text() -> None:
    source = (
        "# top\na: 'x # y'  # behind\nb: u#v\nc:\n  - 1\n  # above\n  - 2\nd: |\n  # text\n# end\n"
    )
    found = find_comments(source)

    assert found.above == {2: ["top"], 7: ["above"], 11: ["end"]}
    assert found.behind == {2: ["behind"]}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("memory: 2GiB\n", "box.yaml:1:1: is no file of LibVF.IO"),
        ("", "box.yaml:1:1: the file is empty"),
        ("container: 1\n", "box.yaml:1:12: container: expected a map of kernel"),
        ("root: /x\ncontainer: {kernel: a}\nspice: true\nspicePort: 2222\n", "2222 is taken"),
    ],
)
def test_what_cannot_be_imported_is_told_at_its_place(text: str, expected: str) -> None:
    with pytest.raises(SpecError) as caught:
        import_vm(text, Path("box.yaml"))
    assert expected in caught.value.message


def test_a_file_whose_name_is_no_name_gets_one() -> None:
    text = import_vm("root: /x\ncontainer: {kernel: a}\n", Path("#.yaml")).text

    assert yaml.safe_load(text)["name"] == "imported"


SEEDS = [(DATA / name).read_text() for name in ("workstation.yaml", "first.yaml")]
SEEDS += [(DATA / name).read_text() for name in ("build.xml", "104.conf")]


def check(source: str | bytes, form: Form | None) -> None:
    imported, faults = None, [""]
    try:
        imported = import_vm(source, Path("box.yaml"), form)
    except SpecError as error:
        faults = error.message.splitlines()
    if imported is None:
        assert all(line.startswith("box.yaml:") for line in faults)
        return
    assert load_vm(imported.text, Path("box.yaml"), "0").name == imported.name
    assert all("\n" not in str(note) for note in imported.notes)


@given(mutations(SEEDS, "<>/=':-[]{}\"&*!~# \n0129.,;%noay"))
@settings(max_examples=400, deadline=None)
def test_whatever_is_imported_is_a_native_file(source: str) -> None:
    check(source, None)


@given(st.binary(max_size=200) | st.text(max_size=80), st.sampled_from(Form))
@settings(deadline=None)
def test_no_input_does_anything_but_give_a_file_or_faults(source: str | bytes, form: Form) -> None:
    check(source, form)
