"""A VM file in another system's words -> a tree in arcsup's own, each value with its place there.

The tree goes through the same table as a native file, so that whatever is wrong is told at the
line and column of the file that a person wrote, and ``imported.py`` can write it out beside the
comments of those lines.
"""

import re
from collections.abc import Mapping as AbstractMapping
from collections.abc import Sequence as AbstractSequence
from typing import TypeAlias

from attrs import define, field, frozen

from arcsup.spec.faults import Mark, Problem
from arcsup.spec.nodes import Mapping, Node, Scalar, Sequence
from arcsup.spec.units import parse_name

Value: TypeAlias = (
    "bool | int | str | AbstractSequence[Value] | AbstractMapping[str, Value | None] | At"
)

Keys: TypeAlias = "dict[str, Value | None]"
"""A map on its way; a key whose value is None stays away."""

LONGEST_NAME = 63


@frozen
class At:
    """A value, and where what it was made of stands; ``key`` is the place of that one's key."""

    value: Value
    mark: Mark
    key: Mark | None = None


def on_one_line(text: str) -> str:
    """Return a text that ends no line: what another's file says must not go on as our own."""
    return "".join(character if character.isprintable() else " " for character in text)


@frozen
class Note:
    """What a person must know: it is not carried over, or is otherwise than it was.

    ``path`` is in the words of the file that ``mark`` is a place of.
    """

    mark: Mark
    path: str = field(converter=on_one_line)
    message: str = field(converter=on_one_line)

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


@define
class Draft:
    """The native tree as far as it is made, with notes and everything found wrong."""

    mark: Mark
    keys: Keys = field(factory=dict)
    notes: list[Note] = field(factory=list)
    problems: list[Problem] = field(factory=list)

    def note(self, mark: Mark, path: str, message: str) -> None:
        """Tell something of a place."""
        self.notes.append(Note(mark, path, message))

    def refuse(self, mark: Mark, path: str, message: str) -> None:
        """Tell something wrong with a place."""
        self.problems.append(Problem(mark, path, message))

    def tree(self) -> Mapping:
        """Return the native file as nodes."""
        node = make_node(self.keys, self.mark)
        assert isinstance(node, Mapping)
        return node


def make_node(value: Value, mark: Mark) -> Node:
    """Return a value as nodes; what has no place of its own has that of what it is in."""
    if isinstance(value, At):
        return make_node(value.value, value.mark)
    if isinstance(value, bool):
        return Scalar(mark, "bool", "true" if value else "false")
    if isinstance(value, int):
        return Scalar(mark, "int", str(value))
    if isinstance(value, str):
        return Scalar(mark, "str", value)
    if isinstance(value, AbstractMapping):
        pairs = tuple(
            (Scalar(_key_mark(item, mark), "str", key), make_node(item, mark))
            for key, item in value.items()
            if item is not None
        )
        return Mapping(mark, pairs, 1 + 2 * len(pairs))
    items = tuple(make_node(item, mark) for item in value)
    return Sequence(mark, items, 1 + len(items))


def _key_mark(value: Value, mark: Mark) -> Mark:
    return (value.key or value.mark) if isinstance(value, At) else mark


def make_name(label: str) -> str:
    """Return the VM name nearest to a label, "" when nothing of it can be in one."""
    return re.sub("[^a-z0-9]+", "-", label.lower()).strip("-")[:LONGEST_NAME].strip("-")


def is_name(text: str) -> bool:
    """Tell whether a VM can have this name."""
    try:
        parse_name(text)
    except ValueError:
        return False
    return True
