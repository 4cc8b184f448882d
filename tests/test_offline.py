"""plan and gpu types without a daemon: the same answers, and nothing is written."""

import json
import os
from pathlib import Path

import pytest
import trio

from arcsup.control.gpus import view_inventory
from arcsup.host.inventory import observe_host
from arcsup.offline import plan_for_host, plan_offline
from arcsup.plan.plan import Intent
from arcsup.spec.config import Config
from arcsup.steps import list_steps
from tests.cli_runner import Cli
from tests.fake_supervisor import FakeSupervisor
from tests.host_tree import read_tree
from tests.small_host import SmallHost

LARGE = "memory: 64\ngpus: [{mdevType: mbochs-large}]\n"


@pytest.fixture
def host(tmp_path: Path) -> SmallHost:
    host = SmallHost(tmp_path)
    for number in range(5):
        host.drop(f"vm{number}", LARGE)
    host.drop("late", "memory: 64\nafter: [vm0]\n")
    host.drop("loose", "memory: 64\ngpus: [{vendor: '10de', optional: true}]\n")
    return host


@pytest.fixture
def cli(host: SmallHost, capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(FakeSupervisor(), host.top / "run", capsys)


def places(host: SmallHost) -> list[str]:
    where = host.places
    options = {"vms": where.vms, "state": where.state, "sysfs": where.sysfs}
    return [f"--{name}={path}" for name, path in options.items()]


def test_a_plan_says_who_starts_with_what_who_waits_and_why(host: SmallHost) -> None:
    steps = plan_offline(host.places, Config(start_limit=9))

    assert [(step.verb, step.object) for step in steps] == [
        ("omit", "gpus[0] of loose"),
        ("start", "loose"),
        *(
            step
            for number in range(4)
            for step in (("make", "mbochs-large on mbochs"), ("start", f"vm{number}"))
        ),
        ("wait", "late"),
        ("wait", "vm4"),
    ]
    reasons = {step.object: step.because for step in steps}
    assert reasons["late"] == "VM vm0 to run"
    assert reasons["vm4"].startswith("gpus[0]: mbochs-large on mbochs: ")
    assert "10de" in reasons["gpus[0] of loose"]


def test_the_daemons_plan_is_the_same(host: SmallHost) -> None:
    host.fleet.start_slots = 9

    async def plan() -> list[object]:
        await host.plan()
        return list(list_steps(host.fleet))

    assert trio.run(plan) == plan_offline(host.places, Config(start_limit=9))


def test_nothing_is_written(host: SmallHost) -> None:
    before = read_tree(host.top)
    plan_offline(host.places, Config())
    assert read_tree(host.top) == before


def test_the_journal_counts(host: SmallHost) -> None:
    async def stop_one() -> None:
        await host.plan()
        await host.fleet.vms[next(iter(host.fleet.vms))].save(
            host.fleet.workshop, intent=Intent.STOP, intent_boot=host.fleet.workshop.boot_id
        )

    trio.run(stop_one)
    (stopped,) = [n for n, vm in host.fleet.vms.items() if vm.record.intent is Intent.STOP]

    steps = plan_offline(host.places, Config(start_limit=9))

    assert stopped not in [step.object for step in steps]


def test_files_are_planned_onto_another_host_by_its_inventory(host: SmallHost) -> None:
    inventory = observe_host(host.places.sysfs)
    (host.top / "sys").rename(host.top / "elsewhere")

    steps = plan_for_host(host.places, Config(start_limit=1), inventory)

    assert [step.object for step in steps if step.verb == "wait"] == ["late", "vm4"]
    assert sum(step.verb == "make" for step in steps) == 4


def test_the_verb_reads_an_inventory_and_tells_changes_by_its_exit_code(
    host: SmallHost, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = host.top / "far.json"
    file.write_text(json.dumps(view_inventory(observe_host(host.places.sysfs))))
    vms = f"--vms={host.places.vms}"

    result = cli("plan", "--inventory", str(file), vms, "--detailed-exitcode", "--json")

    assert result.code == 2
    assert {step["verb"] for step in result.json} == {"make", "start", "wait", "omit"}
    assert cli("plan", "--inventory", str(host.top / "missing"), vms).code == 4
    file.write_text("{}")
    assert cli("plan", "--inventory", str(file), vms).code == 1
    assert cli("plan", "--inventory", str(file), "--sysfs=/sys", vms).code == 2


def test_the_verb_needs_no_daemon(host: SmallHost, cli: Cli) -> None:
    result = cli("plan", "--offline", *places(host))
    assert result.code == 0
    assert "mbochs-large on mbochs" in result.out
    assert cli("plan", "--offline", "--sysfs=/nonexistent").code == 4


def test_types_are_judged_without_a_daemon(host: SmallHost, cli: Cli) -> None:
    lacking = cli("gpu", "types", "--for", "vm4", "--json", *places(host))
    assert lacking.code == 3
    assert not any(verdict["chosen"] for verdict in lacking.json)
    file = host.top / "try.yaml"
    file.write_text("memory: 64\ngpus: [{mdevType: mbochs-small}]\n")
    fitting = cli("gpu", "types", "--for", str(file), "-o", "name", *places(host))
    assert (fitting.code, fitting.out) == (0, "mbochs-small\n")
    assert cli("gpu", "types", "--for", "nope", *places(host)).code == 4


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_journal_that_may_not_be_read_is_no_permission(host: SmallHost, cli: Cli) -> None:
    host.places.state.mkdir(exist_ok=True)
    host.places.state.chmod(0)
    try:
        assert cli("plan", "--offline", *places(host)).code == 5
    finally:
        host.places.state.chmod(0o700)


CARD = "0000:04:00.0"


@pytest.mark.parametrize("state", ["up", "down"])
def test_a_plan_names_what_goes_along_with_a_card_and_what_the_host_uses_of_it(
    tmp_path: Path, state: str
) -> None:
    host = SmallHost(tmp_path)
    files = {"driver_override": "(null)\n"}
    host.tree.populate_pci(CARD, driver="amdgpu", group=5, files=files)
    usb = host.tree.populate_pci(
        "0000:04:00.3", pci_class="0x0c0330", driver="xhci_hcd", group=5, files=files
    )
    host.tree.write(f"{usb}/usb1/1-1/1-1:1.0/net/enx0/operstate", f"{state}\n")
    host.drop("vm", f"memory: 64\ngpus: [{{kind: passthrough, address: '{CARD}'}}]\n")
    first, *_ = plan_offline(host.places, Config())
    if state == "down":
        assert (first.verb, first.object) == ("bind", CARD)
        assert first.because.endswith("; along with it go 0000:04:00.3 (USB controller)")
    else:
        assert (first.verb, first.object) == ("wait", "vm")
        told = "0000:04:00.3 (USB controller) has the host's network interface enx0"
        assert told in first.because
        forced = f"{{kind: passthrough, address: '{CARD}', force: true}}"
        host.drop("vm", f"memory: 64\ngpus: [{forced}]\n")
        first, *_ = plan_offline(host.places, Config())
        assert (first.verb, first.object) == ("bind", CARD)
        assert first.because.endswith("; whatever of the host uses it (force)")


def test_a_plan_says_what_of_a_card_stays_with_the_host_and_why(tmp_path: Path) -> None:
    host = SmallHost(tmp_path)
    files = {"driver_override": "(null)\n"}
    host.tree.populate_pci(CARD, driver="amdgpu", group=5, files=files)
    host.tree.populate_pci("0000:04:00.1", pci_class="0x040300", group=6, files=files)
    host.tree.populate_pci("0000:05:00.0", pci_class="0x010802", driver="nvme", group=6)
    host.drop("vm", f"memory: 64\ngpus: [{{kind: passthrough, address: '{CARD}'}}]\n")
    first, *_ = plan_offline(host.places, Config())
    assert first.because.endswith(
        "; 0000:04:00.1 (audio) stays: IOMMU group 6: 0000:05:00.0 is in use by the host's "
        "driver nvme"
    )


def test_a_plan_says_which_function_of_a_card_cannot_be_reset(tmp_path: Path) -> None:
    host = SmallHost(tmp_path)
    files = {"driver_override": "(null)\n", "reset_method": "\n"}
    host.tree.populate_pci(CARD, driver="amdgpu", group=5, files=files)
    host.drop("vm", f"memory: 64\ngpus: [{{kind: passthrough, address: '{CARD}'}}]\n")
    first, second = plan_offline(host.places, Config())
    assert f"; no reset_method for {CARD}: unless a reset of the bus" in first.because
    assert (first.verb, second.verb) == ("bind", "start")
