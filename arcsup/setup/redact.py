"""Taking secrets out of texts that go to other people. Pure."""

import re
from collections.abc import Callable

REMOVED = "[removed]"

_WORD = r"(?:pass(?:word|wd|phrase)|secret|token|api[-_]?key|licen[cs]e[-_]?key|credential)"
"""What names end with whose value is nobody else's business."""

_KEY = rf"[\w.-]{{0,99}}{_WORD}"
"""Such a name as a whole: vncPassword. No longer, or a log of one long word takes minutes."""

_OPTION = rf"(?<![\w-])--?{_KEY}"
"""Such a name as an option. It begins once in a line of dashes, not at each."""

_QUOTE = r"(?<!\\)\\*[\"']"
"""JSON within JSON has backslashes before its quotes."""

_QUOTED = r"(?:[^\\\"']|\\++(?![\"'])|''|(?!(?P=quote))\\*+[\"'])"
"""One more piece of what began with ``quote``: other quotes have more backslashes or fewer."""

_PLAIN = r"(?:,,|\\++(?![\"'])|[^\s,;&\"'}\]\\])+"
"""A value without quotes; two commas are one in QEMU's options."""

_SINGLE = r"'(?:[^']|'')*+'"
"""A value in YAML's single quotes, where a backslash is nothing but one."""

_VALUE = (
    rf"(?!\[removed\])(?:(?P<quote>{_QUOTE}){_QUOTED}*(?P=quote)|{_QUOTE}.*"
    rf"|\[[^\]]*(?:\]|\Z)|{_PLAIN})"
)
"""The second is a quote, the third may be a list, that nothing ends: a log may have been cut. What
goes on to the end is taken at once, so that no text is searched to its end again and again."""

_QEMU_OBJECT = r"(?:qom-type=)?\bsecret,"
_QMP_OBJECT = rf"\bqom-type{_QUOTE}\s*:\s*{_QUOTE}secret{_QUOTE}"
_QMP_DATA = rf"\bdata{_QUOTE}\s*:\s*"

_RULES: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = (
    (
        re.compile(r"(?s)-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----.*?(?:-----END[^-\n]*-----|\Z)"),
        REMOVED,
    ),
    # A crypt(3) hash, as unattended installations and cloud-init have them.
    (re.compile(r"\$(?:1|2[abxy]?|5|6|7|y|gy)\$[./A-Za-z0-9$=,]{8,}"), REMOVED),
    (re.compile(r"(?i)\b(authorization:\s*\w+\s+)\S+"), rf"\1{REMOVED}"),
    (re.compile(r"(?i)(\b[a-z][a-z0-9+.-]{0,30}://)[^/\s@:]*:[^/\s@]*@"), rf"\1{REMOVED}@"),
    # QEMU's -object secret: quoted, in a list of YAML, on a command line, as QMP has it.
    (
        re.compile(
            rf"((?P<quote>{_QUOTE}){_QEMU_OBJECT}(?:{_QUOTED}{{0,999}}?,)?data=)"
            rf"(?:,,|(?!,){_QUOTED})*"
        ),
        rf"\1{REMOVED}",
    ),
    (re.compile(rf"(?m)^([ \t]*-[ \t]+{_QEMU_OBJECT}(?:.*?,)?data=).+"), rf"\1{REMOVED}"),
    (re.compile(rf"({_QEMU_OBJECT}(?:[^\s\"']{{0,999}}?,)?data=){_PLAIN}"), rf"\1{REMOVED}"),
    (re.compile(rf"({_QMP_OBJECT}[^}}]{{0,999}}?{_QMP_DATA}){_VALUE}"), rf"\1{REMOVED}"),
    (
        re.compile(rf"({_QMP_DATA})(?!\{{)(?=[\s\S]{{0,999}}?{_QMP_OBJECT}){_VALUE}"),
        rf"\1{REMOVED}",
    ),
    # KEY: VALUE, "KEY": "VALUE", KEY=VALUE, --KEY VALUE; a YAML block below KEY: | too.
    (
        re.compile(
            rf"(?im)^(?P<indent>[ \t-]*)(?P<key>\"?{_KEY}\"?\s*:\s*[|>][+-]?\d?[ \t]*\n)"
            r"(?:(?P=indent)[ \t]+.*\n?|[ \t]*\n)+"
        ),
        lambda match: f"{match['indent']}{match['key']}{match['indent']}  {REMOVED}\n",
    ),
    # In YAML, spaces may be part of a value. Where Python quoted, what follows the quote goes, too.
    (
        re.compile(rf"(?im)^([ \t-]*\"?{_KEY}s?\"?:[ \t]+)(?:{_SINGLE}.*|(?![|>\"'\\\s\[]).+)"),
        rf"\1{REMOVED}",
    ),
    (
        re.compile(
            rf"(?i)([{{,][ \t]*\"?{_KEY}s?\"?:[ \t]+)"
            rf"(?:{_SINGLE}(?=\s*[,}}])|(?![\"'\\\s\[])[^,}}\n]+)"
        ),
        rf"\1{REMOVED}",
    ),
    (
        re.compile(rf"(?i)({_WORD}s?(?:{_QUOTE})?[ \t]*[:=][ \t]*)(?![|>][+-]?\s*$){_VALUE}"),
        rf"\1{REMOVED}",
    ),
    # In lists, the value is the next item.
    (
        re.compile(rf"(?i)({_OPTION}(?:[ \t]+|(?:{_QUOTE})?\s*,(?:\s|\\+n)*)){_VALUE}"),
        rf"\1{REMOVED}",
    ),
    (re.compile(rf"(?i)({_OPTION}[\"']?[ \t]*\n[ \t]*-[ \t]+).+"), rf"\1{REMOVED}"),
)


def remove_secrets(text: str) -> str:
    """Return ``text`` with passwords, tokens, keys and their hashes taken out."""
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text
