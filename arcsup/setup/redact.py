"""Taking secrets out of texts that go to other people. Pure."""

import re
from collections.abc import Callable

REMOVED = "[removed]"

_KEY = r"[\w.-]*(?:pass(?:word|wd|phrase)|secret|token|api[-_]?key|licen[cs]e[-_]?key|credential)"
"""Names whose value is nobody else's business; ``\\w*`` before them takes vncPassword along."""

_VALUE = r"\"(?:[^\"\\]|\\.)*\"|'[^']*'|[^\s,;&\"'}\]]+"

_RULES: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = (
    (
        re.compile(r"(?s)-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----.*?(?:-----END[^-\n]*-----|\Z)"),
        REMOVED,
    ),
    # A crypt(3) hash, as unattended installations and cloud-init have them.
    (re.compile(r"\$(?:1|2[abxy]?|5|6|7|y|gy)\$[./A-Za-z0-9$=,]{8,}"), REMOVED),
    (re.compile(r"(?i)\b(authorization:\s*\w+\s+)\S+"), rf"\1{REMOVED}"),
    (re.compile(r"(?i)(\b[a-z][a-z0-9+.-]*://)[^/\s@:]*:[^/\s@]*@"), rf"\1{REMOVED}@"),
    # KEY: VALUE, "KEY": "VALUE", KEY=VALUE, --KEY VALUE; a YAML block below KEY: | too.
    (
        re.compile(
            rf"(?im)^(?P<indent>[ \t-]*)(?P<key>\"?{_KEY}\"?\s*:\s*[|>][+-]?\d?[ \t]*\n)"
            r"(?:(?P=indent)[ \t]+.*\n?|[ \t]*\n)+"
        ),
        lambda match: f"{match['indent']}{match['key']}{match['indent']}  {REMOVED}\n",
    ),
    (
        re.compile(rf"(?i)(\"?\b{_KEY}s?\"?[ \t]*[:=][ \t]*)(?![|>][+-]?\s*$)(?:{_VALUE})"),
        rf"\1{REMOVED}",
    ),
    (re.compile(rf"(?i)(--?{_KEY}[ \t]+)(?:{_VALUE})"), rf"\1{REMOVED}"),
)


def remove_secrets(text: str) -> str:
    """Return ``text`` with passwords, tokens, keys and their hashes taken out."""
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text
