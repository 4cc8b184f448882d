"""PCI addresses that change while no daemon runs: what was recorded of the old ones is void.

For a machine of its own, ``tests/lab/run -- tests/lab/renumbered.py``: late in a run of the whole
lab, its QEMU (7.2) dies when the bus is found again.
"""

from functools import partial
from pathlib import Path

from tests.lab.kernel import driver_of, kill_process, renumber
from tests.lab.vms import TINY
from tests.qemu.daemon import Daemon

FREE_BUS = 0x30


def test_a_card_comes_back_to_its_vm_at_its_new_address_and_is_given_back_there(
    daemon: Daemon, cards: list[Path]
) -> None:
    card, other = cards
    daemon.drop("other", f"{TINY}gpus: [{{kind: passthrough, address: '{other.name}'}}]\n")
    daemon.wait_for("other", "running")
    daemon.drop("one", f"{TINY}gpus: [{{kind: passthrough, vendor: '1234'}}]\n")
    before = daemon.wait_for("one", "running")
    assert before["gpus"][0]["id"] == card.name
    daemon.kill()
    kill_process(before["pid"])
    renumbered = renumber(card, FREE_BUS)
    try:
        daemon.start()

        after = daemon.wait_for("one", "running")
        assert after["gpus"][0]["id"] == renumbered.name
        assert driver_of(renumbered) == "vfio-pci"
        assert daemon.client.get("/v1/gpus/quarantine") == []
        for name, given in (("one", renumbered), ("other", other)):
            daemon.call("kill", name, wait="240")
            daemon.until(partial(is_unbound, given), "the card is given back")
    finally:
        renumber(renumbered, bus_of(card))


def bus_of(function: Path) -> int:
    """Return the bus number in a function's address."""
    return int(function.name.split(":")[1], 16)


def is_unbound(function: Path) -> bool:
    """Tell whether no driver has a function."""
    return driver_of(function) is None
