"""QEMU's user owns the console's log; nothing of root's may come of what it makes of that."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from arcsup.host.accounts import Account
from arcsup.vm.loans import Access, Terms, WantedFile, find_loans, lend, put_back
from arcsup.vm.logfiles import LogKeeper
from tests.security.other_user import LOCAL_USER, QEMU_USER, act_as, needs_root

pytestmark = needs_root

PROGRAM = Path("/usr/bin/id")


@pytest.fixture
def logs() -> Iterator[Path]:
    """Return a folder of logs that everybody may pass, as QEMU's user must."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        Path(folder).chmod(0o711)
        yield Path(folder)


def make_set_user_id_program(log: Path) -> None:
    """Do what a QEMU that was broken out of can do with its own log."""

    def break_out() -> None:
        with open(log, "wb") as stream:
            stream.write(PROGRAM.read_bytes())
            os.fchmod(stream.fileno(), 0o4755)

    log.touch(mode=0o640)
    shutil.chown(log, QEMU_USER, QEMU_USER)
    act_as(QEMU_USER, break_out)
    assert log.stat().st_mode & 0o7777 == 0o4755


def run_as_local_user(program: Path) -> str:
    def run() -> str:
        return subprocess.run([program, "-u"], capture_output=True, text=True, check=False).stdout

    try:
        return act_as(LOCAL_USER, run).strip()
    except PermissionError:
        return "refused"


def test_a_rotated_log_is_no_program_of_roots(logs: Path) -> None:
    log = logs / "console.log"
    make_set_user_id_program(log)

    LogKeeper(largest=1 << 12).look([logs])

    kept = (logs / "console.log.1").stat()
    assert (kept.st_uid, kept.st_mode & 0o7777) == (0, 0o640)
    assert run_as_local_user(logs / "console.log.1") == "refused"


async def test_a_log_that_is_taken_back_is_no_program_of_roots(logs: Path) -> None:
    log = logs / "console.log"
    make_set_user_id_program(log)
    wanted = [WantedFile("the console's log", log, Access.OWN, own_file=True)]
    account = Account(QEMU_USER, QEMU_USER, ())
    with ExitStack() as opened:
        # No record tells of an earlier loan: it was lost, with what the file was before.
        terms = Terms(account, QEMU_USER, (logs,), ())
        loans, _ = find_loans(wanted, terms, {}, opened)
        await lend(loans)
        assert put_back([loan for loan, _ in loans], {}) == ({}, [])

    status = log.stat()
    assert (status.st_uid, status.st_mode & 0o7777) == (0, 0o750)
    assert run_as_local_user(log) == "refused"
