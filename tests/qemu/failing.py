"""The daemon with a disk that takes nothing from the n-th write of the ownership journal on:
``python -m tests.qemu.failing daemon …``.

FAILING_AT is the number of the write from which on it is so (0: never), FAILING_LOG the file to
which each write appends its name, FAILING_HOW what is wrong: ``full`` fills up the file system of
the state directory, ``read-only`` makes it so. Both are the kernel's own doing, in a mount of the
test's own, and the test takes them back; what is ``full for a moment`` has room again after the
write. Writes count only while the file FAILING_FROM exists.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import ParamSpec, TypeVar

from arcsup.__main__ import main
from arcsup.vm import record

P = ParamSpec("P")
T = TypeVar("T")

_passed = 0


def fail_from_here(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Let the file system of the state directory take nothing any more, and write."""
    state = Path(os.environ["FAILING_STATE"])
    if os.environ["FAILING_HOW"] == "read-only":
        # As a mount of its own: the file system itself has files open for writing.
        subprocess.run(["mount", "-o", "bind", state, state], check=True)
        subprocess.run(["mount", "-o", "remount,ro,bind", state], check=True)
    else:
        fill(state)
    try:
        return function(*args, **kwargs)
    finally:
        if os.environ["FAILING_HOW"] == "full for a moment":
            (state / "filler").unlink()


def fill(state: Path) -> None:
    """Leave no room in a file system."""
    with suppress(OSError), open(state / "filler", "wb", buffering=0) as filler:
        while True:
            filler.write(bytes(2**16))
    with suppress(OSError), open(state / "filler", "ab", buffering=0) as filler:
        while True:
            filler.write(b"x")


def counted(function: Callable[P, T], name: str) -> Callable[P, T]:
    """Return the function with its writes counted."""

    def count(*args: P.args, **kwargs: P.kwargs) -> T:
        global _passed
        if Path(os.environ["FAILING_FROM"]).exists():
            _passed += 1
            with open(os.environ["FAILING_LOG"], "a") as log:
                log.write(f"{_passed} {name}\n")
            if _passed == int(os.environ["FAILING_AT"]):
                return fail_from_here(function, *args, **kwargs)
        return function(*args, **kwargs)

    return count


def install() -> None:
    """Count every write of the journal."""
    for owner, name in (
        (record, "_write"),
        (record, "_unlink"),
        (record.RecordStore, "keep_directory"),
    ):
        setattr(owner, name, counted(getattr(owner, name), name))


if __name__ == "__main__":
    install()
    sys.exit(main())
