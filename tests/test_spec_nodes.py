import pytest

from arcsup.spec.faults import Mark, Problems
from arcsup.spec.nodes import DEEPEST, LARGEST_FILE, compose, locate


def problem(source: str | bytes) -> tuple[int, int, str]:
    with pytest.raises(Problems) as caught:
        compose(source)
    (found,) = caught.value.problems
    return found.mark.line, found.mark.column, found.message


@pytest.mark.parametrize(
    ("source", "line", "column", "words"),
    [
        ("", 1, 1, "the file is empty"),
        ("# nothing but a comment\n", 1, 1, "the file is empty"),
        ("---\n...\n", 1, 1, "the file is empty"),
        ("- a\n", 1, 1, "expected a map of keys and values, got a list"),
        ("just text\n", 1, 1, "expected a map of keys and values, got 'just text'"),
        ("a: 1\n---\nb: 2\n", 2, 1, "a second document"),
        ("a:\n\tb: 1\n", 2, 1, "a tab is used for indentation, use spaces"),
        ("a: [1, 2\n", 2, 1, "no YAML"),
        ("a: 'never closed", 1, 17, "no YAML"),
        ("a: b: c", 1, 5, "mapping values are not allowed"),
        ("a: *nowhere\n", 1, 4, "alias *nowhere"),
        ("a: &b [*b]\n", 1, 8, "alias *b has no finished anchor"),
        ("a: !!python/object:os.system x\n", 1, 4, "is not supported, remove it"),
        ("a: !mine {b: 1}\n", 1, 4, "tag '!mine' is not supported"),
        ("a: x\x00y\n", 1, 5, "character U+0000"),
        ("é: 1\nb: \x1b\n", 2, 4, "character U+001B"),
        (b"a: 1\nb: \xff\n", 2, 4, "byte 0xff is no UTF-8"),
        ("ok: 1\nb: \ud800\n", 2, 4, "character U+D800"),
        ("a: " + "[" * 40, 1, 3 + DEEPEST, f"nested deeper than {DEEPEST} levels"),
    ],
)
def test_what_is_no_map_is_told_with_its_place(
    source: str | bytes, line: int, column: int, words: str
) -> None:
    found = problem(source)

    assert (line, column) == found[:2]
    assert words in found[2]


def test_a_file_that_is_too_long_is_not_parsed() -> None:
    assert problem(b"#" * (LARGEST_FILE + 1)) == (1, 1, "the file is longer than 1 MiB")


def test_a_billion_laughs_end_at_the_limit() -> None:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [
        f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]"
        for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    ]
    # Written out they are 387 million.
    assert problem("\n".join(lines))[2] == "more than 20000 values (aliases written out)"


def test_nothing_behind_the_limit_is_read() -> None:
    line, _, message = problem("- a\n" * 200_000 + "]\n")

    assert message == "more than 20000 values (aliases written out)"
    assert line == 20_000


def test_columns_count_characters_not_bytes() -> None:
    root = compose("äöü: {ß: 1, x: 2}\n")

    assert locate(root, "äöü.x") == Mark(1, 16)


def test_a_byte_order_mark_is_passed_over() -> None:
    assert compose(b"\xef\xbb\xbfname: x\n").find("name") is not None


def test_the_nearest_part_of_a_path_is_located() -> None:
    root = compose("a:\n  - b: 1\n    c: [5, 6]\n")

    assert locate(root, "a[0].c[1]") == Mark(3, 12)
    assert locate(root, "a[0].nothing[3]") == Mark(2, 5)
    assert locate(root, "") == Mark(1, 1)


def test_an_alias_stands_where_it_is_used() -> None:
    root = compose("a: &x [1, 2]\nb: *x\n")

    assert locate(root, "b") == Mark(2, 4)
