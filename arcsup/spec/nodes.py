"""YAML text -> a bounded tree of nodes that know their place, or the first thing wrong.

The tree is built from the parser's events (libyaml where PyYAML has it), because PyYAML's own
composer recurses without limit and expands nothing it could count. Tags are resolved as YAML 1.1
says, which is what PyYAML does; typing strictly is the codecs' business.
"""

import re
from collections.abc import Iterable, Iterator

import yaml
from attrs import evolve, field, frozen
from yaml.resolver import Resolver

from arcsup.spec.faults import Mark, Problems

LARGEST_FILE = 1 << 20
"""Bytes of the longest file that is read."""

DEEPEST = 32
"""Levels of maps and lists."""

MOST_NODES = 20_000
"""Nodes of the tree with every alias written out: a "billion laughs" file ends here."""

LONGEST_NUMBER = 1000
"""Characters of a plain scalar that may be a number or a date. The patterns of YAML 1.1 go back
over a long one again and again, and hold up every thread meanwhile."""

LIBVFIO_TAGS = "tag:nimyaml.org,2016:"
"""What the tags of a LibVF.IO file begin with; its own is ``custom:Config``, on the whole."""

_TAG = "tag:yaml.org,2002:"
_KNOWN_TAGS = {_TAG + word for word in ("str", "int", "float", "bool", "null", "timestamp")}
_PARSER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_IMPLICIT: dict[str | None, list[tuple[str, re.Pattern[str]]]] = Resolver.yaml_implicit_resolvers
# What YAML 1.1 allows in a stream (section 5.1); PyYAML tells faults of this kind without a line.
_NOT_PRINTABLE = re.compile(
    "[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]|\ufeff"
)
_BREAK = re.compile("\r\n|[\r\n\x85\u2028\u2029]")


@frozen
class Scalar:
    """A single value: its text, and what YAML takes it for (str, int, bool, null, …)."""

    mark: Mark
    type: str
    text: str
    size: int = 1


@frozen
class Sequence:
    """A list. ``size`` counts the nodes in it with aliases written out."""

    mark: Mark
    items: tuple["Node", ...]
    size: int


@frozen
class Mapping:
    """A map as it was written: keys may be of any kind and come twice. ``tag`` is LibVF.IO's."""

    mark: Mark
    pairs: tuple[tuple["Node", "Node"], ...]
    size: int
    tag: str = ""

    def find(self, key: str) -> "Node | None":
        """Return the value of a key, None when it is not there."""
        for name, value in self.pairs:
            if isinstance(name, Scalar) and name.text == key:
                return value
        return None


Node = Scalar | Sequence | Mapping


@frozen
class _Open:
    """A map or list whose end has not been seen yet."""

    mark: Mark
    anchor: str | None
    is_map: bool
    tag: str = ""
    children: list[Node] = field(factory=list)


def compose(source: str | bytes, *, may_be_empty: bool = False) -> Mapping:
    """Return the map that a file's text holds. Raises Problems with the first thing wrong.

    Most often a file without keys is one that is just being written, and no wish for defaults.
    LibVF.IO's tags are taken in a file that is tagged as one as a whole, and nowhere else.
    """
    text = decode(source)
    foreign: list[yaml.NodeEvent] = []
    try:
        root = _build(_collect_foreign(yaml.parse(text, Loader=_PARSER), foreign))
    except yaml.MarkedYAMLError as error:
        raise _syntax_problem(error, text) from None
    except yaml.YAMLError as error:
        raise Problems.whole(f"no YAML: {error}") from None
    if root is None or (isinstance(root, Scalar) and root.type == "null"):
        if may_be_empty:
            return Mapping(Mark(1, 1), (), 0)
        raise Problems.whole("the file is empty, expected a map of keys and values")
    if not isinstance(root, Mapping):
        raise Problems.one(root.mark, "", f"expected a map of keys and values, got {tell(root)}")
    if foreign and not root.tag:
        raise _unsupported(foreign[0])
    return root


def decode(source: str | bytes) -> str:
    """Return the text of a file. Raises Problems when it is too long or holds no text."""
    if len(source) > LARGEST_FILE:
        raise Problems.whole(f"the file is longer than {LARGEST_FILE >> 20} MiB")
    if isinstance(source, bytes):
        try:
            text = source.decode("utf-8")
        except UnicodeDecodeError as error:
            good = source[: error.start].decode("utf-8")
            byte = source[error.start]
            raise Problems.one(
                mark_at(good, len(good)), "", f"byte 0x{byte:02x} is no UTF-8, save it as UTF-8"
            ) from None
    else:
        text = source
    text = text.removeprefix("\ufeff")
    if bad := _NOT_PRINTABLE.search(text):
        raise Problems.one(
            mark_at(text, bad.start()),
            "",
            f"character U+{ord(bad[0]):04X} is not allowed in YAML, remove it",
        )
    return text


def mark_at(text: str, index: int) -> Mark:
    """Return line and column of the character at ``index``, as libyaml counts lines."""
    line, start = 1, 0
    for match in _BREAK.finditer(text, 0, index):
        line, start = line + 1, match.end()
    return Mark(line, index - start + 1)


def tell(node: Node) -> str:
    """Return what a node is, in words for a message."""
    if isinstance(node, Mapping):
        return "a map"
    if isinstance(node, Sequence):
        return "a list"
    if node.type == "null":
        return "nothing"
    shown = node.text if len(node.text) <= 60 else node.text[:57] + "…"
    words = {"bool": "the boolean ", "int": "the number ", "float": "the number "}
    return f"{words.get(node.type, '')}{shown!r}"


def locate(root: Node, path: str) -> Mark:
    """Return the place of the value at ``path``, or of the nearest part of it that is there."""
    node = root
    for step in re.findall(r"[^.\[\]]+", path):
        found: Node | None = None
        if isinstance(node, Mapping):
            found = node.find(step)
        elif isinstance(node, Sequence) and step.isdigit() and int(step) < len(node.items):
            found = node.items[int(step)]
        if found is None:
            break
        node = found
    return node.mark


def _mark(event: yaml.Event) -> Mark:
    start = event.start_mark
    return Mark(start.line + 1, start.column + 1) if start is not None else Mark()


def _build(events: Iterable[yaml.Event]) -> Node | None:
    """Return the root of the only document, None when there is none."""
    anchors: dict[str, Node] = {}
    stack: list[_Open] = []
    root: Node | None = None
    total = 0
    for event in events:
        node: Node | None = None
        anchor: str | None = None
        if isinstance(event, yaml.DocumentStartEvent) and root is not None:
            raise Problems.one(_mark(event), "", "a second document begins, expected only one")
        if isinstance(event, yaml.CollectionStartEvent):
            stack.append(_open(event, len(stack)))
            total += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            opened = stack.pop()
            node, anchor = _close(opened), opened.anchor
        elif isinstance(event, yaml.ScalarEvent):
            node, anchor = _scalar(event), event.anchor
            total += 1
        elif isinstance(event, yaml.AliasEvent):
            node = _alias(event, anchors)
            total += node.size
        if total > MOST_NODES:
            raise Problems.one(
                _mark(event), "", f"more than {MOST_NODES} values (aliases written out)"
            )
        if node is None:
            continue
        if anchor is not None:
            anchors[anchor] = node
        if stack:
            stack[-1].children.append(node)
        else:
            root = node
    return root


def _collect_foreign(
    events: Iterable[yaml.Event], foreign: list[yaml.NodeEvent]
) -> Iterator[yaml.Event]:
    """Yield the events on, and note those with a tag of LibVF.IO's."""
    for event in events:
        if isinstance(event, yaml.NodeEvent) and _tag_of(event).startswith(LIBVFIO_TAGS):
            foreign.append(event)
        yield event


def _tag_of(event: yaml.NodeEvent) -> str:
    tag: str | None = getattr(event, "tag", None)
    return tag or ""


def _unsupported(event: yaml.NodeEvent) -> Problems:
    return Problems.one(_mark(event), "", f"tag {_tag_of(event)!r} is not supported, remove it")


def _open(event: yaml.CollectionStartEvent, depth: int) -> _Open:
    mark = _mark(event)
    if depth >= DEEPEST:
        raise Problems.one(mark, "", f"nested deeper than {DEEPEST} levels")
    if event.tag is not None and not event.tag.startswith(LIBVFIO_TAGS):
        raise _unsupported(event)
    is_whole = depth == 0 and event.tag == LIBVFIO_TAGS + "custom:Config"
    is_map = isinstance(event, yaml.MappingStartEvent)
    return _Open(mark, event.anchor, is_map, event.tag or "" if is_whole else "")


def _close(opened: _Open) -> Node:
    children = opened.children
    size = 1 + sum(child.size for child in children)
    if opened.is_map:
        pairs = tuple(zip(children[::2], children[1::2], strict=True))
        return Mapping(opened.mark, pairs, size, opened.tag)
    return Sequence(opened.mark, tuple(children), size)


def _scalar(event: yaml.ScalarEvent) -> Scalar:
    tag = event.tag
    if tag is None or tag == "!":
        tag = _resolve(event.value) if event.implicit[0] else _TAG + "str"
    elif tag.startswith(LIBVFIO_TAGS):
        tag = _TAG + "str" if event.style else _resolve(event.value)
    if tag in {_TAG + "merge", _TAG + "value"}:
        tag = _TAG + "str"
    if tag not in _KNOWN_TAGS:
        raise _unsupported(event)
    return Scalar(_mark(event), tag.removeprefix(_TAG), event.value)


def _resolve(text: str) -> str:
    """Return the tag that YAML 1.1 gives to a plain scalar."""
    if len(text) > LONGEST_NUMBER:
        return _TAG + "str"
    for tag, pattern in _IMPLICIT.get(text[:1], []):
        if pattern.match(text):
            return tag
    return _TAG + "str"


def _alias(event: yaml.AliasEvent, anchors: dict[str, Node]) -> Node:
    target = anchors.get(event.anchor or "")
    if target is None:
        raise Problems.one(
            _mark(event), "", f"alias *{event.anchor} has no finished anchor &{event.anchor}"
        )
    return evolve(target, mark=_mark(event))


def _syntax_problem(error: yaml.MarkedYAMLError, text: str) -> Problems:
    mark = error.problem_mark or error.context_mark
    if mark is None:
        return Problems.whole(f"no YAML: {error.problem}")
    lines = _BREAK.split(text)
    line = min(mark.line, len(lines) - 1)
    column = min(mark.column, len(lines[line])) if line == mark.line else len(lines[line])
    what = error.problem or "not understood"
    if "\t" in lines[line][: column + 1]:
        what = "a tab is used for indentation, use spaces"
    elif error.context:
        what += f" {error.context}"
    return Problems.one(Mark(line + 1, column + 1), "", f"no YAML: {what}")
