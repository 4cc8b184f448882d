"""LibVF.IO's files on the cards that they ask for: accepted, planned, run with the right GPU."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from tests.lab.kernel import mdevs
from tests.libvfio_files import EXAMPLES
from tests.qemu.daemon import Daemon

Nvidia = Callable[..., Path]


def find_gpu(argv: list[str]) -> str:
    """Return the one vfio-pci device of a command line."""
    [found] = [
        value
        for word, value in pairwise(argv)
        if word == "-device" and value.startswith("vfio-pci,")
    ]
    return found


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_libvfio_file_runs_with_the_gpu_that_it_asks_for(
    name: str, nvidia: Nvidia, gvtg: Path, daemon: Daemon
) -> None:
    cards = {nvidia(card="p4").name, gvtg.name}
    example = EXAMPLES[name]
    file = daemon.drop("guest", example.text(str(daemon.state / "images")))
    daemon.wait_for("guest", "stopped")
    places = ["--config", str(daemon.top / "config.yaml"), "--vms", str(daemon.vms)]
    places += ["--state", str(daemon.state), "--log-dir", str(daemon.log)]
    shown = daemon.arcsup("qemu", str(file), "-o", "json", *places)
    assert shown.returncode == 0, shown.stderr
    assert mdevs() == set(), "looking makes nothing"

    daemon.call("start", "guest", wait="240")

    status = daemon.status("guest")
    [gpu] = status["gpus"]
    assert (gpu["kind"], gpu["type"]) == ("vgpu", example.type)
    assert gpu["parent"] in cards
    assert mdevs() == {gpu["id"]}
    assert find_gpu(status["argv"]) == find_gpu(json.loads(shown.stdout))
    daemon.call("kill", "guest", wait="240")
    daemon.until(lambda: not mdevs(), "the GPU is given back")
