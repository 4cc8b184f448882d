"""PCI addresses that change while no daemon runs: what was recorded of the old ones is void."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.lab.kernel import PCI, driver_of, kill_process, renumber, wait_until, write
from tests.lab.vms import TINY
from tests.qemu.daemon import Daemon

FREE_BUS = 0x30


def test_a_card_comes_back_at_its_new_address_and_who_has_its_old_one_is_left_alone(
    daemon: Daemon, cards: list[Path], plug: Callable[[str], None]
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
    known = {path.name for path in PCI.iterdir()}
    plug("qxl")
    wait_until(lambda: len({path.name for path in PCI.iterdir()} - known) == 1)
    [found] = {path.name for path in PCI.iterdir()} - known
    stranger = renumber(PCI / found, bus_of(card))
    try:
        assert stranger.name == card.name
        write(stranger / "driver_override", "somebody")

        daemon.start()

        after = daemon.wait_for("one", "running")
        assert after["gpus"][0]["id"] == renumbered.name
        assert driver_of(renumbered) == "vfio-pci"
        assert (stranger / "driver_override").read_text().strip() == "somebody"
        assert driver_of(stranger) is None
        assert card.name in daemon.arcsup("events").stdout, "what was left alone is told"
        assert daemon.client.get("/v1/gpus/quarantine") == []
        for name, given in (("one", renumbered), ("other", other)):
            daemon.call("kill", name, wait="240")
            daemon.until(partial(is_unbound, given), "the card is given back")
    finally:
        renumber(stranger, int(found.split(":")[1], 16))
        renumber(renumbered, bus_of(card))


def bus_of(function: Path) -> int:
    """Return the bus number in a function's address."""
    return int(function.name.split(":")[1], 16)


def is_unbound(function: Path) -> bool:
    """Tell whether no driver has a function."""
    return driver_of(function) is None
