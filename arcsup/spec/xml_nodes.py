"""XML text -> elements that know their place, or the first thing wrong. Bounded.

Read with expat itself, which tells lines and columns. A document type is refused: with it go
entities of the file's own, and with them files that grow without end or fetch others.
"""

from collections.abc import Iterator
from xml.parsers import expat

from attrs import define, field

from arcsup.spec.comments import Comments
from arcsup.spec.faults import Mark, Problems

DEEPEST = 32
MOST_ELEMENTS = 20_000


@define
class Element:
    """One element: its attributes, the elements in it, and the text before the first of them."""

    tag: str
    mark: Mark
    attributes: dict[str, str]
    children: list["Element"] = field(factory=list)
    text: str = ""

    def find(self, path: str) -> "Element | None":
        """Return the first element at ``a/b`` below this one, None when there is none."""
        return next(self.find_all(path), None)

    def find_all(self, path: str) -> "Iterator[Element]":
        """Yield the elements at ``a/b`` below this one."""
        tag, _, rest = path.partition("/")
        for child in self.children:
            if child.tag == tag:
                if rest:
                    yield from child.find_all(rest)
                else:
                    yield child

    def get(self, path: str, attribute: str) -> str:
        """Return an attribute of this element (path "") or of one below, "" when not there."""
        element = self.find(path) if path else self
        return element.attributes.get(attribute, "") if element is not None else ""

    def tell(self, path: str) -> str:
        """Return the text of an element below this one, "" when it is not there."""
        element = self.find(path)
        return element.text.strip() if element is not None else ""


def compose_xml(text: str) -> tuple[Element, Comments]:
    """Return the root of a document and its comments. Raises Problems."""
    reader = _Reader()
    try:
        reader.parser.Parse(text.encode(), True)
    except expat.ExpatError as error:
        mark = Mark(error.lineno, error.offset + 1)
        raise Problems.one(mark, "", f"no XML: {expat.ErrorString(error.code)}") from None
    assert reader.root is not None
    reader.settle_comments()
    return reader.root, reader.comments


class _Reader:
    def __init__(self) -> None:
        self.root: Element | None = None
        self.comments = Comments()
        self._open: list[Element] = []
        self._count = 0
        self._waiting: list[str] = []
        self.parser = expat.ParserCreate("UTF-8")
        self.parser.buffer_text = True
        self.parser.StartDoctypeDeclHandler = self._refuse_doctype
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._add_text
        self.parser.CommentHandler = self._add_comment

    def _mark(self) -> Mark:
        return Mark(self.parser.CurrentLineNumber, self.parser.CurrentColumnNumber + 1)

    def _refuse_doctype(self, *_: object) -> None:
        raise Problems.one(self._mark(), "", "a document type is not supported, remove it")

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        self._count += 1
        if len(self._open) >= DEEPEST or self._count > MOST_ELEMENTS:
            limit = f"{DEEPEST} levels or {MOST_ELEMENTS} elements"
            raise Problems.one(self._mark(), "", f"more than {limit}")
        element = Element(tag, self._mark(), attributes)
        if self._open:
            self._open[-1].children.append(element)
        else:
            self.root = element
        self._open.append(element)
        self.settle_comments()

    def _end(self, _: str) -> None:
        # The last comment in an element belongs to nothing after it.
        self.settle_comments()
        self._open.pop()

    def settle_comments(self) -> None:
        """Give the comments that wait to the line that the parser is at."""
        if self._waiting:
            line = self.parser.CurrentLineNumber
            self.comments.above.setdefault(line, []).extend(self._waiting)
            self._waiting = []

    def _add_text(self, text: str) -> None:
        if self._open and not self._open[-1].children:
            self._open[-1].text += text

    def _add_comment(self, text: str) -> None:
        self._waiting += [line.strip() for line in text.strip().splitlines() if line.strip()]
