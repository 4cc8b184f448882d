"""Devices that are there and of no use: what loses them, whom that ends, what brings them back."""

from pathlib import Path

import pytest
from attrs import define, field

from arcsup.devices import Backend
from arcsup.host.kmsg import LogRecord
from arcsup.host.loss_events import LossEvent, read_loss_event
from arcsup.host.owned import OwnedSlice
from arcsup.losses import Losses
from arcsup.model import VmName
from tests.small_host import SmallHost
from tests.trees import P4, Tree

CARD, SOUND, VF = "0000:2b:00.0", "0000:2b:00.1", "0000:2b:00.4"
BRIDGE = "/devices/pci0000:00/0000:00:1b.0"
CARD_PATH = f"{BRIDGE}/{CARD}"
FALLEN = "NVRM: Xid (PCI:0000:2b:00): 79, GPU has fallen off the bus."
HALT = "an internal microcontroller halted"
HALTED = "NVRM: Xid (PCI:0000:2b:00): 62, pid=1, name=x"
RECOVERED = (
    "NVRM: Xid (PCI:0000:2b:00): 154, GPU recovery action changed"
    " from 0x1 (GPU Reset Required) to 0x0 (None)"
)
WEDGED = {
    "ACTION": "change",
    "SUBSYSTEM": "drm",
    "DEVPATH": f"{CARD_PATH}/drm/card1",
    "WEDGED": "rebind,bus-reset",
}
PCI = {"SUBSYSTEM": "pci", "DEVPATH": CARD_PATH}
AER_FAILED = {**PCI, "ACTION": "change", "ERROR_EVENT": "FAILED_RECOVERY", "DEVICE_ONLINE": "0"}
NOW = 1000.0
"""When this daemon began."""


@define
class Host:
    """What was heard of a host with one card behind a bridge."""

    losses: Losses
    told: list[str] = field(factory=list)
    changes: list[int] = field(factory=list)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    tree = Tree(tmp_path)
    for address in (CARD, SOUND, VF):
        path = f"{CARD_PATH.removeprefix('/').rpartition('/')[0]}/{address}"
        tree.write(f"{path}/class", "0x030000\n")
        tree.link(f"bus/pci/devices/{address}", path)
    host = Host(Losses(tmp_path, since=NOW))
    host.losses.tell = lambda address, sentence: host.told.append(f"{address}: {sentence}")
    host.losses.changed = lambda: host.changes.append(1)
    return host


def slice_on(card: str = CARD, vf: str = VF) -> OwnedSlice:
    path = f"/sys/bus/pci/devices/{vf}"
    return OwnedSlice(Backend.VENDOR_VFIO, 0, vf, card, vf, "nvidia-1148", path)


def said(text: str, at: float = NOW + 5) -> LogRecord:
    return LogRecord(0, at, text)


def test_an_xid_loses_every_function_in_the_slot(host: Host) -> None:
    host.losses.hear_log(said(FALLEN))
    because = "Xid 79: the GPU has fallen off the bus"
    assert host.losses.lost() == dict.fromkeys((CARD, SOUND, VF), because)
    assert host.told[0] == f"{CARD}: it is lost: {because}"
    assert host.changes


def test_a_vm_that_has_a_part_of_it_must_end_and_says_why(host: Host) -> None:
    host.losses.hear_log(said(FALLEN))
    why = f"{VF} is lost: Xid 79: the GPU has fallen off the bus"
    assert host.losses.find([slice_on()], started_at=NOW) == why
    elsewhere = slice_on(card="0000:41:00.0", vf="0000:41:00.4")
    assert host.losses.find([elsewhere], started_at=NOW) == ""


def test_what_was_lost_before_a_vm_began_is_not_its_loss(host: Host) -> None:
    host.losses.hear_log(said(FALLEN, at=NOW + 5))
    assert host.losses.find([slice_on()], started_at=NOW + 6) == ""


def test_an_old_log_bars_nothing_unless_a_vm_has_lived_through_it(host: Host) -> None:
    host.losses.hear_log(said(FALLEN, at=NOW - 100))
    assert host.losses.lost() == {}
    assert host.told == []
    assert host.losses.find([slice_on()], started_at=NOW - 50) == ""
    assert host.losses.lost() == {}

    assert host.losses.find([slice_on()], started_at=NOW - 200)
    assert set(host.losses.lost()) == {VF}


def test_a_loss_of_before_hides_no_later_one(host: Host) -> None:
    host.losses.hear_log(said(FALLEN, at=NOW - 200))
    host.losses.hear_log(said(HALTED, at=NOW - 100))
    assert host.losses.find([slice_on()], started_at=NOW - 150).endswith(": Xid 62: " + HALT)

    host = Host(Losses(host.losses.root, since=NOW))
    host.losses.tell = lambda address, sentence: host.told.append(f"{address}: {sentence}")
    host.losses.hear_log(said(HALTED, at=NOW - 100))
    host.losses.hear_log(said(FALLEN, at=NOW + 5))
    because = "Xid 79: the GPU has fallen off the bus"
    assert host.losses.lost() == dict.fromkeys((CARD, SOUND, VF), because)
    assert host.told[0] == f"{CARD}: it is lost: {because}"


def test_what_follows_a_loss_is_told_no_more_and_ends_who_lives_through_it(host: Host) -> None:
    host.losses.hear_log(said(FALLEN, at=NOW + 5))
    told = list(host.told)
    host.losses.hear_log(said(HALTED, at=NOW + 9))
    assert host.told == told
    assert host.losses.find([slice_on()], started_at=NOW + 7).endswith("off the bus")


def test_a_flood_of_a_guests_faults_is_told_once_and_ends_nothing(host: Host) -> None:
    for _ in range(1000):
        host.losses.hear_log(said("NVRM: Xid (PCI:0000:2b:00): 31, pid=1, name=x"))
    assert host.told == [f"{it}: Xid 31: page fault in GPU memory" for it in (CARD, SOUND, VF)]
    assert host.losses.lost() == {}
    assert not host.changes


@pytest.mark.parametrize(
    "event",
    [
        {**PCI, "ACTION": "add"},
        {**PCI, "ACTION": "bind", "DRIVER": "nvidia"},
        {**AER_FAILED, "ERROR_EVENT": "SUCCESSFUL_RECOVERY", "DEVICE_ONLINE": "1"},
    ],
)
def test_a_device_that_is_there_anew_is_lost_no_more(host: Host, event: dict[str, str]) -> None:
    host.losses.hear_uevent(WEDGED)
    assert CARD in host.losses.lost()
    host.losses.hear_uevent(event)
    assert CARD not in host.losses.lost()
    assert host.told[-1] == f"{CARD}: it may be used again"


def test_a_driver_that_has_recovered_its_card_brings_it_back(host: Host) -> None:
    host.losses.hear_log(said(FALLEN))
    host.losses.hear_log(said(RECOVERED, at=NOW + 9))
    assert host.losses.lost() == {}


@pytest.mark.parametrize(
    "event",
    [
        {**PCI, "ACTION": "bind", "DRIVER": "vfio-pci"},
        {**PCI, "ACTION": "change"},
        {**PCI, "ACTION": "unbind"},
        {**PCI, "ACTION": "add", "SYNTH_UUID": "0"},
        {**PCI, "ACTION": "bind", "DRIVER": "nvidia", "SYNTH_UUID": "0"},
        {**WEDGED, "WEDGED": "none"},
        {**AER_FAILED, "ERROR_EVENT": "BEGIN_RECOVERY"},
        {"ACTION": "add", "SUBSYSTEM": "drm", "DEVPATH": f"{CARD_PATH}/drm/card1"},
        {"ACTION": "add", "SUBSYSTEM": "pci", "DEVPATH": "/devices/pci0000:00"},
    ],
)
def test_other_events_neither_lose_nor_bring_back(event: dict[str, str]) -> None:
    assert read_loss_event(event) is None


def test_a_driver_that_gives_up_is_believed_with_its_advice() -> None:
    because = "its driver has given it up (WEDGED=rebind,bus-reset)"
    assert read_loss_event(WEDGED) == LossEvent(CARD_PATH, because)


def test_a_bridge_that_cannot_be_recovered_takes_along_what_is_behind_it(host: Host) -> None:
    host.losses.hear_uevent({**AER_FAILED, "DEVPATH": BRIDGE})
    assert {CARD, SOUND, VF} < set(host.losses.lost())


async def test_a_lost_card_is_given_to_nobody_and_shown_as_lost(tmp_path: Path) -> None:
    host = SmallHost(tmp_path)
    path = host.tree.populate_pci(CARD, driver="nvidia")
    host.tree.populate_types(path, P4)
    host.drop("web", "memory: 64\ngpus: [{mdevType: nvidia-64}]\n")
    await host.plan()
    assert host.fleet.allocation.awaited_by(VmName("web")) == ""

    allocation = host.fleet.allocation
    allocation.losses.hear_log(said(FALLEN, at=allocation.losses.since + 1))
    await host.plan()

    assert "it is lost: Xid 79" in allocation.awaited_by(VmName("web"))
    [card] = [it for it in (await host.operator.inventory()).cards if it.address == CARD]
    assert (card.usable, card.why) == (False, "it is lost: Xid 79: the GPU has fallen off the bus")
    assert CARD in host.operator.quarantined()
    assert next(iter(host.fleet.findings())).startswith(f"{CARD} is lost")
    assert host.operator.unquarantine(CARD) == [CARD]
    await host.plan()
    assert allocation.awaited_by(VmName("web")) == ""
