"""Codecs of maps: a table of keys, read into an attrs class, with rules across the keys."""

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Generic, TypeVar

import attrs
from attrs import field, frozen

from arcsup.spec.codec import Codec, Flag, Json, Token, wrong
from arcsup.spec.faults import Mark, Problem, Problems
from arcsup.spec.nodes import Mapping as MapNode
from arcsup.spec.nodes import Node, Scalar, locate, tell

T = TypeVar("T")
S = TypeVar("S", bound=attrs.AttrsInstance)
R = TypeVar("R", bound=attrs.AttrsInstance)

MOST_NAMED = 13
"""Keys that a message lists; the VM itself has more."""

MOST_HINTS = 50
"""Unknown keys of a map for which the nearest known one is looked for, which takes its time."""

LONGEST_NAME = 60
"""Characters of a key that a message shows; those that arcsup knows are shorter."""


@frozen
class Words(Generic[T]):
    """A few words with a meaning of their own before anything that ``other`` reads.

    ``words`` maps a word to its value; ``flags`` maps true and false where they have one.
    """

    other: Codec[T]
    words: Mapping[str, T] = field(factory=dict)
    flags: Mapping[bool, T] = field(factory=dict)

    @property
    def kind(self) -> str:
        """What is expected."""
        flags = [str(flag).lower() for flag in self.flags]
        return ", ".join([*self.words, *flags]) + f" or {self.other.kind}"

    def read(self, node: Node, path: str) -> T:
        """Return the word's value, else what ``other`` reads."""
        if isinstance(node, Scalar):
            if node.type == "str" and node.text in self.words:
                return self.words[node.text]
            if node.type == "bool" and self.flags:
                return self.flags[Flag().read(node, path)]
            if node.type in {"null", "bool", "str"} and not isinstance(self.other, Token):
                raise wrong(node, path, self.kind)
        elif isinstance(self.other, Struct) and not isinstance(node, MapNode):
            raise wrong(node, path, self.kind)
        return self.other.read(node, path)

    def write(self, value: object) -> Json:
        """Return the word or flag that means the value, else what ``other`` writes."""
        for word, meaning in self.words.items():
            if meaning == value:
                return word
        for flag, meaning in self.flags.items():
            if meaning == value:
                return flag
        return self.other.write(value)

    def schema(self) -> dict[str, Json]:
        """Return the schema of the alternatives."""
        constant: list[Json] = [*self.words, *self.flags]
        return {"anyOf": [{"enum": constant}, self.other.schema()]}


@frozen
class Key:
    """A key of a struct; ``attribute`` is the field of the attrs class that it fills."""

    name: str
    codec: Codec[object]
    meaning: str
    attribute: str = ""
    required: bool = False

    @property
    def target(self) -> str:
        """The field that the key fills: its own name in snake_case unless told otherwise."""
        return self.attribute or re.sub("([A-Z])", r"_\1", self.name).lower()


@frozen
class Rule(Generic[T]):
    """A check across keys, made when none of them is itself at fault.

    ``check`` yields (path relative to the struct, message).
    """

    keys: tuple[str, ...]
    check: Callable[[T], Iterable[tuple[str, str]]]


@frozen
class Struct(Generic[S]):
    """A map of known keys, read into an attrs class.

    ``reference`` tells where all keys are listed, for a struct with too many to name.
    """

    shape: type[S]
    keys: tuple[Key, ...]
    rules: tuple[Rule[S], ...] = ()
    reference: str = "the README's table and `arcsup schema` have all that there are"

    @property
    def kind(self) -> str:
        """What is expected."""
        return f"a map of {', '.join(key.name for key in self.keys[:MOST_NAMED])}"

    def read(self, node: Node, path: str) -> S:
        """Return the value, or what is wrong with any of the keys or between them."""
        value, problems = self.read_all(node, path, {})
        if problems or value is None:
            raise Problems(problems)
        return value

    def read_all(
        self, node: Node, path: str, given: Mapping[str, object]
    ) -> tuple[S | None, list[Problem]]:
        """Return the value with defaults for faulty keys (None without one), and all problems.

        ``given`` holds fields that are not in the file or have no fixed default.
        """
        if not isinstance(node, MapNode):
            raise wrong(node, path, self.kind)
        values: dict[str, object] = dict(given)
        problems: list[Problem] = []
        faulty: set[str] = set()
        known = {key.name: key for key in self.keys}
        unknown = 0
        for written, item in self._pairs(node, path, problems):
            name = written.text
            if name not in known:
                unknown += 1
                problems.append(self._unknown(written.mark, path, name, unknown))
                continue
            key = known[name]
            try:
                values[key.target] = key.codec.read(item, join(path, name))
            except Problems as found:
                problems += found.problems
                faulty.add(name)
        for key in self.keys:
            if key.required and key.name not in faulty and key.target not in values:
                problems.append(Problem(node.mark, join(path, key.name), "is missing"))
                faulty.add(key.name)
        if any(key.name in faulty and key.target not in values for key in self._needed()):
            return None, problems
        make: Callable[..., S] = self.shape
        value = make(**values)
        for rule in self.rules:
            if faulty.isdisjoint(rule.keys):
                problems += [
                    Problem(locate(node, at), join(path, at), message)
                    for at, message in rule.check(value)
                ]
        return value, problems

    def _needed(self) -> Iterator[Key]:
        fields = attrs.fields_dict(self.shape)
        return (key for key in self.keys if fields[key.target].default is attrs.NOTHING)

    def _pairs(
        self, node: MapNode, path: str, problems: list[Problem]
    ) -> Iterator[tuple[Scalar, Node]]:
        """Yield the keys that can be one, each once; note the others."""
        seen: dict[str, int] = {}
        for key, item in node.pairs:
            if not isinstance(key, Scalar) or key.type != "str":
                text = f', quote it: "{key.text}"' if isinstance(key, Scalar) else ""
                problems.append(Problem(key.mark, path, f"expected a key, got {tell(key)}{text}"))
            elif key.text in seen:
                problems.append(
                    Problem(
                        key.mark,
                        join(path, key.text),
                        f"the key is there already, on line {seen[key.text]}; remove one",
                    )
                )
            else:
                seen[key.text] = key.mark.line
                yield key, item

    def _unknown(self, mark: Mark, path: str, name: str, number: int) -> Problem:
        """Return what to say of the unknown key that is the ``number``-th of its map."""
        hint = self._hint(name) if number <= MOST_HINTS else self.reference
        return Problem(mark, join(path, name), f"unknown key, {hint}")

    def _hint(self, name: str) -> str:
        names = {_plain(key.name): key.name for key in self.keys}
        for key in self.keys:
            inner = key.codec.other if isinstance(key.codec, Words) else key.codec
            if isinstance(inner, Struct):
                for deeper in inner.keys:
                    names.setdefault(_plain(deeper.name), f"{key.name}.{deeper.name}")
        if name == "<<":
            return "merge keys are not supported; write the keys out"
        if close := difflib.get_close_matches(_plain(name), names, 1, 0.6):
            return f"did you mean {names[close[0]]}?"
        if len(self.keys) > MOST_NAMED:
            return self.reference
        return f"expected one of {', '.join(key.name for key in self.keys)}"

    def write(self, value: object) -> Json:
        """Return the map with every default filled in; keys without a value stay away.

        None, a map that is not there, stays so.
        """
        if value is None:
            return None
        fields = attrs.fields_dict(self.shape)
        written: dict[str, Json] = {}
        for key in self.keys:
            part: object = getattr(value, key.target)
            if part == "" and fields[key.target].default == "":
                continue
            json = key.codec.write(part)
            if json is not None:
                written[key.name] = json
        return written

    def schema(self) -> dict[str, Json]:
        """Return the schema of an object that has no other keys."""
        properties: dict[str, Json] = {}
        for key in self.keys:
            described: dict[str, Json] = {"description": key.meaning, **key.codec.schema()}
            default = self.default_of(key)
            if default is not None:
                described["default"] = default
            properties[key.name] = described
        schema: dict[str, Json] = {"type": "object", "additionalProperties": False}
        schema["properties"] = properties
        if required := [key.name for key in self.keys if key.required]:
            schema["required"] = list[Json](required)
        return schema

    def default_of(self, key: Key) -> Json:
        """Return a key's default as it would stand in a file; None when it has none."""
        default: object = attrs.fields_dict(self.shape)[key.target].default
        return None if default is attrs.NOTHING else key.codec.write(default)


@frozen
class OneOf(Generic[S, R]):
    """One of two structs; ``is_second`` tells by the node which one is meant."""

    first: Struct[S]
    second: Struct[R]
    is_second: Callable[[Node], bool]
    second_shape: type[R]

    @property
    def kind(self) -> str:
        """The keys of both."""
        names = (", ".join(key.name for key in one.keys) for one in (self.first, self.second))
        return "a map of " + " or of ".join(names)

    def read(self, node: Node, path: str) -> S | R:
        """Return the value of the struct that is meant."""
        if not isinstance(node, MapNode):
            raise wrong(node, path, self.kind)
        return (self.second if self.is_second(node) else self.first).read(node, path)

    def write(self, value: object) -> Json:
        """Return the map of the struct that the value is of."""
        chosen = self.second if isinstance(value, self.second_shape) else self.first
        return chosen.write(value)

    def schema(self) -> dict[str, Json]:
        """Return the schema of the alternatives."""
        return {"anyOf": [self.first.schema(), self.second.schema()]}


def join(path: str, name: str) -> str:
    """Return the path of a key below ``path``, on one line whatever the key is."""
    if not name.isprintable() or len(name) > LONGEST_NAME:
        name = repr(name[:LONGEST_NAME])
    return f"{path}.{name}" if path and name and name[0] != "[" else path + name


def _plain(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name.lower())
