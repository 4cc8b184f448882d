"""Codecs: how a value of a file is read, written, and described. One table serves all three.

``read`` takes a node to a value or raises Problems with everything wrong below it; ``write`` is
its inverse (None: the key stays away); ``schema`` is JSON Schema (draft 2020-12); ``kind`` is a
word for people. Here are scalars and lists; struct.py has maps.
"""

import re
from collections.abc import Callable
from enum import StrEnum
from typing import Generic, Protocol, TypeAlias, TypeVar

from attrs import frozen

from arcsup.spec.faults import Problem, Problems
from arcsup.spec.nodes import Node, Scalar, Sequence, tell

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
E = TypeVar("E", bound=StrEnum)

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
"""What no text may hold: it shows as nothing, or as a line of its own."""

LONGEST_TEXT = 4096
"""Characters of a text, if nothing less is said: no path that Linux takes is longer (PATH_MAX)."""


class Codec(Protocol[T_co]):
    """Reads, writes and describes one kind of value."""

    @property
    def kind(self) -> str:
        """What is expected, in a few words."""
        ...

    def read(self, node: Node, path: str) -> T_co:
        """Return the value of a node. Raises Problems."""
        ...

    def write(self, value: object) -> Json:
        """Return what ``read`` takes back to the same value; None leaves the key out."""
        ...

    def schema(self) -> dict[str, Json]:
        """Return the JSON Schema of the value as it stands in a file."""
        ...


def wrong(node: Node, path: str, kind: str) -> Problems:
    """Return the problem of a node that is something else than expected."""
    if isinstance(node, Scalar) and node.type == "null":
        return Problems.one(node.mark, path, f"has no value, expected {kind} (or remove the key)")
    return Problems.one(node.mark, path, f"expected {kind}, got {tell(node)}")


@frozen
class Text:
    """Any text, also empty when ``least`` is 0. YAML's other types must be quoted."""

    kind: str = "text"
    pattern: str = ""
    least: int = 1
    most: int = LONGEST_TEXT
    lines: bool = False

    def read(self, node: Node, path: str) -> str:
        """Return the text."""
        if not isinstance(node, Scalar) or node.type == "null":
            raise wrong(node, path, self.kind)
        if node.type != "str":
            what = {"bool": "a boolean", "timestamp": "a date"}.get(node.type, "a number")
            raise Problems.one(
                node.mark,
                path,
                f'expected {self.kind}; YAML takes {node.text} for {what}, quote it: "{node.text}"',
            )
        text = node.text
        bare = text.replace("\n", "").replace("\t", "") if self.lines else text
        if bad := CONTROL.search(bare):
            raise Problems.one(
                node.mark, path, f"holds the control character U+{ord(bad[0]):04X}, remove it"
            )
        if not self.least <= len(text) <= self.most:
            size = "must not be empty" if not text else f"is longer than {self.most} characters"
            raise Problems.one(node.mark, path, size)
        if self.pattern and re.fullmatch(self.pattern, text) is None:
            raise wrong(node, path, self.kind)
        return text

    def write(self, value: object) -> Json:
        """Return the text, None for None."""
        return None if value is None else str(value)

    def schema(self) -> dict[str, Json]:
        """Return the schema of a string."""
        schema: dict[str, Json] = {"type": "string", "minLength": self.least}
        schema["maxLength"] = self.most
        if self.pattern:
            schema["pattern"] = f"^({self.pattern})$"
        return schema


@frozen
class Token(Generic[T]):
    """A value with a grammar of its own, taken as it is written.

    YAML 1.1 takes 52:54:00:12:34:56 for a number to base 60 and 0123 for an octal one; where the
    grammar is clear about what is meant, nobody needs to quote.
    """

    kind: str
    pattern: str
    parse: Callable[[str], T]
    show: Callable[..., Json] = str
    number: bool = False
    joined: bool = False
    """A list of tokens means the same as one text of them with commas between."""

    def read(self, node: Node, path: str) -> T:
        """Return what the grammar makes of the text."""
        if self.joined and isinstance(node, Sequence):
            parts = [item.text for item in node.items if isinstance(item, Scalar)]
            if len(parts) == len(node.items):
                node = Scalar(node.mark, "str", ",".join(parts))
        if not isinstance(node, Scalar) or node.type == "null":
            raise wrong(node, path, self.kind)
        if node.type == "bool":
            raise self._misread(node, path)
        try:
            return self.parse(node.text)
        except ValueError as error:
            raise Problems.one(node.mark, path, f"{tell(node)}: {error}") from None

    def _misread(self, node: Scalar, path: str) -> Problems:
        """Return the problem of a word that YAML takes for a boolean."""
        try:
            self.parse(node.text)
        except ValueError:
            return wrong(node, path, self.kind)
        message = f'YAML takes {node.text} for a boolean, quote it: "{node.text}"'
        return Problems.one(node.mark, path, f"expected {self.kind}; {message}")

    def write(self, value: object) -> Json:
        """Return the text, None for None."""
        return None if value is None else self.show(value)

    def schema(self) -> dict[str, Json]:
        """Return the schema of a string, or a number where a bare one is allowed."""
        schema: dict[str, Json] = {"type": ["string", "number"] if self.number else "string"}
        schema["pattern"] = f"^({self.pattern})$"
        if self.joined:
            schema["type"] = ["string", "number", "array"]
            schema["items"] = {"type": ["string", "integer"]}
        return schema


@frozen
class Number:
    """A whole decimal number."""

    least: int
    most: int

    @property
    def kind(self) -> str:
        """What is expected."""
        return f"a whole number from {self.least} to {self.most}"

    def read(self, node: Node, path: str) -> int:
        """Return the number."""
        if not isinstance(node, Scalar) or node.type == "null":
            raise wrong(node, path, self.kind)
        if node.type == "str" and re.fullmatch("[0-9]+", node.text):
            raise Problems.one(
                node.mark, path, f"expected {self.kind}, got the text {node.text!r}, unquote it"
            )
        if node.type == "int" and not re.fullmatch("[-+]?(0|[1-9][0-9]*)", node.text):
            raise Problems.one(
                node.mark,
                path,
                f"YAML takes {node.text} for a number to another base, write it in decimal",
            )
        # Longer digits are out of range, and Python refuses to convert very many of them.
        fits = node.type == "int" and len(node.text) <= 20 and int(node.text) <= self.most
        if not fits or int(node.text) < self.least:
            raise wrong(node, path, self.kind)
        return int(node.text)

    def write(self, value: object) -> Json:
        """Return the number, None for None."""
        return value if isinstance(value, int) else None

    def schema(self) -> dict[str, Json]:
        """Return the schema of an integer."""
        return {"type": "integer", "minimum": self.least, "maximum": self.most}


@frozen
class Flag:
    """true or false, also in YAML 1.1's words yes, no, on, off."""

    kind: str = "true or false"

    def read(self, node: Node, path: str) -> bool:
        """Return the boolean."""
        if not isinstance(node, Scalar) or node.type != "bool":
            raise wrong(node, path, self.kind)
        return node.text.lower() in {"true", "yes", "on"}

    def write(self, value: object) -> Json:
        """Return the boolean."""
        return bool(value)

    def schema(self) -> dict[str, Json]:
        """Return the schema of a boolean; to editors, which speak YAML 1.2, ``on`` is text."""
        return {"enum": [True, False, "yes", "no", "on", "off"]}


@frozen
class Choice(Generic[E]):
    """One of a few words."""

    words: type[E]

    @property
    def kind(self) -> str:
        """The words."""
        return " or ".join(", ".join(self.words).rsplit(", ", 1))

    def read(self, node: Node, path: str) -> E:
        """Return the member of the enumeration."""
        if isinstance(node, Scalar) and node.type == "str" and node.text in list(self.words):
            return self.words(node.text)
        raise wrong(node, path, self.kind)

    def write(self, value: object) -> Json:
        """Return the word."""
        return str(value)

    def schema(self) -> dict[str, Json]:
        """Return the schema of an enumeration."""
        return {"type": "string", "enum": [str(word) for word in self.words]}


@frozen
class Items(Generic[T]):
    """A list of one kind of value."""

    item: Codec[T]
    most: int = 64
    least: int = 0

    @property
    def kind(self) -> str:
        """What is expected."""
        return f"a list of {self.item.kind}"

    def read(self, node: Node, path: str) -> tuple[T, ...]:
        """Return the values, or what is wrong with any of them."""
        if not isinstance(node, Sequence):
            raise wrong(node, path, self.kind)
        if not self.least <= len(node.items) <= self.most:
            raise Problems.one(
                node.mark,
                path,
                f"has {len(node.items)} entries, expected {self.least} to {self.most}",
            )
        values: list[T] = []
        problems: list[Problem] = []
        for number, item in enumerate(node.items):
            try:
                values.append(self.item.read(item, f"{path}[{number}]"))
            except Problems as found:
                problems += found.problems
        if problems:
            raise Problems(problems)
        return tuple(values)

    def write(self, value: object) -> Json:
        """Return the list."""
        return [self.item.write(item) for item in value] if isinstance(value, tuple) else []

    def schema(self) -> dict[str, Json]:
        """Return the schema of an array."""
        schema: dict[str, Json] = {"type": "array", "items": self.item.schema()}
        schema |= {"minItems": self.least, "maxItems": self.most}
        return schema
