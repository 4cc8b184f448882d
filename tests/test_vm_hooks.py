"""Hooks: without a shell, in order, with a deadline, and never for root from others' files."""

import os
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from arcsup.errors import Terminal
from arcsup.model import Argv, Hooks, Vm, VmName
from arcsup.places import Places
from arcsup.vm import hooks as hooks_module
from arcsup.vm.hooks import run_hooks
from arcsup.vm.managed import ManagedVm, Workshop
from arcsup.vm.record import Record, RecordStore, Source

NAME = VmName("web")


class Told:
    """Remembers what was told."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def __call__(self, vm: VmName | None, kind: str, message: str, **data: Any) -> None:
        self.messages.append(f"{kind}: {message}")


@pytest.fixture
def told() -> Told:
    return Told()


def make(tmp_path: Path, told: Told, *, system: bool = False) -> Workshop:
    (tmp_path / "log" / NAME).mkdir(parents=True)
    return Workshop(
        places=Places(
            config=tmp_path / "arcsup.yaml",
            vms=tmp_path,
            run=tmp_path / "run",
            state=tmp_path / "state",
            log=tmp_path / "log",
            sysfs=Path("/sys"),
            system=system,
        ),
        machine_id="m",
        boot_id="b",
        records=RecordStore(tmp_path / "state"),
        tell=told,
        changed=lambda: None,
        became_ready=lambda vm, seconds: None,
        ended=lambda vm, last_exit, *, comes_back: None,
        device_failed=lambda choice: None,
    )


def make_vm(tmp_path: Path, *commands: Argv) -> ManagedVm:
    file = tmp_path / "web.yaml"
    file.touch()
    every = Hooks(pre_start=commands, post_start=commands, pre_stop=commands, post_stop=commands)
    vm = Vm(name=NAME, uuid=UUID(int=7), hooks=every)
    return ManagedVm(Record(NAME, Source(str(file), "", "")), vm)


def script(tmp_path: Path, name: str, text: str) -> Argv:
    path = tmp_path / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return (str(path),)


async def test_hooks_run_in_order_and_know_which_vm_and_which_moment(
    tmp_path: Path, told: Told
) -> None:
    first = script(tmp_path, "first", 'echo "first $ARCSUP_VM $ARCSUP_UUID $ARCSUP_MOMENT"')
    second = script(tmp_path, "second", "echo second")

    await run_hooks(make_vm(tmp_path, first, second), make(tmp_path, told), "postStart")

    log = (tmp_path / "log" / NAME / "hooks.log").read_text()
    assert log == f"first web {UUID(int=7)} postStart\nsecond\n"
    assert told.messages == []


async def test_arguments_are_not_read_by_a_shell(tmp_path: Path, told: Told) -> None:
    show = script(tmp_path, "show", 'printf "%s\\n" "$@"')

    await run_hooks(make_vm(tmp_path, (*show, "$HOME; id")), make(tmp_path, told), "preStop")

    assert (tmp_path / "log" / NAME / "hooks.log").read_text() == "$HOME; id\n"


async def test_a_vm_does_not_start_without_its_prestart_hook(tmp_path: Path, told: Told) -> None:
    failing = script(tmp_path, "failing", "exit 3")

    with pytest.raises(Terminal, match=r"preStart hook .*failing: exit code 3; its output is in"):
        await run_hooks(make_vm(tmp_path, failing), make(tmp_path, told), "preStart")


async def test_another_hook_that_fails_is_told_and_ends_its_list(
    tmp_path: Path, told: Told
) -> None:
    failing = script(tmp_path, "failing", "exit 3")
    never = script(tmp_path, "never", "echo never")

    await run_hooks(make_vm(tmp_path, failing, never), make(tmp_path, told), "postStop")

    assert len(told.messages) == 1
    assert "hook-failed: postStop hook" in told.messages[0]
    assert (tmp_path / "log" / NAME / "hooks.log").read_text() == ""


async def test_a_hook_that_hangs_is_ended(
    tmp_path: Path, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hooks_module, "DEADLINE", 0.1)
    hanging = script(tmp_path, "hanging", "exec sleep 60")

    await run_hooks(make_vm(tmp_path, hanging), make(tmp_path, told), "postStop")

    assert "took longer than 0.1 s and was ended" in told.messages[0]


async def test_a_hook_that_is_not_there_says_so(tmp_path: Path, told: Told) -> None:
    await run_hooks(make_vm(tmp_path, ("/nonexistent",)), make(tmp_path, told), "postStop")

    assert "cannot be run: No such file or directory" in told.messages[0]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files that are root's")
@pytest.mark.parametrize(
    ("target", "mode", "owner", "why"),
    [
        ("hook", 0o775, 0, "can be written by others than root"),
        ("hook", 0o755, 65534, "does not belong to root"),
        ("web.yaml", 0o666, 0, "can be written by others than root"),
        ("web.yaml", 0o644, 65534, "does not belong to root"),
    ],
)
async def test_root_runs_no_hook_that_somebody_else_could_have_written(
    tmp_path: Path, told: Told, target: str, mode: int, owner: int, why: str
) -> None:
    hook = script(tmp_path, "hook", f"touch {tmp_path}/ran")
    vm = make_vm(tmp_path, hook)
    (tmp_path / target).chmod(mode)
    os.chown(tmp_path / target, owner, -1)

    await run_hooks(vm, make(tmp_path, told, system=True), "postStop")

    assert why in told.messages[0]
    assert not (tmp_path / "ran").exists()


async def test_a_hook_has_the_limit_of_descriptors_that_the_daemon_was_started_with(
    tmp_path: Path, told: Told
) -> None:
    workshop = make(tmp_path, told)
    workshop.hook_descriptors = 77
    vm = make_vm(tmp_path, script(tmp_path, "hook", f"ulimit -S -n >{tmp_path}/limit"))

    await run_hooks(vm, workshop, "postStart")

    assert told.messages == []
    assert (tmp_path / "limit").read_text() == "77\n"
