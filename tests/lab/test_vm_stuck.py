"""Writes that the kernel does not answer: shown, found again by the next daemon, nobody's else."""

from pathlib import Path

from tests.lab.kernel import (
    MDEVS,
    PCI,
    bind,
    is_blocked,
    kill_process,
    mdevs,
    open_device,
    start_write,
    types_of,
    write,
)
from tests.lab.vms import TINY
from tests.qemu.daemon import Daemon

SMALL = f"{TINY}gpus: [{{mdevType: mbochs-small}}]\n"


def why_of(daemon: Daemon, card: str) -> str:
    """Return what the list of GPUs says of a card."""
    [found] = [it for it in daemon.client.get("/v1/gpus") if it["address"] == card]
    return str(found["why"])


def test_a_stuck_remove_is_shown_found_again_after_a_restart_and_holds_up_nobody(
    daemon: Daemon, mbochs: Path
) -> None:
    file = daemon.drop("one", SMALL)
    status = daemon.wait_for("one", "running")
    uuid = status["gpus"][0]["id"]
    daemon.kill()
    kill_process(status["pid"])
    file.unlink()
    with open_device(MDEVS / uuid, hidden=True):
        daemon.start()
        daemon.until(lambda: "stuck" in why_of(daemon, "mbochs"), "it is shown as stuck")
        [told] = [it for it in daemon.status("one")["conditions"] if it["reason"] == "Stuck"]
        assert uuid in told["message"]
        daemon.drop("two", SMALL)
        daemon.wait_for("two", "running")

        daemon.kill()
        daemon.start()

        assert "stuck" in why_of(daemon, "mbochs")
        assert [owned["id"] for owned in daemon.records()["one"]["slices"]] == [uuid]
        daemon.wait_for("two", "running")
        assert types_of(mbochs)["mbochs-small"] == 62, "its room is not free"
    daemon.wait_for("one", "gone")
    assert why_of(daemon, "mbochs") == ""
    assert mdevs() == {daemon.status("two")["gpus"][0]["id"]}
    assert types_of(mbochs)["mbochs-small"] == 63


def test_a_stuck_number_of_vfs_holds_up_neither_the_daemon_nor_a_vm(
    daemon: Daemon, pf: Path
) -> None:
    write(pf / "sriov_drivers_autoprobe", "0")
    write(pf / "sriov_numvfs", "1")
    vf = PCI / (pf / "virtfn0").resolve().name
    bind(vf, "vfio-pci")
    with open_device(vf):
        removal = start_write(pf / "sriov_numvfs", "0")
        assert is_blocked(removal)
        daemon.drop("one", SMALL)
        daemon.wait_for("one", "running")
        daemon.call("kill", "one", wait="240")
        daemon.until(lambda: not mdevs(), "its mdev is given back")
        assert is_blocked(removal, 0.1)
    assert removal.wait(60) == 0
