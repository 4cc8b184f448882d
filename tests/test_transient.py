"""VMs from files that are not in the VM directory: what is refused before anything is recorded."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from arcsup.errors import Refused
from arcsup.model import VmName
from arcsup.plan.mode import NORMAL
from arcsup.spec.native import load_vm
from arcsup.transient import take_up
from arcsup.vm.record import Record, Source
from tests.small_host import MACHINE, SmallHost

TRY = "name: try\nmemory: 64\n"


async def start(host: SmallHost, file: Path, text: str = TRY) -> None:
    await take_up(host.fleet, file, text, load_vm(text, file, MACHINE), NORMAL)


def record_of(host: SmallHost) -> Path:
    return host.places.state / "vms" / "try.json"


async def test_a_record_that_cannot_be_read_is_kept_and_its_vm_not_started(tmp_path: Path) -> None:
    host = SmallHost(tmp_path)
    record_of(host).write_text('{"name": "tr')
    host.open()

    with pytest.raises(Refused) as caught:
        await start(host, tmp_path / "try.yaml")

    assert f"{record_of(host)} cannot be read" in caught.value.message
    assert "remove the file, and start the daemon again" in caught.value.message
    assert "\n" not in caught.value.message
    assert record_of(host).read_text() == '{"name": "tr'
    assert host.fleet.vms == {}


async def test_a_record_of_a_vm_that_is_none_any_more_is_kept_too(tmp_path: Path) -> None:
    source = Source(str(tmp_path / "try.yaml"), "memory: none\n", "")
    host = SmallHost(tmp_path)
    await host.fleet.workshop.records.save(Record(VmName("try"), source))
    host.open()
    before = record_of(host).read_text()

    with pytest.raises(Refused) as caught:
        await start(host, tmp_path / "try.yaml")

    assert f"{record_of(host)} is wrong: " in caught.value.message
    assert "remove the file, and start the daemon again" in caught.value.message
    assert record_of(host).read_text() == before


async def test_another_name_is_not_held_up_by_it(tmp_path: Path) -> None:
    host = SmallHost(tmp_path)
    record_of(host).write_text("{")
    host.open()

    await start(host, tmp_path / "try.yaml", TRY.replace("try", "other"))

    assert list(host.fleet.vms) == ["other"]


async def test_hooks_of_what_is_no_file_are_refused_and_nobody_waits_for_it(tmp_path: Path) -> None:
    host = SmallHost(tmp_path)
    host.fleet.workshop.places = replace(host.places, system=True)
    os.mkfifo(tmp_path / "try.yaml")

    with pytest.raises(Refused, match="is a FIFO, expected a regular file"):
        await start(host, tmp_path / "try.yaml", f"{TRY}hooks: {{preStart: [[/bin/true]]}}\n")

    assert host.fleet.vms == {}
