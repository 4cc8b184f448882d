"""What doctor tells of real devices: the IOMMU, the modules, and what VMs can have of each card."""

from pathlib import Path

from arcsup.places import Places
from arcsup.setup.checks.gpus import check_cards
from arcsup.setup.checks.kernel import check_interrupt_remapping, check_iommu, check_modules
from arcsup.setup.findings import Level
from arcsup.setup.host import Host
from tests.lab.test_inventory import Nvidia


def this_host() -> Host:
    return Host(Places.default(system=True))


def test_the_iommu_and_the_modules_of_devices_are_found() -> None:
    host = this_host()

    found = [*check_iommu(host), *check_interrupt_remapping(host), *check_modules(host)]

    # Modules may be loaded or only there, by what ran before.
    assert {finding.level for finding in found} <= {Level.OK, Level.INFO}
    assert found[0].level is Level.OK


def test_each_card_is_told_with_what_vms_can_have_of_it(
    nvidia: Nvidia, gvtg: Path, mbochs: Path
) -> None:
    card = nvidia(card="p4")

    told = {finding.what.split()[0]: finding for finding in check_cards(this_host())}

    for address in (card.name, gvtg.name, mbochs.name):
        assert told[address].level is Level.OK
        assert "mdev" in told[address].what
