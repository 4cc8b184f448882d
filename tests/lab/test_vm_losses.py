"""Devices that a running VM loses: it ends, waits at no cost, and comes back with the device."""

from collections.abc import Callable
from pathlib import Path

from tests.lab.kernel import bind, mdevs, types_of, unbind, write
from tests.lab.vms import TINY
from tests.qemu.daemon import Daemon

SIMULATION = Path("/sys/module/vgpu_sim/parameters")
MBOCHS = Path("/sys/class/mdev_bus/mbochs")


def wait_until_lost(daemon: Daemon, why: str = "") -> None:
    """Wait until the VM has ended for a lost device, and waits for it; ``why`` is in its reason."""

    def waits() -> bool:
        status = daemon.status("one")
        # Until the devices were looked at again, it is about to start.
        return status["state"] == "waiting" and "gpus[0]" in status["reason"]

    daemon.until(waits, "it waits for its device")
    lost = daemon.status("one")
    assert lost["lastExit"]["class"] == "device-lost"
    assert lost["restarts"] == 0
    assert why in lost["reason"]


def say_xid(card: Path, number: int, words: str) -> None:
    """Have NVIDIA's driver write a line about a card to the kernel log."""
    slot = card.name.rpartition(".")[0]
    write(SIMULATION / "nvrm", f"Xid (PCI:{slot}): {number}, {words}")


def test_a_card_that_fell_off_its_bus_is_lost_until_its_driver_says_that_it_has_recovered(
    daemon: Daemon, nvidia: Callable[..., Path]
) -> None:
    card = nvidia(card="p4")
    daemon.drop("one", f"{TINY}gpus: [{{mdevType: nvidia-63}}]\n")
    daemon.drop("two", f"{TINY}gpus: [{{mdevType: mbochs-small}}]\n")
    first, other = daemon.wait_for("one", "running"), daemon.wait_for("two", "running")
    say_xid(card, 31, "pid=1, name=guest")
    told = f"{card.name}: Xid 31"
    daemon.until(lambda: told in daemon.arcsup("events").stdout, "a guest's fault is told")
    assert daemon.status("one")["pid"] == first["pid"], "and ends nothing"

    say_xid(card, 79, "GPU has fallen off the bus.")

    wait_until_lost(daemon, "Xid 79")
    [shown] = [it for it in daemon.client.get("/v1/gpus") if it["address"] == card.name]
    assert not shown["usable"]
    assert "Xid 79" in shown["why"]
    assert daemon.status("two")["pid"] == other["pid"], "others keep what they have"
    assert types_of(MBOCHS)["mbochs-small"] == 63

    say_xid(card, 154, "GPU recovery action changed from 0x2 (Node Reboot Required) to 0x0 (None)")
    assert daemon.wait_for("one", "running")["gpus"] == first["gpus"]
    assert len(mdevs()) == 2


def test_a_card_that_its_drm_driver_gave_up_is_lost_until_it_is_bound_anew(
    daemon: Daemon, gvtg: Path
) -> None:
    daemon.drop("one", f"{TINY}gpus: [{{mdevType: i915-GVTg_V5_8}}]\n")
    daemon.wait_for("one", "running")

    write(SIMULATION / "drm_wedged", f"{gvtg.name} rebind,bus-reset")

    wait_until_lost(daemon, "its driver has given it up (WEDGED=rebind,bus-reset)")
    write(gvtg / "driver/unbind", gvtg.name)
    write(Path("/sys/bus/pci/drivers_probe"), gvtg.name)
    daemon.wait_for("one", "running")
    assert len(mdevs()) == 1


def test_a_vf_that_loses_its_driver_or_goes_ends_its_vm_which_comes_back_with_it(
    daemon: Daemon, vendor_vfs: Callable[..., list[Path]], pf: Path
) -> None:
    vfs = vendor_vfs()
    daemon.drop("one", f"{TINY}gpus: [{{mdevType: nvidia-1148}}]\n")
    [gpu] = daemon.wait_for("one", "running")["gpus"]
    vf = next(vf for vf in vfs if vf.name == gpu["id"])
    for other in vfs:
        if other != vf:
            unbind(other)

    # This comes back when QEMU has closed the device, and nobody but the daemon ends QEMU.
    unbind(vf)

    wait_until_lost(daemon)
    bind(vf, "nvidia")
    daemon.wait_for("one", "running")

    write(pf / "sriov_numvfs", "0")

    wait_until_lost(daemon)
    vendor_vfs()
    daemon.wait_for("one", "running")


def test_a_vm_that_comes_out_of_a_reset_without_its_gpu_is_stopped_and_comes_back_with_it(
    daemon: Daemon,
) -> None:
    daemon.drop("one", f"{TINY}gpus: [{{mdevType: mbochs-small}}]\n")
    first = daemon.wait_for("one", "running")
    # A BIOS does not hear that it is to let the device go; the reset takes it all the same.
    unplug = {"execute": "device_del", "arguments": {"id": "gpu0"}}
    daemon.client.post("/v1/vms/one/qmp", unplug)

    daemon.call("reset", "one")

    told = daemon.wait_for_event("one", "device-lost")
    assert told["message"] == (
        "QEMU has gpu0 no more: a reset took it along, or the guest let it go"
    )
    daemon.until(lambda: daemon.status("one")["lastExit"], "it is stopped")
    again = daemon.wait_for("one", "running")
    assert again["pid"] != first["pid"]
    assert again["gpus"] == first["gpus"]
    assert again["restarts"] == 0
    assert again["lastExit"]["class"] == "device-lost"
