"""An entry of arcsup.yaml that counts for nothing is told, with its line, wherever people look."""

from pathlib import Path

import pytest
from attrs import evolve

from arcsup.devices import Card, Function, Inventory, NetworkCard, NetworkVf, VfQuota
from arcsup.offline import plan_for_host, plan_offline
from arcsup.plan.entries import find_void_gpu_entries, find_void_usb_entries
from arcsup.plan.usb import UsbDevice
from arcsup.setup.checks.gpus import check_entries
from arcsup.setup.findings import Level
from arcsup.setup.host import Host
from arcsup.spec.config import GpuPolicy, UsbPolicy, load_config
from arcsup.void_entries import find_void_gpus
from tests.cli_runner import Cli
from tests.fake_supervisor import FakeSupervisor
from tests.small_host import SmallHost

CARD, VF, AUDIO, NIC = "0000:41:00.0", "0000:41:00.4", "0000:41:00.1", "0000:01:00.0"
NIC_VF = "0000:01:10.0"
HOST = Inventory(
    cards=(
        Card(
            CARD,
            "",
            "a card",
            "10de",
            "2230",
            vfs=(Function(VF, "nvidia", 3, ""),),
            companions=(Function(AUDIO, None, 1, ""),),
        ),
    ),
    network_cards=(NetworkCard(NIC, "8086", "10c9", vfs=(NetworkVf(NIC_VF, 4),)),),
)


def told(*entries: GpuPolicy) -> dict[str, str]:
    return dict(find_void_gpu_entries(HOST, entries))


@pytest.mark.parametrize(
    "match", [CARD, VF, AUDIO, NIC, NIC_VF, "10de", "10de:2230", "8086:10c9", "*"]
)
def test_an_entry_that_names_something_is_told_nothing_of(match: str) -> None:
    assert told(GpuPolicy(match, exclude=True)) == {}


@pytest.mark.parametrize("match", ["0000:14:00.0", "8086", "10de:2231", "8086:10ca"])
def test_an_entry_that_matches_nothing_is_told(match: str) -> None:
    (what,) = told(GpuPolicy("*"), GpuPolicy(match, exclude=True)).items()
    assert what[0] == "gpus[1].match"
    assert what[1].startswith(f"{match} matches nothing on this host: ")


@pytest.mark.parametrize("earlier", ["*", "10de", "10de:2230"])
def test_an_entry_behind_one_that_counts_for_all_that_it_matches_is_told(earlier: str) -> None:
    void = told(GpuPolicy(earlier, vfs=4), GpuPolicy(CARD, exclude=True))
    what = f"{CARD} has no effect: gpus[0] ({earlier}) matches {CARD} before it"
    assert void == {"gpus[1].match": what}
    assert told(GpuPolicy(CARD, exclude=True), GpuPolicy(earlier, vfs=4)).keys() <= {
        "gpus[1].match"
    }


def test_a_second_entry_for_the_same_is_told() -> None:
    void = told(GpuPolicy(VF), GpuPolicy(CARD), GpuPolicy(VF, exclude=True))
    assert void == {"gpus[2].match": f"{VF} is in gpus[0] already, and the first counts"}


@pytest.mark.parametrize("match", [VF, AUDIO, NIC_VF])
def test_what_counts_only_for_a_whole_card_is_told_where_a_part_of_one_is_named(match: str) -> None:
    for more in (GpuPolicy(match, vfs=2), GpuPolicy(match, vf_quota=VfQuota())):
        assert "nothing but `exclude` counts for it" in told(more)["gpus[0].match"]


def test_nothing_is_told_while_the_kernel_does_not_answer() -> None:
    entries = (GpuPolicy("0000:14:00.0"),)
    assert list(find_void_gpu_entries(evolve(HOST, stale=True), entries)) == []


def test_usb_entries_are_told_that_count_for_nothing_that_is_plugged_in() -> None:
    stick = UsbDevice("1-2", "0781", "5581", 1, "2", "/dev/bus/usb/001/002")
    entries = tuple(UsbPolicy(it) for it in ("0781", "1-2", "046d:c52b", "*"))
    found = dict(find_void_usb_entries([stick], entries))
    assert found.keys() == {"usb[1].match", "usb[2].match"}


TEXT = "# mine\ngpus:\n  - {match: 00000000:41:00.0, exclude: true}\n  - match: 14:00.0\n"
LINE = "0000:14:00.0 matches nothing on this host"


@pytest.fixture
def host(tmp_path: Path) -> SmallHost:
    host = SmallHost(tmp_path)
    host.tree.populate_pci(CARD)
    host.places.config.write_text(TEXT)
    host.drop("vm", "memory: 64\nnetworks: []\n")
    return host


def test_the_eight_digits_of_nvidia_smi_name_the_same_card(host: SmallHost) -> None:
    assert load_config(host.places.config).gpus[0].match == CARD


def test_check_warns_with_file_and_line(
    host: SmallHost, capsys: pytest.CaptureFixture[str]
) -> None:
    cli = Cli(FakeSupervisor(), host.top / "nowhere", capsys)
    places = ("--config", str(host.places.config), "--vms", str(host.places.vms))
    result = cli("check", *places, "--sysfs", str(host.places.sysfs))
    assert result.code == 0, "a warning is no fault"
    where = f"{host.places.config}:4:12: warning: gpus[1].match: {LINE}"
    assert [line for line in result.out.splitlines() if line.startswith(where)]


def test_a_plan_warns_with_file_and_line_and_that_is_no_change(host: SmallHost) -> None:
    steps = plan_offline(host.places, load_config(host.places.config))
    (warning,) = [step for step in steps if step.verb == "warn"]
    assert warning.object == f"{host.places.config}:4:12"
    assert warning.because.startswith(f"gpus[1].match: {LINE}")
    there = plan_for_host(host.places, load_config(host.places.config), HOST)
    assert [step.object for step in there if step.verb == "warn"] == [warning.object]


def test_doctor_warns_with_file_and_line(host: SmallHost) -> None:
    found = list(check_entries(Host(host.places)))
    assert [it.level for it in found] == [Level.WARNING]
    assert f"{host.places.config}:4:12: gpus[1].match: {LINE}" in found[0].what
    host.places.config.write_text("gpus: [{match: '*', vfs: 2}]\n")
    assert [it.level for it in check_entries(Host(host.places))] == [Level.OK]


def test_a_file_that_was_changed_since_it_was_read_is_told_without_a_line(host: SmallHost) -> None:
    config = load_config(host.places.config)
    host.places.config.write_text("gpus: []\n")
    (fault,) = find_void_gpus(config, host.places.config, host.places.sysfs)
    assert (fault.line, fault.path) == (1, "gpus[1].match")
