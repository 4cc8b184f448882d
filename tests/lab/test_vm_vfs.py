"""The daemon and virtual functions: enabled as configured, given to VMs, given back after."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.lab.kernel import PCI, driver_of, is_blocked, open_device, read, start_write, write
from tests.lab.vms import TINY, wait_until_it_waits
from tests.qemu.daemon import Daemon


def configure(daemon: Daemon, entries: str) -> None:
    (daemon.top / "config.yaml").write_text(f"gpus: [{entries}]\n")
    daemon.client.post("/v1/reload")


def vfs_of(pf: Path) -> list[Path]:
    links = sorted(pf.glob("virtfn*"))
    try:
        return [PCI / link.readlink().name for link in links]
    except FileNotFoundError:  # the kernel takes them away one by one
        return vfs_of(pf)


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
    assert daemon.wait_for_another_qemu("one", status["pid"])["gpus"] == [gpu]
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


def test_the_next_daemon_knows_which_functions_are_ours(quiet_pf: Path, daemon: Daemon) -> None:
    pf = quiet_pf
    configure(daemon, f"{{match: '{pf.name}', vfs: 2}}")
    daemon.until(lambda: len(vfs_of(pf)) == 2, "they are there")
    daemon.kill()
    assert len(vfs_of(pf)) == 2, "they outlast the daemon"
    daemon.start()

    configure(daemon, f"{{match: '{pf.name}', vfs: 4}}")

    daemon.until(lambda: len(vfs_of(pf)) == 4, "the kernel wants 0 between 2 and 4")


@contextmanager
def held_by_a_stuck_write(pf: Path) -> Iterator[None]:
    """Let a write to sriov_numvfs sleep in the kernel, with the lock of the PF."""
    write(pf / "sriov_numvfs", "1")
    vf = vfs_of(pf)[0]
    write(vf / "driver_override", "vfio-pci")
    write(Path("/sys/bus/pci/drivers_probe"), vf.name)
    with open_device(vf):
        removal = start_write(pf / "sriov_numvfs", "0")
        assert is_blocked(removal)
        yield
    assert removal.wait(60) == 0


def test_a_stuck_number_of_functions_holds_up_no_other_vm(quiet_pf: Path, daemon: Daemon) -> None:
    pf = quiet_pf
    with held_by_a_stuck_write(pf):
        configure(daemon, f"{{match: '{pf.name}', vfs: 4}}")
        daemon.drop("one", f"{TINY}gpus: [{{mdevType: mbochs-small}}]\n")
        daemon.wait_for("one", "running")
        daemon.call("kill", "one", wait="240")
    daemon.until(lambda: len(vfs_of(pf)) == 4, "they come when the kernel answers again")


# ---- network cards ----


@pytest.fixture
def igb() -> Iterator[Path]:
    """A network card with SR-IOV (outer QEMU 8.0 or later), without VFs before and after."""
    functions = [path for path in PCI.iterdir() if driver_of(path) == "igb"]
    if not functions:
        pytest.skip("the outer QEMU has no igb; use make lab SUITE=trixie")
    write(functions[0] / "sriov_drivers_autoprobe", "0")
    yield functions[0]
    write(functions[0] / "sriov_numvfs", "0")
    write(functions[0] / "sriov_drivers_autoprobe", "1")


def test_a_vm_gets_a_network_function_with_its_mac_address_and_gives_both_back(
    igb: Path, daemon: Daemon
) -> None:
    no_network = TINY.replace("networks: []\n", "")
    vm = f"{no_network}networks: [{{type: vf, mac: '52:54:00:aa:bb:cc'}}]\n"
    daemon.drop("one", vm)
    wait_until_it_waits(daemon, "one", "are not enabled")

    configure(daemon, f"{{match: '{igb.name}', vfs: 1}}")

    status = daemon.wait_for("one", "running")
    [vf] = vfs_of(igb)
    [owned] = daemon.records()["one"]["slices"]
    assert (owned["id"], owned["mac"]) == (vf.name, "52:54:00:aa:bb:cc")
    assert status["gpus"] == [], "it is no GPU"
    assert driver_of(vf) == "vfio-pci"
    assert any(f"vfio-pci,id=nic0,sysfsdev={owned['path']}" in word for word in status["argv"])
    assert mac_of(igb) == "52:54:00:aa:bb:cc"
    daemon.drop("two", f"{no_network}networks: [{{type: vf}}]\n")
    wait_until_it_waits(daemon, "two", "all are taken")

    daemon.call("kill", "one", wait="240")

    daemon.wait_for("two", "running")
    assert mac_of(igb) not in ("52:54:00:aa:bb:cc", owned["former_mac"])
    daemon.call("kill", "two", wait="240")
    daemon.until(lambda: not daemon.records()["two"]["slices"], "it is given back")
    assert driver_of(vf) is None
    assert mac_of(igb) == owned["former_mac"]


def mac_of(card: Path) -> str:
    """Return the address of a card's first virtual function, as ip(8) tells it."""
    [interface] = (path.name for path in (card / "net").iterdir())
    show = ["ip", "-json", "link", "show", "dev", interface]
    [link] = json.loads(subprocess.run(show, check=True, capture_output=True).stdout)
    return str(link["vfinfo_list"][0]["address"])
