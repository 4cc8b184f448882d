"""Whether the host goes down, as service managers tell it, and how VMs stop with it."""

import errno
import itertools
import os
from pathlib import Path

import pytest
import trio
from attrs import evolve

from arcsup import shutdown
from arcsup.model import ConditionType, VmName
from arcsup.plan.lifecycle import Phase
from arcsup.shutdown import ask_for_time, host_goes_down, stop_all
from arcsup.vm import supervise
from arcsup.vm.managed import ManagedVm, StopOrder
from arcsup.vm.process import Process, ProcessId
from tests.small_host import SmallHost


def put_systemctl(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "systemctl").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "systemctl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("echo stopping; exit 1", True),
        ("echo degraded; exit 1", False),
        ("echo running", False),
        ("exit 1", False),
    ],
)
async def test_only_a_manager_that_stops_says_that_the_host_goes_down(
    script: str, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_systemctl(tmp_path, script, monkeypatch)

    assert await host_goes_down(system=True) is expected


async def test_a_users_own_manager_is_asked_about_the_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_systemctl(tmp_path, '[ "$1" = --user ] && echo stopping', monkeypatch)

    assert await host_goes_down(system=False)
    assert not await host_goes_down(system=True)


async def test_without_systemd_the_host_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    assert not await host_goes_down(system=True)


async def test_a_manager_that_could_not_be_asked_at_once_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_systemctl(tmp_path, "echo stopping", monkeypatch)
    failures, run = [OSError(errno.EAGAIN, "no process")], trio.run_process

    async def fail_once(argv: list[str], **options: object) -> object:
        if failures:
            raise failures.pop()
        return await run(argv, capture_stdout=True, check=False)

    monkeypatch.setattr(trio, "run_process", fail_once)

    assert await host_goes_down(system=True)


async def test_a_manager_that_does_not_answer_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_systemctl(tmp_path, "exec sleep 600", monkeypatch)
    monkeypatch.setattr(shutdown, "PATIENCE", 0.05)

    assert not await host_goes_down(system=True)


async def test_systemd_is_asked_again_before_its_patience_ends(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[float, int]] = []
    monkeypatch.setattr(
        shutdown, "notify", lambda **fields: asked.append((trio.current_time(), *fields.values()))
    )
    with trio.move_on_after(65):
        await ask_for_time()

    times = [time for time, _ in asked]
    assert len(times) > 5
    later = itertools.pairwise(times)
    assert all(1_000_000 * (after - before) < asked[0][1] for before, after in later)


# --- VMs that stop with the host -----------------------------------------------------------------


async def run_vms(tmp_path: Path, **files: str) -> tuple[SmallHost, list[ManagedVm]]:
    """Return a host on which VMs of these files run."""
    host = SmallHost(tmp_path)
    for name, text in files.items():
        host.drop(name, text)
    await host.fleet.read_files()
    vms = [host.fleet.vms[VmName(name)] for name in files]
    for vm in vms:
        vm.phase = Phase.RUNNING
    return host, vms


async def end_when_told(host: SmallHost, vm: ManagedVm, seconds: float) -> None:
    """Be the QEMU that ends some seconds after it was told to."""
    if vm.order is None:
        await vm.ordered.wait()
    await trio.sleep(seconds)
    vm.phase = Phase.DOWN
    host.fleet.changed.ring()


def mark_stuck(vm: ManagedVm) -> None:
    vm.set_condition(ConditionType.STUCK, "Uninterruptible", "the kernel waits", status=True)


async def stop_in(host: SmallHost, **seconds: float) -> float:
    """Stop all while these VMs end in their time; return how long that took."""
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        for name, its in seconds.items():
            nursery.start_soon(end_when_told, host, host.fleet.vms[VmName(name)], its)
        await stop_all(host.fleet)
        took = trio.current_time() - began
        nursery.cancel_scope.cancel()
    return took


async def test_a_vm_that_the_kernel_does_not_let_go_of_holds_nobody_up(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    host, (stuck, needed) = await run_vms(
        tmp_path, stuck="after: [needed]\n", needed="memory: 64\n"
    )
    mark_stuck(stuck)

    assert await stop_in(host, needed=5) == pytest.approx(5)

    assert (stuck.order, needed.phase) == (None, Phase.DOWN)


async def test_a_vm_that_gets_stuck_on_the_way_is_not_waited_for_either(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    host, (one, _) = await run_vms(tmp_path, one="memory: 64\n", two="memory: 64\n")

    async def get_stuck() -> None:
        await trio.sleep(20)
        mark_stuck(one)
        host.fleet.changed.ring()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(get_stuck)
        assert await stop_in(host, two=5) == pytest.approx(20)

    assert "the daemon ends without VM one" in caplog.text


async def test_the_host_waits_no_longer_than_the_longest_stop_may_take(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    host, _ = await run_vms(
        tmp_path, quick="stop: {timeout: 10s}\n", slow="stop: {timeout: 100s}\n"
    )

    assert await stop_in(host) == pytest.approx(130)

    assert "the daemon ends without VM quick, slow" in caplog.text


async def test_hooks_have_their_time_too(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    hooks = "hooks: {preStop: [[/a], [/b]], postStop: [[/c]]}\n"
    host, _ = await run_vms(tmp_path, one="stop: {timeout: 10s}\n" + hooks)

    assert await stop_in(host) == pytest.approx(10 + 30 + 3 * 30)


async def test_vms_that_others_come_after_have_all_their_time_as_well(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    patient = "stop: {timeout: 60s}\n"
    host, vms = await run_vms(
        tmp_path,
        app=patient + "after: [cache]\n",
        cache=patient + "after: [base]\n",
        base=patient,
    )

    assert await stop_in(host, app=75, cache=75, base=75) == pytest.approx(225)

    assert [vm.phase for vm in vms] == [Phase.DOWN] * 3


async def test_vms_in_a_circle_stop_together(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    host, _ = await run_vms(tmp_path, one="memory: 64\n", two="memory: 64\n")
    one, two = (host.fleet.vms[VmName(name)] for name in ("one", "two"))
    # The VM directory is read without faults only where there is no circle.
    one.asked = evolve(one.asked, after=(two.name,))
    two.asked = evolve(two.asked, after=(one.name,))

    assert await stop_in(host, one=5, two=5) == pytest.approx(5)
    assert await stop_in(host) == 0


async def test_who_waits_for_a_stop_hears_that_it_is_stuck(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise trio.TooSlowError

    host, (vm,) = await run_vms(tmp_path, one="memory: 64\n")
    rung: list[bool] = []
    host.fleet.workshop.changed = lambda: rung.append(vm.conditions[ConditionType.STUCK].status)
    monkeypatch.setattr(supervise, "stop_qemu", fail)

    process = Process(ProcessId("boot", os.getpid(), 0), os.pidfd_open(os.getpid()))
    await supervise._climb(vm, host.fleet.workshop, process, StopOrder("the daemon ends"))
    process.close()

    assert rung == [True]
