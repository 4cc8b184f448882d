"""What is kept on disk about VMs: read back as it was written, or reported, never guessed."""

import os
import subprocess
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trio
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from arcsup.devices import Backend
from arcsup.errors import Terminal
from arcsup.host.cgroups import Limits
from arcsup.host.owned import OwnedSlice
from arcsup.model import ExitClass, LastExit, VmName
from arcsup.plan.plan import Intent
from arcsup.plan.restart import Budget
from arcsup.vm.process import ProcessId
from arcsup.vm.record import Failure, Launch, OwnedProcess, Record, RecordStore, Source

texts = st.text(max_size=30)
names = st.from_regex(r"[a-z][a-z0-9-]{0,20}", fullmatch=True).map(VmName)
times = st.floats(0, 1e9)
moments = st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))
launches = st.builds(
    Launch,
    boot_id=texts,
    text=texts,
    argv=st.lists(texts, max_size=4).map(tuple),
    processes=st.lists(
        st.builds(
            OwnedProcess,
            role=texts,
            identity=st.builds(
                ProcessId, boot_id=texts, pid=st.integers(1), start_time=st.integers(0)
            ),
        ),
        max_size=3,
    ).map(tuple),
    devices=st.lists(texts, max_size=3).map(tuple),
    numa_node=st.none() | st.integers(0, 7),
    started_at=times,
    ready_at=st.none() | times,
    limits=st.none() | st.builds(Limits, memory=st.none() | st.integers(1), tasks=st.integers(1)),
    cgroup=texts,
)
records = st.builds(
    Record,
    name=names,
    source=st.builds(Source, file=texts, text=texts, digest=texts),
    transient=st.booleans(),
    intent=st.sampled_from(Intent),
    intent_boot=texts,
    halted=texts,
    failure=st.none() | st.builds(Failure, because=texts, digest=texts),
    budget=st.builds(
        Budget, restarts=st.lists(times, max_size=5).map(tuple), streak=st.integers(0, 50)
    ),
    retry_at=st.none() | times,
    restarts=st.integers(0),
    last_exit=st.none()
    | st.builds(
        LastExit,
        exit_class=st.sampled_from(ExitClass),
        code=st.none() | st.integers(0, 255),
        signal=st.none() | st.integers(1, 64),
        at=moments,
        detail=texts,
    ),
    launch=st.none() | launches,
    since=st.none() | moments,
)


def record(name: str = "one") -> Record:
    return Record(VmName(name), Source("/vms/one.yaml", "memory: 64\n", "abc"))


@given(records)
@settings(max_examples=50, deadline=None)
def test_what_is_written_is_read_back(written: Record) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = RecordStore(Path(folder))
        trio.run(store.save, written)

        assert store.load_all() == ({written.name: written}, {})


async def test_a_removed_record_is_gone_and_may_be_removed_twice(tmp_path: Path) -> None:
    store = RecordStore(tmp_path / "vms")
    store.load_all()
    await store.save(record())
    await store.remove(VmName("one"))
    await store.remove(VmName("one"))

    assert store.load_all() == ({}, {})
    assert list((tmp_path / "vms").iterdir()) == []
    assert (tmp_path / "vms").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"name": "one"}',
        b'{"format": "new"}',
        b'{"name": "one", "source": 5}',
        b"[" * 100_000,
    ],
)
async def test_what_is_no_record_is_reported_and_the_others_are_read(
    tmp_path: Path, content: bytes
) -> None:
    store = RecordStore(tmp_path)
    await store.save(record("two"))
    (tmp_path / "one.json").write_bytes(content)

    found, unreadable = store.load_all()

    assert list(found) == ["two"]
    assert f"{tmp_path}/one.json cannot be read" in unreadable[VmName("one")]
    assert "end that QEMU, then remove the file" in unreadable[VmName("one")]


async def test_a_torn_record_is_reported_at_every_length(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    await store.save(record())
    whole = (tmp_path / "one.json").read_bytes()
    for length in range(0, len(whole) - 1, 7):
        (tmp_path / "one.json").write_bytes(whole[:length])
        found, unreadable = store.load_all()
        assert (found, list(unreadable)) == ({}, ["one"])


async def test_a_record_of_a_newer_arcsup_is_refused(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    (tmp_path / "one.json").write_text('{"format": 99, "surprise": true}')

    _, unreadable = store.load_all()

    assert "was written by a newer arcsup" in unreadable[VmName("one")]


async def test_a_half_written_successor_leaves_the_record_as_it_was(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    await store.save(record())
    (tmp_path / ".one.json.arcsup").write_text("{")

    assert store.load_all() == ({VmName("one"): record()}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["one.json"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a small file system")
async def test_a_full_disk_is_told_and_the_old_record_stays(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "arcsup", tmp_path], check=True)
    try:
        store = RecordStore(tmp_path)
        await store.save(record())
        large = Record(VmName("one"), Source("/vms/one.yaml", "#" * 100_000, "def"))

        with pytest.raises(Terminal, match=r"one\.json cannot be written: No space left"):
            await store.save(large)

        assert store.load_all() == ({VmName("one"): record()}, {})
        await store.save(record("two"))
    finally:
        subprocess.run(["umount", "--lazy", tmp_path], check=True)


async def test_a_slice_of_an_older_journal_is_of_the_boot_of_its_qemu(tmp_path: Path) -> None:
    had = OwnedSlice(Backend.MDEV, 0, "uuid", "mbochs", "mbochs", "mbochs-small", "")
    record = Record(VmName("one"), Source("one.yaml", "", ""), slices=(had,))
    for launch, boot in ((None, ""), (Launch("that boot", ""), "that boot")):
        store = RecordStore(tmp_path / "vms")
        store.prepare()
        await store.save(evolve(record, launch=launch))
        records, _ = RecordStore(tmp_path / "vms").load_all()
        assert [it.boot for it in records[VmName("one")].slices] == [boot]


def launched(pid: int) -> Record:
    qemu = OwnedProcess("qemu", ProcessId("boot", pid, 1))
    return evolve(record(), launch=Launch("boot", "{}", processes=(qemu,)))


async def test_the_runtime_folder_of_a_vm_that_runs_has_a_copy_of_its_record(
    tmp_path: Path,
) -> None:
    store = RecordStore(tmp_path / "vms", lambda name: tmp_path / "run" / name)
    store.load_all()
    await store.save(launched(7))
    assert store.load_copy(VmName("one")) is None  # There is no folder: nothing runs.

    (tmp_path / "run/one").mkdir(parents=True)
    await store.save(launched(7))
    assert store.load_copy(VmName("one")) == launched(7)

    # What is said of another QEMU, or of none, is not said of the one that runs.
    await store.save_uncopied(launched(8))
    await store.save(record())
    assert store.load_copy(VmName("one")) == launched(7)
    assert store.load_all()[0] == {VmName("one"): record()}


async def test_a_copy_that_cannot_be_written_tells_nothing_old(tmp_path: Path) -> None:
    folder = tmp_path / "run/one"
    folder.mkdir(parents=True)
    store = RecordStore(tmp_path / "vms", lambda name: tmp_path / "run" / name)
    store.load_all()
    await store.save(launched(7))
    (folder / ".record.json.arcsup").mkdir()

    await store.save(launched(8))

    assert store.load_copy(VmName("one")) is None


async def test_a_copy_that_is_no_record_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "run/one"
    folder.mkdir(parents=True)
    (folder / "record.json").write_text("{")
    store = RecordStore(tmp_path / "vms", lambda name: tmp_path / "run" / name)

    with pytest.raises(Terminal, match="cannot be read"):
        store.load_copy(VmName("one"))
