"""GPUs that come to a running VM and go from it, as its file says."""

from tests.lab.kernel import mdevs
from tests.lab.vms import TINY
from tests.qemu.daemon import Daemon

SMALL = "{mdevType: mbochs-small}"


def test_a_gpu_comes_to_a_running_vm_and_goes_from_it_with_the_guests_reset(daemon: Daemon) -> None:
    daemon.drop("one", f"{TINY}gpus: [{SMALL}]\n")
    first = daemon.wait_for("one", "running")

    daemon.drop("one", f"{TINY}gpus: [{SMALL}, {SMALL}]\n")

    daemon.until(lambda: len(daemon.status("one")["gpus"]) == 2, "the second has come")
    status = daemon.status("one")
    assert (status["pid"], status["pending"]) == (first["pid"], False)
    assert mdevs() == {gpu["id"] for gpu in status["gpus"]}
    where = {"path": "/machine/peripheral/gpu1"}
    assert "sysfsdev" in str(
        daemon.client.post("/v1/vms/one/qmp", {"execute": "qom-list", "arguments": where})
    )

    # Nor does a BIOS look at what is plugged, so nobody can use it. The first has its addresses.
    assert daemon.wait_for_event("one", "device-unusable")["data"] == {"devices": ["gpu1"]}
    assert "gpu1" in daemon.status("one")["reason"]

    daemon.drop("one", f"{TINY}gpus: [{SMALL}]\n")

    # A BIOS does not hear that it is to let a device go.
    told = daemon.wait_for_event("one", "gpus-refused")
    assert "the guest has not let gpu1 go" in told["message"]
    assert daemon.status("one")["pending"]
    assert len(mdevs()) == 2

    daemon.call("reset", "one")

    daemon.until(lambda: len(mdevs()) == 1, "it goes with the reset and is given back")
    daemon.until(lambda: not daemon.status("one")["pending"], "the VM is as its file says")
    status = daemon.status("one")
    assert (status["pid"], status["gpus"]) == (first["pid"], first["gpus"])
    daemon.wait_for_event("one", "device-usable")
