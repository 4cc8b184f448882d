"""The daemon and real devices: VMs that ask for a GPU, from their files to their ends."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

from tests.lab.kernel import MDEVS, driver_of, mdevs
from tests.lab.vms import TINY, wait_until_it_waits
from tests.qemu.daemon import Daemon

SMALL = f"{TINY}gpus: [{{mdevType: mbochs-small}}]\n"


def test_a_vm_gets_its_mdev_keeps_it_over_a_crash_and_gives_it_back(daemon: Daemon) -> None:
    daemon.drop("one", SMALL)
    status = daemon.wait_for("one", "running")
    [gpu] = status["gpus"]
    assert gpu["type"] == "mbochs-small"
    assert gpu["parent"] == "mbochs"
    assert gpu["vramMiB"] == 4
    assert mdevs() == {gpu["id"]}
    where = {"path": "/machine/peripheral/gpu0"}
    asked = {"execute": "qom-list", "arguments": where}
    assert "sysfsdev" in str(daemon.client.post("/v1/vms/one/qmp", asked))

    os.kill(status["pid"], signal.SIGKILL)
    again = daemon.wait_for_another_qemu("one", status["pid"])

    assert (again["gpus"], again["restarts"]) == ([gpu], 1)
    assert mdevs() == {gpu["id"]}
    daemon.call("kill", "one", wait="240")
    daemon.until(lambda: not daemon.records()["one"]["slices"], "the mdev is given back")
    assert not mdevs()


def test_the_smallest_that_suffices_is_not_taken_but_the_largest_in_range(daemon: Daemon) -> None:
    daemon.drop("one", f"{TINY}gpus: [{{minVRam: 5, maxVRam: 63}}]\n")

    [gpu] = daemon.wait_for("one", "running")["gpus"]

    assert gpu["type"] == "mbochs-medium"


def test_a_vm_that_cannot_have_its_gpu_waits_says_why_and_starts_when_one_is_freed(
    daemon: Daemon,
) -> None:
    for number in range(4):
        daemon.drop(f"vm{number}", f"{TINY}gpus: [{{mdevType: mbochs-large}}]\nautostart: true\n")
    for number in range(4):
        daemon.wait_for(f"vm{number}", "running")
    daemon.drop("late", f"{TINY}gpus: [{{mdevType: mbochs-large}}]\n")
    wait_until_it_waits(daemon, "late", "gpus[0]")
    assert daemon.status("late")["restarts"] == 0

    daemon.call("kill", "vm2", wait="240")

    daemon.wait_for("late", "running")
    assert len(mdevs()) == 4


def test_foreign_mdevs_are_never_touched(daemon: Daemon, uuid: str) -> None:
    parent = Path("/sys/class/mdev_bus/mbochs")
    (parent / "mdev_supported_types/mbochs-small/create").write_text(uuid)
    try:
        daemon.drop("one", SMALL)
        daemon.wait_for("one", "running")
        daemon.call("kill", "one", wait="240")
        daemon.until(lambda: mdevs() == {uuid}, "ours alone is given back")
    finally:
        (MDEVS / uuid / "remove").write_text("1")


def test_a_daemon_that_is_killed_leaves_the_device_to_the_next_one(daemon: Daemon) -> None:
    daemon.drop("one", SMALL)
    status = daemon.wait_for("one", "running")

    daemon.kill()
    daemon.start()

    again = daemon.wait_for("one", "running")
    assert (again["pid"], again["gpus"]) == (status["pid"], status["gpus"])


def test_a_vm_starts_when_its_card_is_plugged_ends_with_it_and_comes_back_with_it(
    daemon: Daemon, plug: Callable[[str], None], unplug: Callable[[str], None]
) -> None:
    daemon.drop("one", f"{TINY}gpus: [{{kind: passthrough, address: '0000:03:00.0'}}]\n")
    daemon.wait_for("one", "waiting")
    plug("secondary-vga")
    assert daemon.wait_for("one", "running")["gpus"][0]["kind"] == "passthrough"

    unplug("secondary-vga")

    lost = daemon.wait_for("one", "waiting")
    assert lost["lastExit"]["class"] == "device-lost"
    assert lost["restarts"] == 0
    # Another model: QEMU keeps the memory of one that was pulled, and aborts when it comes again.
    plug("qxl")
    [gpu] = daemon.wait_for("one", "running")["gpus"]
    assert driver_of(Path("/sys/bus/pci/devices") / gpu["id"]) == "vfio-pci"
