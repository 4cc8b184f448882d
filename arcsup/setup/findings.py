"""What doctor is made of: checks, each of which finds something to tell."""

from collections.abc import Callable, Iterator
from enum import StrEnum

from attrs import frozen

from arcsup.setup.host import Host


class Level(StrEnum):
    """OK and INFO need nothing done; WARNING takes something away; ERROR stands in the way."""

    OK = "ok"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@frozen
class Finding:
    """One thing to tell: what is so, why that matters, and what to do now."""

    level: Level
    what: str
    why: str = ""
    do: str = ""


@frozen
class Check:
    """One question to the host. ``run`` reads, changes nothing, and finds at least one thing."""

    id: str
    title: str
    run: Callable[[Host], Iterator[Finding]]


def ok(what: str) -> Finding:
    """Return that something is as it should be."""
    return Finding(Level.OK, what)


def info(what: str, why: str = "", do: str = "") -> Finding:
    """Return something worth knowing that is no fault."""
    return Finding(Level.INFO, what, why, do)


def warning(what: str, why: str, do: str) -> Finding:
    """Return that some VMs will not get what they ask for."""
    return Finding(Level.WARNING, what, why, do)


def error(what: str, why: str, do: str) -> Finding:
    """Return that VMs cannot run, or not usefully."""
    return Finding(Level.ERROR, what, why, do)
