"""What is wrong with a file, as values with a place."""

from collections.abc import Iterable
from pathlib import Path
from typing import Self

from attrs import frozen

from arcsup.errors import SpecError

MOST_FAULTS = 100
"""Faults told of one file; a file with more has been told enough."""


@frozen(order=True)
class Mark:
    """A place in a text; lines and columns count from 1."""

    line: int = 1
    column: int = 1


@frozen
class Problem:
    """Something wrong at a place of a text. ``path`` is like ``gpus[0].minVRam``, "" the whole."""

    mark: Mark
    path: str
    message: str


class Problems(Exception):
    """Raised inside the reader with everything wrong below one node."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__(self.problems)

    @classmethod
    def one(cls, mark: Mark, path: str, message: str) -> Self:
        """Return the exception for a single problem."""
        return cls([Problem(mark, path, message)])

    @classmethod
    def whole(cls, message: str) -> Self:
        """Return the exception for a problem of the whole file."""
        return cls.one(Mark(), "", message)


@frozen
class Fault:
    """One line for a person: ``FILE:LINE:COL: PATH: what is wrong, what is expected``."""

    file: Path
    line: int
    column: int
    path: str
    message: str

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}:{self.column}: "
        return where + (f"{self.path}: {self.message}" if self.path else self.message)


def place(problems: Iterable[Problem], file: Path) -> tuple[Fault, ...]:
    """Return the problems of a file as faults, in the order of the file, at most MOST_FAULTS."""
    ordered = sorted(problems, key=lambda problem: problem.mark)
    faults = [
        Fault(file, p.mark.line, p.mark.column, p.path, p.message) for p in ordered[:MOST_FAULTS]
    ]
    if (more := len(ordered) - MOST_FAULTS) > 0:
        last = ordered[MOST_FAULTS].mark
        faults.append(Fault(file, last.line, last.column, "", f"and {more} more faults"))
    return tuple(faults)


def error_of(faults: Iterable[Fault]) -> SpecError:
    """Return the error that tells all faults, one per line."""
    return SpecError("\n".join(str(fault) for fault in faults))
