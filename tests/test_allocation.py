"""Which slices VMs get, from VM files and records to what a start takes."""

from pathlib import Path

from arcsup.devices import Backend
from arcsup.host.owned import OwnedSlice, Rebinding
from arcsup.model import VmName
from tests.small_host import SmallHost

CARD = "0000:41:00.0"
A, B = VmName("a"), VmName("b")


async def test_after_a_power_loss_a_card_goes_back_before_another_vm_gets_it(
    tmp_path: Path,
) -> None:
    """The card is on its own driver again, and only the record of the VM that had it tells."""
    host = SmallHost(tmp_path)
    host.tree.populate_pci(CARD, driver="nvidia", group=7)
    host.drop("a", "networks: []\nautostart: false\ngpus: [{kind: passthrough}]\n")
    host.drop("b", "networks: []\ngpus: [{kind: passthrough}]\n")
    await host.plan()
    assert [it.id for it in host.fleet.allocation.choices_for(B)] == [CARD]
    had = OwnedSlice(
        Backend.PASSTHROUGH, 0, CARD, CARD, CARD, None, "", (Rebinding(CARD, "nvidia", None),)
    )

    await host.fleet.vms[A].save(host.fleet.workshop, slices=(had,))
    await host.plan()
    assert "VM a has yet to give it back" in host.fleet.allocation.awaited_by(B)

    await host.fleet.vms[A].save(host.fleet.workshop, slices=())
    await host.plan()
    assert [it.id for it in host.fleet.allocation.choices_for(B)] == [CARD]
