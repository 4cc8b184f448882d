"""The daemon, with points at which it kills itself: ``python -m tests.qemu.crashing daemon …``.

A point stands before every write of the ownership journal and before every deed that it tells of;
what is after one is before the next. ARCSUP_CRASH_AT is the number of the point to die at (0:
none), ARCSUP_CRASH_LOG the file to which each point that is passed appends its name. They count
only while the file ARCSUP_CRASH_FROM exists, so that a test can choose the moment.
"""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

from arcsup.__main__ import main
from arcsup.host import writer
from arcsup.vm import (
    belongings,
    disks,
    image_changes,
    launch,
    process,
    record,
    resources,
    slices,
    supervise,
)

P = ParamSpec("P")
T = TypeVar("T")

_passed = 0


def pass_point(name: str) -> None:
    """Count a point, and die without a word if it is the one."""
    global _passed
    if not Path(os.environ["ARCSUP_CRASH_FROM"]).exists():
        return
    _passed += 1
    with open(os.environ["ARCSUP_CRASH_LOG"], "a") as log:
        log.write(f"{_passed} {name}\n")
    if _passed == int(os.environ["ARCSUP_CRASH_AT"]):
        os.kill(os.getpid(), signal.SIGKILL)


def after_a_point(function: Callable[P, T], name: str) -> Callable[P, T]:
    """Return the function (or coroutine function) with a point before it."""

    def with_point(*args: P.args, **kwargs: P.kwargs) -> T:
        pass_point(name)
        return function(*args, **kwargs)

    return with_point


def install() -> None:
    """Put points before every write and every deed."""
    for owner, name in (
        (record, "_write"),
        (record, "_unlink"),
        (launch, "create_files"),
        (launch, "listen_unix"),
        (launch, "start_gated"),
        (process.GatedProcess, "open_gate"),
        (disks, "publish"),
        (launch, "create_shared_memory"),
        (resources, "create_overlays"),
        (image_changes, "replace"),
        (supervise, "settle_overlays"),
        (supervise, "end_helpers"),
        (supervise, "remove_shared_memory"),
        (belongings, "lend"),
        (belongings, "put_back"),
        (supervise, "remove_runtime_folders"),
        (slices, "create_slice"),
        (slices, "remove_slice"),
        (writer, "_spawn"),
        (writer, "_take_status"),
    ):
        setattr(owner, name, after_a_point(getattr(owner, name), name))


if __name__ == "__main__":
    install()
    main()
