"""A record is lost while its QEMU has a mediated device: that is neither leaked nor given twice."""

from pathlib import Path

import pytest

from tests.lab.kernel import mdevs, types_of
from tests.lab.vms import TINY
from tests.qemu.daemon import Daemon

SMALL = f"{TINY}gpus: [{{mdevType: mbochs-small}}]\n"


def lose_record(daemon: Daemon) -> tuple[int, str]:
    """Return the pid and the device of a QEMU whose record the daemon has lost."""
    daemon.drop("one", SMALL)
    status = daemon.wait_for("one", "running")
    daemon.kill()
    (daemon.state / "vms/one.json").unlink()
    daemon.start()
    assert daemon.wait_for("one", "waiting")["pid"] == status["pid"]
    return status["pid"], status["gpus"][0]["id"]


def test_an_adopted_qemus_device_is_its_vms_again_and_is_given_back(
    daemon: Daemon, mbochs: Path
) -> None:
    pid, device = lose_record(daemon)
    assert mdevs() == {device}

    done = daemon.arcsup("adopt", "one")

    assert (done.returncode, done.stdout) == (0, "one: running\n"), done.stderr
    status = daemon.status("one")
    assert (status["pid"], [gpu["id"] for gpu in status["gpus"]]) == (pid, [device])
    assert daemon.arcsup("stop", "one").returncode == 0
    daemon.until(lambda: not mdevs(), "its device is given back")
    assert types_of(mbochs)["mbochs-small"] == 64


@pytest.mark.parametrize("verb", ["stop", "kill"])
def test_the_device_of_a_qemu_that_is_ended_instead_is_given_back(
    daemon: Daemon, mbochs: Path, verb: str
) -> None:
    _, device = lose_record(daemon)
    assert mdevs() == {device}

    assert daemon.arcsup(verb, "one").returncode == 0

    daemon.until(lambda: not mdevs(), "its device is given back")
    assert daemon.qemus() == []
    assert types_of(mbochs)["mbochs-small"] == 64
