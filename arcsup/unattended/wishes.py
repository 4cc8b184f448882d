"""What an unattended installation is to answer, whatever the installer's language is."""

import re

from attrs import field, frozen

from arcsup.errors import UsageError

_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
_LOCALE = re.compile(r"[a-z]{2,3}_[A-Z]{2}")
_KEYBOARD = re.compile(r"[a-z]{2,8}")
_TIMEZONE = re.compile(r"[A-Za-z0-9+_-][A-Za-z0-9+_/ -]{0,63}")
_SSH_KEY = re.compile(r"(?:ssh|ecdsa|sk)-[a-z0-9@.-]+ [A-Za-z0-9+/]+={0,3}")


@frozen
class Wishes:
    """The guest's first user and its surroundings. ``password`` is never shown."""

    host: str
    user: str
    password: str = field(repr=False)
    locale: str = "en_US"
    keyboard: str = "us"
    timezone: str = "UTC"
    ssh_keys: tuple[str, ...] = ()

    def __attrs_post_init__(self) -> None:
        """Raise UsageError for what could mean something else in an answer file."""
        checks = [
            ("--user", _USER, self.user, "a name such as user"),
            ("--locale", _LOCALE, self.locale, "a locale such as en_US"),
            ("--keyboard", _KEYBOARD, self.keyboard, "a layout such as us"),
            ("--timezone", _TIMEZONE, self.timezone, "a time zone such as UTC"),
        ]
        for option, pattern, value, expected in checks:
            if not pattern.fullmatch(value):
                raise UsageError(f"{option}: expected {expected}, got {value[:40]!r}")
        if not self.password or not self.password.isprintable():
            raise UsageError("the password is empty or has characters that cannot be typed")


def read_ssh_keys(text: str) -> tuple[str, ...]:
    """Return the public keys of a file, without comments. Raises UsageError for other lines."""
    lines = [line.strip() for line in text.splitlines()]
    keys = []
    for line in lines:
        if not line or line.startswith("#"):
            continue
        match = _SSH_KEY.match(line)
        if match is None:
            raise UsageError(f"no public SSH key: {line[:30]!r}…")
        keys.append(match[0])
    return tuple(keys)
