"""Whose a process is that no record tells of: by what nobody else can have, not by what it says."""

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from uuid import UUID

import pytest
from attrs import evolve

from arcsup.host.accounts import Account, Accounts
from arcsup.model import VmName
from arcsup.places import Places
from arcsup.vm import strays
from arcsup.vm.process import ProcessId, read_start_time
from arcsup.vm.strays import (
    LockHeld,
    Sought,
    Stray,
    find_double,
    find_stray,
    find_strays,
    hold_for_removal,
    lock_files,
    vm_lock,
    what_to_do,
)
from tests.small_host import BOOT, places_in

WEB = VmName("web")
WEB_UUID = UUID("b6e63068-a49c-510d-9f95-dacfd5379eae")
SOMEBODY, QEMU_USER = 54321, 60601

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="starts programs of other users")


@pytest.fixture
def places(short_dir: Path) -> Places:
    short_dir.chmod(0o711)
    return places_in(short_dir)


@pytest.fixture
def sought(places: Places) -> Sought:
    accounts = Accounts(Account(QEMU_USER, QEMU_USER), per_vm=False, seed="")
    return Sought(places, BOOT, {WEB: WEB_UUID}, accounts=accounts)


@pytest.fixture
def running() -> Iterator[ExitStack]:
    with ExitStack() as ended:
        yield ended


def start(
    running: ExitStack,
    *words: str,
    descriptors: Sequence[int] = (),
    user: int | None = None,
) -> subprocess.Popen[bytes]:
    """Start a program that does nothing, with such words on its command line."""
    program = (sys.executable, "-c", "import time; time.sleep(1000)")
    process = subprocess.Popen([*program, *words], pass_fds=descriptors, user=user, cwd="/")
    running.callback(process.wait)
    running.callback(process.kill)
    return process


def named(name: str = "web") -> tuple[str, str]:
    return "-name", f"guest={name},debug-threads=on"


def words_of(places: Places) -> tuple[str, ...]:
    """Return what a QEMU's command line tells of its VM."""
    log = f"socket,id=console,logfile={places.log_of(WEB)}/console.log"
    return *named(), "-uuid", str(WEB_UUID), "-chardev", log


def inherit_lock(places: Places, running: ExitStack, *words: str) -> subprocess.Popen[bytes]:
    with vm_lock(places, WEB) as descriptors:
        return start(running, *words, descriptors=descriptors)


def test_who_has_inherited_the_lock_is_the_vms_qemu(sought: Sought, running: ExitStack) -> None:
    qemu = inherit_lock(sought.places, running, *named())

    [stray] = find_strays(sought)[WEB]

    assert (stray.pid, stray.is_qemu, stray.has_lock) == (qemu.pid, True, True)
    assert str(stray) == f"QEMU {qemu.pid} has the VM's lock, and no record tells of it"
    assert "arcsup adopt web" in what_to_do(WEB, stray)
    assert stray.since is not None


@pytest.mark.parametrize("which", [0, 1])
def test_an_older_versions_qemu_has_one_of_the_locks_and_is_found_by_it_removed_or_not(
    sought: Sought, running: ExitStack, which: int
) -> None:
    with vm_lock(sought.places, WEB) as descriptors:
        qemu = start(running, *named(), descriptors=descriptors[which : which + 1])
    path = lock_files(sought.places, WEB)[which]

    for _ in range(2):
        stray = find_stray(sought, WEB)
        assert stray is not None
        assert (stray.pid, stray.is_qemu) == (qemu.pid, True)
        path.unlink(missing_ok=True)


def test_a_process_that_a_record_tells_of_is_none(sought: Sought, running: ExitStack) -> None:
    qemu = inherit_lock(sought.places, running, *words_of(sought.places))
    start_time = read_start_time(qemu.pid)
    assert start_time is not None
    known = evolve(sought, known={ProcessId(BOOT, qemu.pid, start_time)})

    assert find_strays(known) == {}
    assert find_double(known) is None


def test_another_program_that_was_handed_the_lock_is_no_qemu(
    sought: Sought, running: ExitStack
) -> None:
    journal = inherit_lock(sought.places, running, *named("another"))

    stray = find_stray(sought, WEB)

    assert stray is not None
    assert not stray.is_qemu
    assert f"process {journal.pid} " in str(stray)
    assert "adopt" not in what_to_do(WEB, stray)


def test_of_several_the_qemu_is_told(sought: Sought, running: ExitStack) -> None:
    with vm_lock(sought.places, WEB) as descriptors:
        for words in ((), named(), ()):
            start(running, *words, descriptors=descriptors)

    assert len(find_strays(sought)[WEB]) == 3
    stray = find_stray(sought, WEB)
    assert stray is not None
    assert stray.is_qemu


def test_who_has_a_lock_and_cannot_be_seen_keeps_the_vm_from_starting(
    sought: Sought, running: ExitStack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    inherit_lock(sought.places, running, *named())
    monkeypatch.setattr(strays, "_PROC", tmp_path)

    assert find_strays(sought) == {WEB: (Stray(),)}
    assert "cannot be seen" in str(Stray())
    assert "lslocks" in what_to_do(WEB, Stray())


def test_a_file_of_such_a_name_that_is_not_locked_is_no_lock(
    sought: Sought, running: ExitStack
) -> None:
    path = lock_files(sought.places, WEB)[0]
    path.parent.mkdir(parents=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    running.callback(os.close, descriptor)
    start(running, *named(), descriptors=[descriptor])

    assert find_strays(sought) == {}


@needs_root
@pytest.mark.parametrize(("owner", "mode"), [(SOMEBODY, 0o600), (0, 0o666)])
def test_a_locked_file_that_others_could_open_is_no_lock(
    sought: Sought, running: ExitStack, owner: int, mode: int
) -> None:
    path = lock_files(sought.places, WEB)[0]
    path.parent.mkdir(parents=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    running.callback(os.close, descriptor)
    os.fchown(descriptor, owner, owner)
    os.fchmod(descriptor, mode)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    start(running, *named(), descriptors=[descriptor])
    path.unlink()

    assert find_strays(sought) == {}


@needs_root
def test_a_user_cannot_make_a_lock_by_mounting_something_in_its_place(
    sought: Sought, running: ExitStack
) -> None:
    folder = sought.places.run_of(WEB)
    folder.mkdir(parents=True)
    folder.parent.chmod(0o755)
    script = f"mount -t tmpfs mine {folder} && exec flock {folder}/lock sh -c 'echo; exec sleep 9'"
    user = subprocess.Popen(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        user=SOMEBODY,
        process_group=0,
    )
    running.enter_context(user)
    assert user.stdout is not None
    assert user.stderr is not None
    if not user.stdout.readline():
        pytest.skip(f"users cannot mount anything here: {user.stderr.read().decode()}")
    running.callback(os.killpg, user.pid, 9)
    shown = {os.readlink(link) for link in Path("/proc").glob(f"{user.pid}/fd/*")}
    assert f"{folder}/lock" in shown

    assert find_strays(sought) == {}


def test_a_command_line_of_the_daemons_user_is_believed(sought: Sought, running: ExitStack) -> None:
    by_hand = start(running, *words_of(sought.places))

    stray = find_double(sought)

    assert stray is not None
    assert (stray.pid, stray.is_qemu, stray.has_lock) == (by_hand.pid, True, False)
    assert str(find_stray(sought, WEB)) == str(stray)
    assert "has the VM's uuid and folders" in str(stray)


def test_a_command_line_that_names_another_daemons_folders_is_none_of_ours(
    sought: Sought, running: ExitStack, tmp_path: Path
) -> None:
    start(running, *words_of(places_in(tmp_path)))

    assert find_double(sought) is None
    assert find_strays(sought) == {}


@needs_root
@pytest.mark.parametrize(("user", "believed"), [(SOMEBODY, False), (QEMU_USER, True)])
def test_a_command_line_is_believed_of_qemus_user_and_of_nobody_elses(
    sought: Sought, running: ExitStack, user: int, believed: bool
) -> None:
    start(running, *words_of(sought.places), user=user)

    assert (find_double(sought) is not None) is believed
    assert (WEB in find_strays(sought)) is believed


def test_nothing_is_removed_while_somebody_has_the_lock(sought: Sought, running: ExitStack) -> None:
    inherit_lock(sought.places, running, *named())

    with pytest.raises(LockHeld), hold_for_removal(sought.places, WEB):
        raise AssertionError("it is held")
    with pytest.raises(LockHeld), vm_lock(sought.places, WEB):
        raise AssertionError("it is held")
    assert all(path.exists() for path in lock_files(sought.places, WEB))
