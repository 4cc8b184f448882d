"""Whom QEMU runs as: a user that exists, or a number that nobody else has."""

import os
import pwd
from pathlib import Path

import pytest

from arcsup.errors import Terminal
from arcsup.host import accounts
from arcsup.host.accounts import UNCLAIMED, Account, find_accounts
from arcsup.host.trust import find_distrust


def test_without_a_user_the_same_number_is_taken_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounts, "DEFAULT_USER", "no-such-user")

    first, second = (find_accounts(None, per_vm=False, seed="host") for _ in range(2))

    assert first == second
    assert first.shared.uid in UNCLAIMED
    assert first.choose("a", ()).uid == first.choose("b", ()).uid == first.shared.uid
    with pytest.raises(KeyError):
        pwd.getpwuid(first.shared.uid)


def test_the_users_own_numbers_and_groups_are_used() -> None:
    found = find_accounts("nobody", per_vm=False, seed="host")

    nobody = pwd.getpwnam("nobody")
    assert (found.shared.uid, found.shared.gid) == (nobody.pw_uid, nobody.pw_gid)


@pytest.mark.parametrize(("user", "why"), [("no-such-user", "there is no user"), ("root", "never")])
def test_a_user_who_does_not_exist_or_is_root_is_refused(user: str, why: str) -> None:
    with pytest.raises(Terminal, match=why):
        find_accounts(user, per_vm=False, seed="host")


def test_each_vm_has_a_number_of_its_own_and_keeps_it_while_it_is_free() -> None:
    found = find_accounts(None, per_vm=True, seed="host")

    one = found.choose("one", ())
    assert one == found.choose("one", ())
    other = found.choose("one", (one.uid,))

    assert len({one.uid, other.uid, found.shared.uid}) == 3
    assert found.shared.gid in one.groups
    with pytest.raises(Terminal, match="no free user number"):
        found.choose("one", UNCLAIMED)


def test_a_number_that_the_system_knows_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    before = find_accounts(None, per_vm=True, seed="host").choose("one", ())
    nobody = pwd.getpwnam("nobody")

    def find(uid: int) -> pwd.struct_passwd:
        if uid == before.uid:
            return nobody
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", find)

    assert find_accounts(None, per_vm=True, seed="host").choose("one", ()).uid != before.uid


@pytest.mark.parametrize(
    ("mode", "account", "may"),
    [
        (0o600, Account(0, 0), True),
        (0o600, Account(2, 2), False),
        (0o604, Account(2, 2), True),
        (0o640, Account(2, 2, (1,)), True),
        (0o640, Account(2, 1), True),
        (0o604, Account(2, 1), False),
        (0o044, Account(1, 1), False),
    ],
)
def test_only_the_first_class_of_mode_bits_counts(mode: int, account: Account, may: bool) -> None:
    status = os.stat_result((0o100000 | mode, 0, 0, 1, 1, 1, 0, 0, 0, 0))

    assert account.may(status, os.R_OK) is may


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files away")
def test_only_what_root_alone_can_have_written_is_trusted(tmp_path: Path) -> None:
    program = tmp_path / "mine" / "program"
    program.parent.mkdir()
    program.touch(mode=0o755)
    assert find_distrust(program) == ""

    program.parent.chmod(0o777)
    assert find_distrust(program) == f"refused: {program.parent} can be written by others than root"
    program.parent.chmod(0o1777)
    assert find_distrust(program) == ""
    os.chown(program, 65534, 65534)
    assert find_distrust(program) == f"refused: {program} does not belong to root"
    assert find_distrust(tmp_path / "none") == f"{tmp_path / 'none'}: No such file or directory"
