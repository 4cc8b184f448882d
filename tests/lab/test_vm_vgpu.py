"""The daemon and vendors' vGPUs, as vgpu_sim plays them: from a VM's file to its end."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.lab.kernel import driver_of, mdevs, read, types_of, write
from tests.lab.vms import TINY, wait_until_it_waits
from tests.qemu.daemon import Daemon

Nvidia = Callable[..., Path]
VendorVfs = Callable[..., list[Path]]


def asking_for(request: str) -> str:
    return f"{TINY}gpus: [{{{request}}}]\n"


def current(vf: Path) -> str:
    return read(vf / "nvidia/current_vgpu_type")


def in_use(vfs: list[Path]) -> dict[str, str]:
    return {vf.name: current(vf) for vf in vfs if current(vf) != "0"}


def kill_and_see_it_come_back(daemon: Daemon, name: str) -> dict[str, Any]:
    status = daemon.status(name)
    os.kill(status["pid"], signal.SIGKILL)
    return daemon.wait_for_another_qemu(name, status["pid"])


def stop(daemon: Daemon, name: str) -> None:
    daemon.call("kill", name, wait="240")
    daemon.until(lambda: not daemon.records()[name]["slices"], f"{name} gives back its devices")


# ---- NVIDIA's vendor-specific VFIO ----


def test_a_vendor_vgpu_is_given_to_a_vm_kept_over_a_crash_and_cleared(
    vendor_vfs: VendorVfs, daemon: Daemon
) -> None:
    vfs = vendor_vfs()
    daemon.drop("one", asking_for("mdevType: NVIDIA L40S-2Q"))
    status = daemon.wait_for("one", "running")
    [gpu] = status["gpus"]
    assert (gpu["kind"], gpu["type"], gpu["vramMiB"]) == ("vgpu", "nvidia-1148", 2048)
    assert in_use(vfs) == {gpu["id"]: "1148"}
    # NVIDIA's vGPU manager reads the VM's uuid from QEMU's command line.
    argv = status["argv"]
    assert argv[argv.index("-uuid") + 1] == status["uuid"]
    assert any(f"sysfsdev=/sys/bus/pci/devices/{gpu['id']}" in word for word in argv)

    again = kill_and_see_it_come_back(daemon, "one")

    assert again["gpus"] == [gpu]
    assert in_use(vfs) == {gpu["id"]: "1148"}, "no second one was made"
    stop(daemon, "one")
    assert in_use(vfs) == {}
    assert {driver_of(vf) for vf in vfs} == {"nvidia"}, "no VF was taken from its driver"


def test_a_type_of_another_size_waits_says_why_and_starts_when_the_card_is_uncut(
    vendor_vfs: VendorVfs, daemon: Daemon
) -> None:
    vfs = vendor_vfs(rule="same-size")
    daemon.drop("one", asking_for("mdevType: NVIDIA L40S-2Q"))
    daemon.wait_for("one", "running")
    daemon.drop("alike", asking_for("mdevType: NVIDIA L40S-2B"))
    daemon.drop("other", asking_for("minVRam: 4096"))
    assert daemon.wait_for("alike", "running")["gpus"][0]["type"] == "nvidia-1146"
    wait_until_it_waits(daemon, "other", "gpus[0]")
    assert sorted(in_use(vfs).values()) == ["1146", "1148"]

    stop(daemon, "one")
    assert daemon.state_of("other") == "waiting", "the other half of the card is cut still"
    stop(daemon, "alike")

    [gpu] = daemon.wait_for("other", "running")["gpus"]
    assert gpu["vramMiB"] == 49152, "the largest in range"
    assert daemon.status("other")["restarts"] == 0


def test_mixed_sizes_share_a_card_whose_driver_lets_them(
    vendor_vfs: VendorVfs, pf: Path, daemon: Daemon
) -> None:
    vfs = vendor_vfs(rule="mixed")
    write(vfs[0] / "nvidia/current_vgpu_type", "1148")
    try:
        daemon.drop("one", asking_for(f"mdevType: NVIDIA L40S-4Q, parent: '{pf.name}'"))
        daemon.wait_for("one", "running")
        assert sorted(in_use(vfs).values()) == ["1148", "1150"]
        stop(daemon, "one")
        assert in_use(vfs) == {vfs[0].name: "1148"}, "another's vGPU is never touched"
    finally:
        write(vfs[0] / "nvidia/current_vgpu_type", "0")


def test_a_type_that_lingers_after_its_vm_is_cleared_all_the_same(
    vendor_vfs: VendorVfs, daemon: Daemon
) -> None:
    vfs = vendor_vfs(linger_ms="4000")
    daemon.drop("one", asking_for("mdevType: NVIDIA L40S-2Q"))
    daemon.wait_for("one", "running")
    stop(daemon, "one")
    assert in_use(vfs) == {}


def test_a_vm_leaves_a_wedged_function_for_another(
    vendor_vfs: VendorVfs, pf: Path, daemon: Daemon
) -> None:
    vfs = vendor_vfs()
    daemon.drop("one", asking_for("mdevType: NVIDIA L40S-2Q"))
    [before] = daemon.wait_for("one", "running")["gpus"]
    [wedged] = [vf for vf in vfs if vf.name == before["id"]]

    write(wedged / "vgpu_sim/wedge", "1")
    os.kill(daemon.pid_of("one"), signal.SIGKILL)

    def moved() -> bool:
        status = daemon.status("one")
        running = status["state"] == "running"
        return running and all(gpu["id"] != wedged.name for gpu in status["gpus"])

    daemon.until(moved, "it runs on another function")
    status = daemon.status("one")
    assert in_use(vfs) == {wedged.name: "1148", status["gpus"][0]["id"]: "1148"}
    assert (
        wedged.name in {it["type"]: it["message"] for it in status["conditions"]}["DevicesReturned"]
    )
    kept = daemon.records()["one"]["slices"]
    assert {it["id"]: it["left_over"] for it in kept}[wedged.name] is True
    daemon.call("kill", "one", wait="240")
    daemon.until(lambda: len(daemon.records()["one"]["slices"]) == 1, "the other one is back")
    # What NVIDIA's guide says of such a function.
    write(pf / "sriov_numvfs", "0")
    daemon.until(lambda: not daemon.records()["one"]["slices"], "it is gone, so it is given back")


# ---- mediated devices ----


@pytest.mark.parametrize(
    ("rule", "beside", "refused"),
    [
        ("same-type", "GRID P4-2Q", "GRID P4-2A"),
        ("same-size", "GRID P4-2A", "GRID P4-4Q"),
        ("mixed", "GRID P4-4Q", "GRID P4-8Q"),
    ],
)
def test_nvidia_mdevs_share_a_card_as_its_driver_lets_them(
    nvidia: Nvidia, daemon: Daemon, rule: str, beside: str, refused: str
) -> None:
    card = nvidia(card="p4", rule=rule)
    daemon.drop("one", asking_for("mdevType: GRID P4-2Q"))
    [gpu] = daemon.wait_for("one", "running")["gpus"]
    assert gpu["parent"] == card.name
    daemon.drop("beside", asking_for(f"mdevType: {beside}"))
    daemon.drop("refused", asking_for(f"mdevType: {refused}"))

    daemon.wait_for("beside", "running")
    wait_until_it_waits(daemon, "refused", "gpus[0]")
    assert kill_and_see_it_come_back(daemon, "one")["gpus"] == [gpu]
    assert len(mdevs()) == 2

    stop(daemon, "one")
    stop(daemon, "beside")
    assert daemon.wait_for("refused", "running")["restarts"] == 0
    assert len(mdevs()) == 1


def test_a_gvtg_vgpu_lives_its_whole_life(gvtg: Path, daemon: Daemon) -> None:
    daemon.drop("one", asking_for("mdevType: i915-GVTg_V5_8"))
    [gpu] = daemon.wait_for("one", "running")["gpus"]
    assert (gpu["parent"], gpu["vramMiB"]) == (gvtg.name, 384)
    assert types_of(gvtg) == {"i915-GVTg_V5_4": 0, "i915-GVTg_V5_8": 1}
    daemon.drop("large", asking_for("mdevType: i915-GVTg_V5_4"))
    wait_until_it_waits(daemon, "large", "gpus[0]")
    assert kill_and_see_it_come_back(daemon, "one")["gpus"] == [gpu]

    stop(daemon, "one")

    assert daemon.wait_for("large", "running")["gpus"][0]["vramMiB"] == 512


def test_mdevs_on_an_old_kernels_vfs_are_one_to_a_vf(
    vendor_vfs: VendorVfs, pf: Path, daemon: Daemon
) -> None:
    vfs = vendor_vfs(vf_interface="mdev")
    for name in ("one", "two"):
        daemon.drop(name, asking_for("mdevType: NVIDIA L40S-2Q"))
    gpus = [daemon.wait_for(name, "running")["gpus"][0] for name in ("one", "two")]
    parents = {gpu["parent"] for gpu in gpus}
    assert len(parents) == 2
    assert parents <= {vf.name for vf in vfs}
    assert kill_and_see_it_come_back(daemon, "two")["gpus"] == gpus[1:]
    for name in ("one", "two"):
        stop(daemon, name)
    assert not mdevs()
