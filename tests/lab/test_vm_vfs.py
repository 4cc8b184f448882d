"""The daemon and virtual functions: enabled as configured, given to VMs, given back after."""

import os
import signal
from pathlib import Path

import pytest

from tests.lab.kernel import PCI, driver_of, read, write
from tests.lab.vms import TINY
from tests.qemu.daemon import Daemon


def configure(daemon: Daemon, entries: str) -> None:
    (daemon.top / "config.yaml").write_text(f"gpus: [{entries}]\n")
    daemon.client.post("/v1/reload")


def vfs_of(pf: Path) -> list[Path]:
    return [PCI / link.resolve().name for link in sorted(pf.glob("virtfn*"))]


def findings(daemon: Daemon) -> str:
    return "\n".join(daemon.client.get("/v1/daemon")["findings"])


@pytest.fixture
def quiet_pf(pf: Path) -> Path:
    """The PF, of whose virtual functions the host's driver takes none."""
    write(pf / "sriov_drivers_autoprobe", "0")
    return pf


def test_a_vm_waits_for_virtual_functions_gets_one_when_configured_and_gives_it_back(
    quiet_pf: Path, daemon: Daemon
) -> None:
    pf = quiet_pf
    daemon.drop("one", f"{TINY}gpus: [{{kind: vf, parent: '{pf.name}'}}]\n")
    daemon.wait_for("one", "waiting")

    configure(daemon, f"{{match: '{pf.name}', vfs: 2}}")

    [gpu] = daemon.wait_for("one", "running")["gpus"]
    first, second = vfs_of(pf)
    assert (gpu["kind"], gpu["id"]) == ("vf", first.name)
    assert (driver_of(first), driver_of(second)) == ("vfio-pci", None)
    configure(daemon, f"{{match: '{pf.name}', vfs: 0}}")
    daemon.until(lambda: "VM one uses it" in findings(daemon), "it is said why they stay")
    assert len(vfs_of(pf)) == 2

    status = daemon.status("one")
    os.kill(status["pid"], signal.SIGKILL)
    daemon.until(lambda: daemon.status("one")["restarts"] > status["restarts"], "the crash")
    assert daemon.wait_for("one", "running")["gpus"] == [gpu]
    configure(daemon, f"{{match: '{pf.name}', vfs: leave}}")
    daemon.call("kill", "one", wait="240")
    daemon.until(lambda: not daemon.records()["one"]["slices"], "it is given back")
    assert driver_of(first) is None
    assert read(first / "driver_override") == "(null)"

    configure(daemon, f"{{match: '{pf.name}', vfs: 0}}")
    daemon.until(lambda: not vfs_of(pf), "what arcsup enabled is taken away")
    daemon.until(lambda: pf.name not in findings(daemon), "nothing is left to say")


def test_what_somebody_else_enabled_is_used_and_never_changed(
    quiet_pf: Path, daemon: Daemon
) -> None:
    pf = quiet_pf
    write(pf / "sriov_numvfs", "1")
    configure(daemon, f"{{match: '{pf.name}', vfs: 3}}")
    daemon.until(lambda: "1 virtual functions, not 3" in findings(daemon), "it is said")
    daemon.drop("one", f"{TINY}gpus: [{{kind: vf, parent: '{pf.name}'}}]\n")
    daemon.wait_for("one", "running")
    assert len(vfs_of(pf)) == 1
