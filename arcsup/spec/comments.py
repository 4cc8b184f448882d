"""The comments of a YAML file by the line that they belong to. PyYAML drops them."""

import re
from collections.abc import Iterator

import yaml
from attrs import define, field

_SCANNER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_COMMENT = re.compile(r"(?<!\S)#[ \t]?(.*)", re.MULTILINE)

_WITHOUT_TEXT = (yaml.BlockEndToken, yaml.BlockMappingStartToken, yaml.BlockSequenceStartToken)


@define
class Comments:
    """Texts without the #, by the line (from 1) of what they are above or behind of."""

    above: dict[int, list[str]] = field(factory=dict)
    behind: dict[int, list[str]] = field(factory=dict)

    def take_rest(self) -> list[tuple[int, str]]:
        """Return what nobody took, in the order of the file."""
        rest = [
            (line, text)
            for kind in (self.above, self.behind)
            for line, texts in kind.items()
            for text in texts
        ]
        return sorted(rest, key=lambda pair: pair[0])


def find_comments(text: str) -> Comments:
    """Return the comments of a file that can be parsed.

    They are between the tokens; a # inside a token is text.
    """
    found = Comments()
    for start, end, before, after in _gaps(text):
        for match in _COMMENT.finditer(text, start, end):
            alone = not text[text.rfind("\n", 0, match.start()) + 1 : match.start()].strip()
            texts = (
                found.above.setdefault(after, []) if alone else found.behind.setdefault(before, [])
            )
            texts.append(match[1].rstrip())
    return found


def _gaps(text: str) -> Iterator[tuple[int, int, int, int]]:
    """Yield what is between two tokens: from where to where, the line before and that after it."""
    position, line = 0, 1
    for token in yaml.scan(text, Loader=_SCANNER):
        start, end = token.start_mark, token.end_mark
        # Tokens that only tell of indentation have no text.
        if isinstance(token, _WITHOUT_TEXT) or end.index <= position:
            if not isinstance(token, yaml.StreamEndToken):
                continue
            start = end
        yield position, start.index, line, start.line + 1
        position, line = end.index, end.line + 1
