"""The daemon is killed at every step of making and of taking back a slice, and the next one must
keep each promise: nothing leaked, nothing doubled, nothing foreign touched.
"""

import sys
from itertools import zip_longest
from pathlib import Path

from tests.lab.kernel import MDEVS, create, mdevs, remove, types_of
from tests.lab.vms import TINY
from tests.qemu.daemon import Daemon

SMALL = f"{TINY}gpus: [{{mdevType: mbochs-small}}]\n"
DEEDS = ("create_slice", "remove_slice", "_spawn", "_take_status")
"""The points of tests.qemu.crashing that are about devices."""


def crash_at(daemon: Daemon, point: int, name: str) -> Path:
    """Let the next daemon die at a point (0: none) from when the file that is returned exists."""
    go = daemon.top / f"{name}-go"
    daemon.program = (sys.executable, "-m", "tests.qemu.crashing")
    daemon.environment = {
        "ARCSUP_CRASH_AT": str(point),
        "ARCSUP_CRASH_FROM": str(go),
        "ARCSUP_CRASH_LOG": str(daemon.top / f"{name}-points"),
    }
    return go


def device_points(daemon: Daemon, name: str) -> list[int]:
    """Return the numbers of those points that were passed around a deed to a device.

    The journal is written before the first and after the last.
    """
    passed = (daemon.top / f"{name}-points").read_text().splitlines()
    deeds = [int(line.split()[0]) for line in passed if line.split()[1] in DEEDS]
    return [*range(max(1, deeds[0] - 1), min(deeds[-1] + 2, len(passed) + 1))]


def wait_until_dead(daemon: Daemon) -> None:
    process = daemon.process
    assert process is not None
    daemon.until(lambda: process.poll() is not None, "the daemon dies at its point")


def test_a_daemon_killed_at_any_step_of_a_device_leaves_none_and_doubles_none(
    daemon: Daemon, mbochs: Path, uuid: str
) -> None:
    create(mbochs, "mbochs-small", uuid)
    daemon.kill()
    crash_at(daemon, 0, "start").touch()
    daemon.start()
    file = daemon.drop("one", SMALL)
    check_start(daemon, mbochs, uuid, crash_at(daemon, 0, "end"), file)
    daemon.wait_for("one", "gone")
    assert mdevs() == {uuid}
    start_points, end_points = device_points(daemon, "start"), device_points(daemon, "end")

    for number, (at_start, at_end) in enumerate(zip_longest(start_points, end_points, fillvalue=0)):
        daemon.kill()
        crash_at(daemon, at_start, f"start{number}").touch()
        daemon.start()
        file = daemon.drop("one", SMALL)
        if at_start:
            wait_until_dead(daemon)
        check_start(daemon, mbochs, uuid, crash_at(daemon, at_end, f"end{number}"), file)
        if at_end:
            wait_until_dead(daemon)
        crash_at(daemon, 0, f"last{number}")
        daemon.kill()
        daemon.start()
        daemon.wait_for("one", "gone")
        assert mdevs() == {uuid}, f"{at_end}: what is left is not what was foreign"
        assert types_of(mbochs)["mbochs-small"] == 63
    remove(MDEVS / uuid)


def check_start(daemon: Daemon, mbochs: Path, foreign: str, go: Path, file: Path) -> None:
    """Let another daemon bring the VM up, and then take its file away."""
    if daemon.process is not None and daemon.process.poll() is None:
        daemon.wait_for("one", "running")
    daemon.kill()
    daemon.start()
    [gpu] = daemon.wait_for("one", "running")["gpus"]
    assert mdevs() == {foreign, gpu["id"]}
    assert types_of(mbochs)["mbochs-small"] == 62
    assert len(daemon.qemus("one")) == 1
    go.touch()
    file.unlink()
